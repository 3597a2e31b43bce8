"""From an anecdote to evidence: both initializations of a comparison again, five seeds each, as one sweep."""

from __future__ import annotations

import streamlit as st

from core import launcher as processes
from core import sweep
from core.diagnosis.compare import INNOCENT_FIELDS, Comparison
from core.errors import InitScopeError
from dashboard import access, loaders, text

SEEDS = 5
"""Five against five is the least that can be significant when all agree: p = 0.008."""


def button(result: Comparison, *, key: str) -> None:
    """Offer the sweep where one launched run a side differs in nothing but its initialization."""
    told = set(result.changed_fields) - set(INNOCENT_FIELDS)
    ids = result.runs["a"] + result.runs["b"]
    if not access.may_change() or len(ids) != 2 or not {"init"} <= told <= {"init", "init_seed"}:
        return
    if any(info.live or info.state.get("source") == "recorder" for info in loaders.listed(ids)):
        return
    if st.button(f"Rule out luck: {SEEDS} seeds each", icon=":material/casino:", key=key):
        _launch(ids)


def _launch(ids: list[str]) -> None:
    runs = loaders.runs()
    try:
        a, b = (runs.get(run_id).config() for run_id in ids)
        base = a.replace(sweep="", stop_when_certain=True)
        name = sweep.name_of(base)
        sweep.launch(runs, sweep.plan(base, [a.init, b.init], SEEDS, name, slots=processes.slots()))
    except InitScopeError as error:
        st.error(text.markdown(str(error)))
        return
    st.session_state["sweep_name"] = name
    st.switch_page("screens/sweep.py", query_params={"sweep": name})
