"""What a person does to runs: rename, tag, stop, resume, delete. Each asks where something could be lost."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import streamlit as st

from initscope.config.run_config import MAX_NAME
from initscope.errors import InitScopeError, RunNotFound, RunStateError
from initscope.scheduling import launcher as processes
from initscope.store import RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting

STOP_WAIT_SECONDS = 30


@st.dialog("Rename or tag")
def edit_dialog(info: RunInfo) -> None:
    """Name and tags of one run."""
    name = st.text_input("Name", value=info.name, max_chars=MAX_NAME)
    tags = st.text_input(
        "Tags", value=", ".join(info.tags), help="Words to find the run by, with commas between."
    )
    if st.button("Save", type="primary"):
        try:
            loaders.runs().get(info.run).edit(name=name, tags=tags)
        except InitScopeError as error:
            st.error(formatting.markdown(str(error)))
        else:
            st.rerun()


@st.dialog("Delete")
def delete_dialog(infos: Sequence[RunInfo]) -> None:
    """Ask, stop what is live, delete."""
    live = [info for info in infos if info.live]
    what = f"{len(infos)} runs" if len(infos) > 1 else f"“{formatting.markdown(infos[0].name)}”"
    st.markdown(f"Delete {what} and everything recorded? This cannot be undone.")
    if live:
        st.markdown(
            f"{len(live)} still running: stopped first."
            if len(live) > 1
            else "It is still running: it is stopped first."
        )
    if any(info.state.get("source") == "recorder" for info in live):
        st.caption(
            "A loop of your own ends only if it looks at what recorder.step() returns; else end its program "
            "first."
        )
    if st.button("Delete", type="primary"):
        for info in infos:
            try:
                _stop_and_delete(info)
            except RunNotFound:
                continue  # somebody else was faster
            except InitScopeError as error:
                st.error(formatting.markdown(str(error)))
                return
        st.rerun()


def _stop_and_delete(info: RunInfo) -> None:
    runs = loaders.runs()
    run = runs.get(info.run)
    if run.info().live:
        processes.stop(runs, run)
        if not processes.wait_until_stopped(run, STOP_WAIT_SECONDS):
            raise RunStateError(
                f"run {run.id} goes on after it was asked to stop; end its program, then delete it"
            )
    run.delete()


def stop(run_id: str) -> None:
    """Ask a run to stop after its current step; a run that has ended meanwhile is left alone."""
    runs = loaders.runs()
    with contextlib.suppress(RunStateError, RunNotFound):
        processes.stop(runs, runs.get(run_id))


def resume(run_ids: Sequence[str]) -> None:
    """Queue ended runs again, each from its checkpoint."""
    runs = loaders.runs()
    for run_id in run_ids:
        try:
            processes.resume(runs, runs.get(run_id))
        except InitScopeError as error:
            st.toast(formatting.markdown(str(error)), icon=":material/error:")
