"""Home: what this is, the story in one click, and every run there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from initscope.config.catalog import init_title
from initscope.errors import ConfigError
from initscope.schema import Status
from initscope.store import RECORDED, RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.browser import theme
from initscope_dashboard.content import comparison_choices, formatting, headlines, run_filters, runs_csv
from initscope_dashboard.server import access
from initscope_dashboard.widgets import empty_state, run_actions, seed_sweep, selection

PAGE_ROWS = 200
NUMBERS = "numbers"
SCORES = (
    "Of the validation images once an epoch is over; before that, and where the loss is no number any more, "
    "of the last batch"
)


def page() -> None:
    infos = loaders.listing()
    _answer(infos)
    if not infos:
        _first_time()
        return
    matching = _filtered(infos)
    shown, counted = _paged(matching), st.container(horizontal=True, vertical_alignment="center")
    chosen = _table(shown)
    everything = _counted(counted, matching, len(infos))
    _actions(matching if everything else [info for info in shown if info.run in chosen])
    _unreadable(infos)


def _answer(infos: list[RunInfo]) -> None:
    """The question; once the newest runs answer it, the answer."""
    result = loaders.latest_comparison(infos)
    if result is None:
        st.title("Is it the initialization?", anchor=False)
        st.markdown(
            "A deep network whose weights begin too small learns nothing: by the last layer two different "
            "images look the same, and no gradient finds its way back. Launch a run from the sidebar, watch "
            "every layer, and compare it with one that begins right."
        )
        return
    st.title(
        f"{theme.VERDICTS[result.verdict].shape} {formatting.heading(headlines.comparison(result))}",
        anchor=False,
    )
    st.markdown(
        "Is it the initialization, and did changing it fix it? That is the newest answer; the evidence is "
        "one click away."
    )
    a, b = comparison_choices.suggested_pair(infos)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            "screens/compare.py",
            label="See the evidence",
            icon=":material/compare:",
            query_params={"a": a, "b": b},
        )
        seed_sweep.button(result, key="home_luck")


def _first_time() -> None:
    with st.container(border=True):
        st.header("No runs yet", anchor=False)
        st.markdown(
            "The story: the same VGG16 on the same handwritten digits in the same order, once with "
            "PyTorch's default weights and once "
            "with Kaiming's."
        )
        empty_state.story_button()


def _score(number: int, lowest_first: bool) -> Callable[[RunInfo], tuple]:
    """An order by loss (0) or accuracy (1); runs without a number come last, NaN before them."""

    def place(info: RunInfo) -> tuple:
        value = info.scores[number]
        missing = 2 if value is None else 1 if math.isnan(value) else 0
        return missing, (0.0 if value is None or missing else value if lowest_first else -value)

    return place


ORDERS: dict[str, tuple[Callable[[RunInfo], Any], bool]] = {
    "Newest first": (lambda info: (info.created, info.run), True),
    "Oldest first": (lambda info: (info.created, info.run), False),
    "Lowest loss": (_score(0, True), False),
    "Highest loss": (_score(0, False), False),
    "Highest accuracy": (_score(1, False), False),
    "Lowest accuracy": (_score(1, True), False),
    "Name": (lambda info: info.name.lower(), False),
    "Outcome": (lambda info: theme.outcome_mark(info.outcome, info.status).word, False),
}
"""Orders of the table: {title: (key, reverse)}; applied to all runs, before they are cut into pages."""


def _words(info: RunInfo) -> str:
    """What a row of the table shows of a run, and its ids, to search in."""
    shown = [
        info.name,
        info.run,
        info.init,
        init_title(info.init),
        *info.tags,
        info.status,
        str(info.outcome),
        theme.outcome_mark(info.outcome, info.status).word,
    ]
    return " ".join(
        [*shown, str(info.config.get("model") or ""), str(info.config.get("sweep") or ""), info.error or ""]
    ).lower()


def _filtered(infos: list[RunInfo]) -> list[RunInfo]:
    """The runs that fit the search box, the sweep and the filters."""
    everything = infos
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(
            "Search",
            key="search",
            bind="query-params",
            placeholder="Search name, tag, initialization, outcome",
            label_visibility="collapsed",
        )
        sweeps = sorted({str(i.config.get("sweep")) for i in infos if i.config.get("sweep")}, reverse=True)
        sweep = (
            st.selectbox("Sweep", ["All runs", *sweeps], key="sweep_filter", label_visibility="collapsed")
            if sweeps
            else "All runs"
        )
        order = st.selectbox(
            "Order", list(ORDERS), key="order", bind="query-params", label_visibility="collapsed", width=180
        )
    if sweep != "All runs":
        infos = [info for info in infos if info.config.get("sweep") == sweep]
    for word in (words or "").lower().split():
        infos = [info for info in infos if word in _words(info)]
    infos = _by_fields(infos, everything)
    by, backwards = ORDERS[order or next(iter(ORDERS))]
    return sorted(infos, key=by, reverse=backwards)


def _by_fields(infos: list[RunInfo], everything: list[RunInfo]) -> list[RunInfo]:
    """The runs that fit the filters; what can be chosen is what all runs have. The address holds them."""
    asked = any(name in st.query_params for name in (*run_filters.FIELDS, NUMBERS))
    with st.expander(
        "Filter", icon=":material/filter_alt:", expanded=st.session_state.setdefault("filters_open", asked)
    ):
        found = run_filters.choices(everything)
        chosen = {}
        columns = st.columns(2)
        for at, name in enumerate(found):
            chosen[name] = columns[at % 2].multiselect(
                run_filters.FIELDS[name][0], found[name], key=name, bind="query-params"
            )
        text = st.text_input(
            "Numbers",
            key=NUMBERS,
            bind="query-params",
            placeholder="accuracy>0.5 learning_rate<=0.001",
            help=f"All must hold. Fields: {', '.join(run_filters.NUMBERS)}.",
        )
        try:
            numbers = run_filters.conditions(text or "")
        except ConfigError as error:
            st.error(formatting.markdown(str(error)), icon=":material/error:")
            numbers = []
    return run_filters.fitting(infos, chosen, numbers)


def _paged(infos: list[RunInfo]) -> list[RunInfo]:
    pages = -(-len(infos) // PAGE_ROWS)
    if pages <= 1:
        return infos
    number = st.pagination(pages, key="home_page")
    return infos[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]


def _counted(place: st.delta_generator.DeltaGenerator, matching: list[RunInfo], of: int) -> bool:
    """How many match, what they are as a file, and whether actions are for all of them."""
    with place:
        st.markdown(f"{formatting.count(len(matching))} of {formatting.count(of)} match")
        if len(matching) < of:
            st.button("Clear", icon=":material/filter_alt_off:", key="clear", on_click=_clear)
        if not matching:
            return False
        st.download_button(
            "CSV",
            lambda: runs_csv.text(matching),
            file_name="initscope-runs.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            key="csv",
            help="The runs that match, with their whole configuration",
        )
        return len(matching) > 1 and st.checkbox(
            f"Choose all {formatting.count(len(matching))}", key=f"all_{hash(tuple(i.run for i in matching))}"
        )


def _clear() -> None:
    st.session_state["search"] = ""
    st.session_state["sweep_filter"] = "All runs"
    st.session_state[NUMBERS] = ""
    for name in run_filters.FIELDS:
        st.session_state[name] = []


def _table(infos: list[RunInfo]) -> list[str]:
    """All runs as a table; returns the ids of the chosen rows. Rows are remembered by id: a new run moves no
    choice.
    """
    ids = [info.run for info in infos]
    remembered = [run for run in st.session_state.get("home_chosen", []) if run in ids]
    frame = pd.DataFrame(
        {
            "Name": [info.name for info in infos],
            **(
                {}
                if all(info.init == RECORDED for info in infos)
                else {"Initialization": [_begins(info) for info in infos]}
            ),
            "Outcome": [theme.outcome_mark(info.outcome, info.status).text for info in infos],
            **(
                {"Ended by": [info.error or "" for info in infos]}
                if any(info.error for info in infos)
                else {}
            ),
            "Loss": pd.Series([info.scores[0] for info in infos], dtype="float64"),
            "Accuracy": pd.Series([info.scores[1] for info in infos], dtype="float64"),
            "Loss over time": [_sparkline(info) for info in infos],
            **({"Tags": [list(info.tags) for info in infos]} if any(info.tags for info in infos) else {}),
            "Age": pd.to_datetime([info.created for info in infos], unit="s", utc=True),
        }
    )
    event = st.dataframe(
        frame,
        key="runs_" + str(hash(tuple(ids))),
        on_select="rerun",
        selection_mode="multi-row",
        placeholder="–",
        selection_default={"selection": {"rows": [ids.index(run) for run in remembered]}},
        hide_index=True,
        column_config={
            "Name": st.column_config.TextColumn(width=205),
            "Ended by": st.column_config.TextColumn(
                width=160, help="What ended a run that failed or crashed"
            ),
            "Loss": st.column_config.NumberColumn(width=70, help=SCORES, format="%.4g"),
            "Accuracy": st.column_config.NumberColumn(width=75, help=SCORES, format="percent"),
            "Age": st.column_config.DatetimeColumn(
                width=110, format="distance", help="When the run was made"
            ),
            "Loss over time": st.column_config.LineChartColumn(
                help="Training loss from the first step to the last", y_min=0, width=110
            ),
            "Tags": st.column_config.ListColumn(width=120),
        },
        alt="All runs, newest first: name, initialization, outcome, loss, accuracy and age",
    )
    chosen = [ids[row] for row in event.selection.rows if row < len(ids)]
    st.session_state["home_chosen"] = chosen
    return chosen


def _begins(info: RunInfo) -> str:
    """How the weights begin, as far as that is known."""
    return "own loop" if info.init == RECORDED else init_title(info.init)


def _sparkline(info: RunInfo) -> list[float]:
    """The losses that are numbers: over one NaN the table would draw none, and show an error."""
    curve = info.state.get("curve")
    return (
        [value for value in curve if isinstance(value, (int, float)) and math.isfinite(value)]
        if isinstance(curve, list)
        else []
    )


def _actions(chosen: list[RunInfo]) -> None:
    """What can be done with the chosen runs."""
    if not chosen:
        st.caption("Choose one run to open it, two to compare them.")
        return
    ids = [info.run for info in chosen]
    with st.container(horizontal=True, vertical_alignment="center"):
        if len(chosen) > 1:
            st.markdown(f"**{formatting.count(len(chosen))} runs:**")
        if len(chosen) <= selection.MOST and st.button("Watch", icon=":material/show_chart:", key="watch"):
            st.switch_page("screens/live.py", query_params={"run": ids})
        if len(chosen) == 1 and st.button("Gradients", icon=":material/grid_on:", key="gradients"):
            st.switch_page("screens/gradients.py", query_params={"run": ids[0]})
        if len(chosen) == 1 and st.button("Diagnose", icon=":material/stethoscope:", key="diagnose"):
            st.switch_page("screens/diagnosis.py", query_params={"run": ids[0]})
        if len(chosen) == 2 and st.button(
            "Compare", icon=":material/compare:", type="primary", key="compare"
        ):
            older, newer = sorted(chosen, key=lambda info: (info.outcome == "converged", info.created))
            st.switch_page("screens/compare.py", query_params={"a": older.run, "b": newer.run})
        if not access.may_change():
            return
        if len(chosen) == 1 and st.button("Rename, tag or note", icon=":material/edit:", key="edit"):
            run_actions.edit_dialog(chosen[0])
        if len(chosen) > 1 and st.button("Tag", icon=":material/sell:", key="tag"):
            run_actions.tag_dialog(chosen)
        if len(chosen) > 1 and any(info.live for info in chosen):
            st.button(
                "Stop",
                icon=":material/stop_circle:",
                key="stop",
                on_click=run_actions.stop_all,
                args=([info.run for info in chosen if info.live],),
            )
        if all(info.status in (Status.STOPPED, Status.FAILED, Status.CRASHED) for info in chosen):
            st.button(
                "Resume", icon=":material/resume:", key="resume", on_click=run_actions.resume, args=(ids,)
            )
        if st.button("Delete", icon=":material/delete:", key="delete"):
            run_actions.delete_dialog(chosen)
    if len(chosen) == 1 and (notes := loaders.notes(ids[0])):
        st.text(notes)


def _unreadable(infos: list[RunInfo]) -> None:
    for info in infos:
        if info.status == "unreadable":
            st.warning(
                f"{formatting.markdown(info.run)}: {formatting.markdown(info.error or '')}",
                icon=":material/warning:",
            )


page()
