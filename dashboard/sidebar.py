"""The launcher on every page, and under it the runs in progress."""

from __future__ import annotations

import time

import streamlit as st

from core import launcher as processes
from core.errors import InitScopeError
from core.schema import Status
from core.store import RunInfo
from dashboard import access, launch_form, loaders, pacing, text, theme

REFRESH_SECONDS = 2
SAME_CLICK_SECONDS = 2
"""Two identical launches within this are one double click."""


def launcher() -> None:
    """The sidebar: fields, one button, and what is running."""
    with st.sidebar:
        if access.may_change():
            _form()
        else:
            st.caption("Read-only: nothing can be launched, changed or deleted here.")
        access.sign_out()
        live = [info for info in loaders.listing() if info.live]
        # One polling fragment, and only while there is something to see.
        st.session_state["refresh_pause"] = pause = pacing.every(REFRESH_SECONDS)
        st.fragment(in_progress, run_every=pause if live else None)()


def _form() -> None:
    """The launcher's fields and its button."""
    st.subheader("Launch", anchor=False)
    launch_form.begin()
    configs, problems = launch_form.fields()
    label = f"Launch {len(configs)} runs" if len(configs) > 1 else "Launch"
    if st.button(label, key="launch", type="primary", width="stretch", disabled=bool(problems), icon=":material/play_arrow:"):
        launch(configs)
    if problems:
        st.caption("Nothing is launched until every field above is right.")


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
        st.error(text.markdown(str(error)))
        return
    st.switch_page("screens/live.py", query_params={"run": [run.id for run in made]})


def in_progress() -> None:
    """Each live run with its progress, the time left and a stop button; reloads the page whenever one has begun or ended."""
    access.gate()  # it runs again and again without the page around it: the session may have ended since
    live = [info for info in loaders.listing() if info.live]
    now = {(info.run, bool(info.state.get("step"))) for info in live}
    before = st.session_state.get("live_runs", set())
    st.session_state["live_runs"] = now
    crowded = pacing.every(REFRESH_SECONDS) > 2 * st.session_state["refresh_pause"]  # only a run of the page sets another pause
    if before - now or crowded:
        st.rerun()
    if not live:
        return
    st.subheader("In progress", anchor=False)
    for info in reversed(live):
        _progress_row(info)


def _progress_row(info: RunInfo) -> None:
    mark = theme.STATUSES[info.status]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.progress(info.progress, text=f"{mark.shape} {text.markdown(text.shorten(info.name, 24))} · {_left(info)}")
        if info.status != Status.STOPPING and access.may_change():
            st.button(
                "Stop",
                key=f"stop_{info.run}",
                icon=":material/stop:",
                type="tertiary",
                help="Stop after the current step. The rows and a checkpoint are kept; it can be resumed.",
                on_click=_stop,
                args=(info.run,),
            )


def _left(info: RunInfo) -> str:
    if info.status == Status.QUEUED:
        return "queued"
    if info.status == Status.STOPPING:
        return "stopping"
    if not info.state.get("step"):
        return str(info.state.get("phase") or "starting")
    seconds = info.state.get("seconds") or 0.0
    left = seconds * (1 - info.progress) / info.progress if info.progress else None
    return f"{text.duration(left)} left"


def _stop(run_id: str) -> None:
    runs = loaders.runs()
    try:
        processes.stop(runs, runs.get(run_id))
    except InitScopeError as error:
        st.toast(text.markdown(str(error)), icon=":material/info:")
