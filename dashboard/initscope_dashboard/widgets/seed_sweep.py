"""From an anecdote to evidence: a sweep over seeds, begun from a form or from a comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from initscope.comparison import sweep
from initscope.comparison.compare import Comparison
from initscope.comparison.differences import INNOCENT_FIELDS
from initscope.config.run_config import RunConfig
from initscope.errors import InitScopeError
from initscope.scheduling import launcher
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting
from initscope_dashboard.server import access

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
    try:
        a, b = (loaders.runs().get(run_id).config() for run_id in ids)
    except InitScopeError as error:
        st.error(formatting.markdown(str(error)))
        return
    if begin(a.replace(sweep=""), [a.init, b.init], SEEDS) is not None:
        st.switch_page("screens/sweep.py", query_params={"sweep": st.session_state["sweep_name"]})


def begin(base: RunConfig, inits: Sequence[str], seeds: int, vary: str = "") -> int | None:
    """Queue what a sweep over ``base`` still lacks and make it the one that the Sweep page shows; ``vary`` as
    in ``gain=1,2 depth=11,16``.

    Returns how many runs were queued; None, and the reason on the page, where nothing was.
    """
    try:
        base = base.replace(stop_when_certain=True)
        axes = [sweep.parse_axis(word) for word in vary.split()]
        name = sweep.name_of(base, axes=axes)
        launched = launcher.submit_missing(
            loaders.runs(), sweep.plan(base, inits, seeds, name, axes, slots=launcher.slots())
        )
    except InitScopeError as error:
        st.error(formatting.markdown(str(error)))
        return None
    st.session_state["sweep_name"] = name
    return len(launched)
