"""What a person does to runs: rename, tag, stop, resume, delete. Each asks where something could be lost."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import streamlit as st

from initscope.config.catalog import USE_EMBEDDED
from initscope.config.run_config import MAX_NAME
from initscope.errors import InitScopeError, RunNotFound, RunStateError
from initscope.scheduling import launcher as processes
from initscope.store import RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting
from initscope_dashboard.server import access
from initscope_dashboard.widgets import sidebar

STOP_WAIT_SECONDS = 30
MAX_NOTES = 10_000
DIGITS = "digits"


@st.dialog("Rename, tag or note")
def edit_dialog(info: RunInfo) -> None:
    """Name, tags and notes of one run."""
    name = st.text_input("Name", value=info.name, max_chars=MAX_NAME)
    tags = st.text_input(
        "Tags", value=", ".join(info.tags), help="Words to find the run by, with commas between."
    )
    notes = st.text_area(
        "Notes", value=loaders.notes(info.run), max_chars=MAX_NOTES, help="Plain text, shown under the table."
    )
    if st.button("Save", type="primary"):
        try:
            loaders.runs().get(info.run).edit(name=name, tags=tags, notes=notes)
        except InitScopeError as error:
            st.error(formatting.markdown(str(error)))
        else:
            st.rerun()


@st.dialog("Tag")
def tag_dialog(infos: Sequence[RunInfo]) -> None:
    """Put tags on several runs, or take them off; every other tag stays."""
    st.markdown(f"{formatting.count(len(infos))} runs. Their other tags stay.")
    add = st.text_input("Add", help="Words to find the runs by, with commas between.")
    remove = st.multiselect("Take off", sorted({tag for info in infos for tag in info.tags}))
    if st.button("Save", type="primary", disabled=not (add.strip() or remove)):
        fresh = [word.strip() for word in add.split(",") if word.strip()]
        for info in infos:
            kept = [tag for tag in info.tags if tag not in remove]
            try:
                loaders.runs().get(info.run).edit(tags=list(dict.fromkeys([*kept, *fresh])))
            except RunNotFound:
                continue  # deleted meanwhile
            except InitScopeError as error:
                st.error(f"{formatting.markdown(info.name)}: {formatting.markdown(str(error))}")
                return
        st.rerun()


def archive_button(infos: Sequence[RunInfo]) -> None:
    """Hide the runs that have ended, or show archived ones again; no question, since nothing is lost."""
    ended = [info for info in infos if not info.live]
    if not ended:
        return
    back = all(info.archived for info in ended)
    st.button(
        "Restore" if back else "Archive",
        icon=":material/unarchive:" if back else ":material/archive:",
        key="archive",
        help="Show these runs on every page again" if back else "Hide these runs; nothing is deleted",
        on_click=_archive,
        args=([info.run for info in ended], not back),
    )


def _archive(run_ids: Sequence[str], archived: bool) -> None:
    for run_id in run_ids:
        try:
            loaders.runs().get(run_id).archive(archived)
        except RunNotFound:
            continue  # deleted meanwhile
        except InitScopeError as error:
            st.toast(formatting.markdown(str(error)), icon=":material/error:")
            return
    many = "1 run" if len(run_ids) == 1 else f"{formatting.count(len(run_ids))} runs"
    st.toast(
        f"{many} {'archived: hidden, not deleted' if archived else 'restored'}", icon=":material/archive:"
    )


def stop_all(run_ids: Sequence[str]) -> None:
    """Ask several runs to stop."""
    for run_id in run_ids:
        stop(run_id)


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


def offer_digits(infos: Sequence[RunInfo]) -> None:
    """Where runs failed because their data are missing: a button that launches them anew on the embedded
    digits, everything else as it was.
    """
    lacking = [info for info in infos if info.status == "failed" and USE_EMBEDDED in (info.error or "")]
    if not lacking or not access.may_change():
        return
    label = (
        "Launch it with digits instead" if len(lacking) == 1 else f"Launch these {len(lacking)} with digits"
    )
    if st.button(label, type="primary", icon=":material/play_arrow:", key="with_digits"):
        try:
            given = [loaders.runs().get(info.run).config() for info in lacking]
            configs = [config.replace(data=DIGITS, name="", sweep="") for config in given]
        except InitScopeError as error:
            st.error(formatting.markdown(str(error)))
            return
        sidebar.launch(configs)
    st.caption(
        "The same network, initializations and seeds on the handwritten digits that come with the program."
    )


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
