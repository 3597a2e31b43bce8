"""The folder of runs that the pages show, and its list."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from initscope.store import RunInfo, Runs, default_root


@st.cache_resource(max_entries=8, show_spinner=False)
def _runs(root: str) -> Runs:
    return Runs(root, shown="the folder of runs")


def runs() -> Runs:
    """The folder of all runs: ``INITSCOPE_RUNS`` or ``runs/``. Its path on this machine stays out of what
    pages say.
    """
    return _runs(default_root())  # one for all sessions: it remembers what it has read of ended runs


def info(run_id: str) -> RunInfo:
    """One run's listing entry, as its files are now."""
    return runs().info(run_id)


def listing() -> list[RunInfo]:
    """The runs that are not archived, newest first. An ended run whose files have not changed costs three
    looks at the file system.
    """
    return [info for info in everything() if not info.hidden]


def everything() -> list[RunInfo]:
    """All runs, archived ones too, newest first."""
    return runs().list()


def listed(run_ids: Iterable[str]) -> list[RunInfo]:
    """The entries of those runs that exist, in the order asked for."""
    there = set(runs().ids())
    return [info(run_id) for run_id in dict.fromkeys(run_ids) if run_id in there]
