"""Which runs a page is about, kept in the address bar: ``?run=ID&run=ID``.

The address wins when it changes (a link, the back button), the widget when a person uses it. Between pages
the session remembers what was looked at last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from initscope.store import RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting

_LAST = "initscope-last-runs"
MOST = 12
"""Runs in one picture; more cannot be told apart."""


def _option(infos: Sequence[RunInfo]) -> Callable[[str], str]:
    names = {info.run: info.name for info in infos}

    def words(run_id: str) -> str:
        # The browser sends these words back: they must be unique and may not change while the run goes on.
        return f"{formatting.shorten(names[run_id], 40)} · {run_id.rsplit('-', 1)[-1][-6:]}"

    return words


def _settle(
    param: str, key: str, infos: Sequence[RunInfo], default: Sequence[str], most: int, remember: bool
) -> list[str]:
    """The ids to show, from the address if it changed, else from the widget, else what was looked at last,
    else ``default``.
    """
    there = {info.run for info in infos}
    asked, held = st.query_params.get_all(param), st.session_state.get(f"{key}-address")
    known = key in st.session_state and held is not None
    chosen = (
        held if known and held == asked else asked or (st.session_state.get(_LAST, []) if remember else [])
    )
    if asked and asked != held and (gone := [run_id for run_id in asked if run_id not in there]):
        st.session_state[f"{key}-gone"] = gone
    elif held is not None and held != asked:
        st.session_state.pop(f"{key}-gone", None)
    if missing := st.session_state.get(f"{key}-gone"):
        not_here(missing)
    chosen = [run_id for run_id in dict.fromkeys(chosen) if run_id in there][:most]
    if not chosen and not known:
        chosen = list(default)[:most]
    _show(param, key, chosen)
    return chosen


def not_here(names: Sequence[str]) -> None:
    """Say that what a link asked for is not here, rather than show something else without a word."""
    hidden = {info.run for info in loaders.everything() if info.hidden}
    for found, why in (
        ([name for name in names if name not in hidden], "not here: deleted, or in another folder."),
        ([name for name in names if name in hidden], "archived. Restore on Home, under the archived runs."),
    ):
        if found:
            told = ", ".join(f"`{formatting.shorten(name.replace('`', ''), 80)}`" for name in found)
            st.warning(
                f"{'Run' if len(found) == 1 else 'Runs'} {told} {'is' if len(found) == 1 else 'are'} {why} "
                "Choose another below.",
                icon=":material/link_off:",
            )


def _show(param: str, key: str, chosen: list[str]) -> None:
    if st.query_params.get_all(param) != chosen:
        st.query_params[param] = chosen
    st.session_state[f"{key}-address"] = chosen
    st.session_state[_LAST] = chosen


def _picked(param: str, key: str, chosen: list[str]) -> None:
    """A person chose; what a link asked for is no longer the question."""
    st.session_state.pop(f"{key}-gone", None)
    _show(param, key, chosen)


def newest_or_live(infos: Sequence[RunInfo]) -> list[str]:
    """The live runs, else the newest two."""
    return [info.run for info in infos if info.live] or [info.run for info in infos[:2]]


def runs(
    infos: Sequence[RunInfo], default: Sequence[str], *, key: str, label: str = "Runs", param: str = "run"
) -> list[RunInfo]:
    """A multiselect of runs; returns the chosen ones in the order chosen. While runs train, ``default`` goes
    before memory.
    """
    st.session_state[key] = _settle(
        param, key, infos, default, MOST, remember=not any(info.live for info in infos)
    )
    chosen = st.multiselect(
        label,
        [info.run for info in infos],
        key=key,
        format_func=_option(infos),
        max_selections=MOST,
        placeholder="Choose runs",
        on_change=lambda: _picked(param, key, list(st.session_state[key])),
    )
    by_id = {info.run: info for info in infos}
    return [by_id[run_id] for run_id in chosen]


def run(
    infos: Sequence[RunInfo],
    default: str,
    *,
    key: str,
    label: str = "Run",
    param: str = "run",
    width: int | str = "stretch",
) -> RunInfo:
    """A selectbox of one run."""
    chosen = _settle(param, key, infos, [default], 1, remember=True)
    st.session_state[key] = chosen[0] if chosen else default
    picked = st.selectbox(
        label,
        [info.run for info in infos],
        key=key,
        format_func=_option(infos),
        width=width,
        on_change=lambda: _picked(param, key, [st.session_state[key]]),
    )
    return next(info for info in infos if info.run == picked)
