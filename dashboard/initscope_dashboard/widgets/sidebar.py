"""The launcher on every page, and under it the runs in progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import streamlit as st

from initscope.errors import InitScopeError
from initscope.scheduling import launcher as processes
from initscope.scheduling.engine import ENGINES, State
from initscope.schema import Status
from initscope.store import RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting
from initscope_dashboard.live.event_stream import standing
from initscope_dashboard.server import access
from initscope_dashboard.widgets import launch_form
from initscope_dashboard.widgets.cards import progress_rows

ROWS = 8
"""Runs in progress that are shown; more are counted."""
SAME_CLICK_SECONDS = 2
"""Two identical launches within this are one double click."""


def launcher(infos: Sequence[RunInfo]) -> None:
    """The sidebar: fields, one button, and what is running."""
    with st.sidebar:
        if access.may_change():
            _form()
        else:
            st.caption("Read-only: nothing can be launched, changed or deleted here.")
        access.sign_out()
        _in_progress(infos)


def _form() -> None:
    """The launcher's fields and its button."""
    st.header("Launch", anchor=False)
    with contextlib.suppress(
        InitScopeError
    ):  # a folder that cannot be written: said when something is launched
        processes.prepare(loaders.runs())
    launch_form.begin()
    configs, problems = launch_form.fields()
    st.session_state[launch_form.CONFIGS] = configs
    label = f"Launch {len(configs)} runs" if len(configs) > 1 else "Launch"
    if st.button(
        label,
        key="launch",
        type="primary",
        width="stretch",
        disabled=bool(problems),
        icon=":material/play_arrow:",
    ):
        launch(configs)
    elif (refused := st.session_state.get("refused")) and refused[0] == repr(
        configs
    ):  # a rerun that a run's end asks for does not take the answer away
        st.error(formatting.markdown(refused[1]))
    if problems:
        st.caption("Nothing is launched until every field above is right.")
    st.caption(engine_line(processes.state(loaders.runs())))


def engine_line(state: State) -> str:
    """Where runs train and how much of it is free, or what keeps it from training, as Markdown."""
    title = ENGINES[state.engine]
    if state.trouble:
        return f"{title}: :red[{formatting.markdown(state.trouble)}]"
    if state.slots is None:
        return f"{title}: its slots show once a run is launched"
    return f"{title}: {state.free} of {state.slots} slots free" + (
        f", {formatting.count(state.waiting)} waiting" if state.waiting else ""
    )


def launch(configs: list) -> None:
    """Queue the runs and show them live. A double click launches once."""
    fingerprint = repr(configs)
    last, when = st.session_state.get("last_launch", (None, 0.0))
    if fingerprint == last and time.monotonic() - when < SAME_CLICK_SECONDS:
        return
    st.session_state["last_launch"] = (fingerprint, time.monotonic())
    try:
        made = processes.submit(loaders.runs(), configs)
    except InitScopeError as error:
        del st.session_state["last_launch"]  # nothing was launched: trying again is no double click
        st.session_state["refused"] = fingerprint, str(error)
        st.error(formatting.markdown(str(error)))
        return
    st.session_state.pop("refused", None)
    st.switch_page("screens/live.py", query_params={"run": [run.id for run in made]})


def _in_progress(infos: Sequence[RunInfo]) -> None:
    """The runs that train or wait, those that train first; the page's event stream keeps them current, and
    asks for a rerun when one has begun or ended, come or gone.
    """
    live = sorted(
        (info for info in reversed(infos) if info.live), key=lambda info: info.status == Status.QUEUED
    )
    if live:
        st.header("In progress", anchor=False)
    there = standing(info.run for info in infos)
    progress_rows(
        live[:ROWS],
        more=len(live) - ROWS,
        there=there,
        key="in_progress",
        on_stop=_stop if access.may_change() else None,
    )


def _stop(run_id: str) -> None:
    runs = loaders.runs()
    try:
        processes.stop(runs, runs.get(run_id))
    except InitScopeError as error:
        st.toast(formatting.markdown(str(error)), icon=":material/info:")
