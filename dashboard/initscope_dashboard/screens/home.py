"""Home: what this is, the story in one click, and every run there is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from initscope.config.catalog import init_title
from initscope.errors import ConfigError, InitScopeError
from initscope.schema import Status
from initscope.store import RECORDED, RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.browser import theme
from initscope_dashboard.content import (
    comparison_choices,
    formatting,
    headlines,
    run_columns,
    run_filters,
    runs_csv,
)
from initscope_dashboard.server import access
from initscope_dashboard.widgets import empty_state, run_actions, seed_sweep, selection

PAGE_ROWS = 200
NUMBERS = "numbers"
NO_GROUPS = "No groups"
SCORES = (
    "Of the validation images once an epoch is over; before that, and where the loss is no number any more, "
    "of the last batch"
)


def page() -> None:
    everything = loaders.everything()
    infos = [info for info in everything if not info.hidden]
    _answer(infos)
    if not everything:
        _first_time()
        return
    infos = _archived_or_not(everything)
    matching = _filtered(infos)
    columns, group_by = _shape(infos)
    if group_by:
        counted = st.container(horizontal=True, vertical_alignment="center")
        groups = run_columns.grouped(matching, group_by)
        found = _group_table(groups, group_by)
        all_of_them = _counted(counted, matching, len(infos))
        _compare_groups(group_by, found, infos)
        members = [info for group in found for info in group.members]
        _actions(
            matching if all_of_them else list({info.run: info for info in members}.values()),
            "Choose groups to compare them, or to do something with all their runs.",
        )
    else:
        shown, counted = _paged(matching), st.container(horizontal=True, vertical_alignment="center")
        chosen = _table(shown, columns)
        all_of_them = _counted(counted, matching, len(infos))
        _actions(
            matching if all_of_them else [info for info in shown if info.run in chosen],
            "Choose one run to open it, two or more to compare them.",
        )
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


def _archived_or_not(everything: list[RunInfo]) -> list[RunInfo]:
    """The runs that are not archived, or the archived ones; the address says which."""
    hidden = [info for info in everything if info.hidden]
    if not hidden and "archived" not in st.query_params:
        return everything
    archived = st.toggle(
        "Show the archived runs",
        key="archived",
        bind="query-params",
        help="Archived runs are hidden from every page, and nothing of them is deleted. Restore them here.",
    )
    return [info for info in everything if info.hidden == archived]


def _shape(infos: list[RunInfo]) -> tuple[list[str], str]:
    """The columns to show, in the order in which they were chosen, and the field to group by (or none); both
    are in the address.
    """
    titles, fields = run_columns.titles(infos), run_columns.groupable(infos)
    asked = any(name in st.query_params for name in ("columns", "group"))
    with st.expander(
        "Columns and groups",
        icon=":material/view_column:",
        expanded=st.session_state.setdefault("shape_open", asked),
    ):
        left, right = st.columns(2)
        columns = left.multiselect(
            "Columns",
            list(titles),
            key="columns",
            bind="query-params",
            format_func=run_columns.title,
            placeholder="The standard columns",
            help="Shown in the order in which they are chosen. Any field of the configuration is a column.",
        )
        group_by = right.selectbox(
            "Group by",
            [NO_GROUPS, *fields],
            key="group",
            bind="query-params",
            format_func=lambda name: fields.get(name, name),
            help="One row a value, with what became of its runs. Fields in which the runs differ.",
        )
    return columns, "" if group_by in (None, NO_GROUPS) else group_by


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


def _group_table(groups: list[run_columns.Group], field: str) -> list[run_columns.Group]:
    """One row a group with what became of its runs; returns the chosen groups."""
    title = run_columns.title(field)
    st.markdown(formatting.markdown(run_columns.sentence(title, groups)))
    frame = pd.DataFrame(
        {
            title: run_columns.typed(field, [group.value for group in groups]),
            "Runs": [len(group.members) for group in groups],
            "Converged": pd.Series([run_columns.share(group) for group in groups], dtype="float64"),
            **run_columns.outcome_columns(groups),
            "Median loss": pd.Series([group.median(0) for group in groups], dtype="float64"),
            "Median accuracy": pd.Series([group.median(1) for group in groups], dtype="float64"),
        }
    )
    event = st.dataframe(
        frame,
        key="groups_" + str(hash((title, tuple(group.title for group in groups)))),
        on_select="rerun",
        selection_mode="multi-row",
        placeholder="–",
        hide_index=True,
        column_config={
            title: st.column_config.Column(width=205),
            "Converged": st.column_config.NumberColumn(
                format="percent",
                help="Of the runs that are decided: live, failed and undecided ones left out",
            ),
            "Median loss": st.column_config.NumberColumn(format="%.4g", help=SCORES),
            "Median accuracy": st.column_config.NumberColumn(format="percent", help=SCORES),
        },
        alt=f"Runs grouped by {title.lower()}: number of runs, outcomes, median loss and accuracy",
    )
    return [groups[row] for row in event.selection.rows if row < len(groups)]


def _compare_groups(field: str, chosen: list[run_columns.Group], infos: list[RunInfo]) -> None:
    """A button that compares the chosen groups, where a selection names exactly their runs."""
    if len(chosen) < 2:
        return
    sides = [_side_of(field, group, infos) for group in chosen]
    if None in sides:
        st.caption(
            "These groups cannot be compared as they are: a filter leaves out some of their runs, or the "
            "field is none of the configuration."
        )
        return
    if st.button(
        f"Compare {len(chosen)} groups", icon=":material/compare:", type="primary", key="compare_groups"
    ):
        a, b, *more = [side for side in sides if side]
        st.switch_page(
            "screens/compare.py", query_params={"a": a, "b": b, **({"more": more} if more else {})}
        )


def _side_of(field: str, group: run_columns.Group, infos: list[RunInfo]) -> str | None:
    """The selection that names exactly the group's runs; None if none does."""
    if len(group.members) == 1:
        return group.members[0].run
    wanted, base = {info.run for info in group.members}, run_columns.selection(field, group)
    sweeps = {str(info.config.get("sweep") or "") for info in group.members}
    for side in (base, *(f"{base},sweep={sweep}" for sweep in sweeps if sweep and len(sweeps) == 1)):
        with contextlib.suppress(InitScopeError):  # a value that no selection can name
            if base and {run.id for run in loaders.runs().select(side, infos)} == wanted:
                return side
    return None


def _table(infos: list[RunInfo], columns: list[str]) -> list[str]:
    """All runs as a table; returns the ids of the chosen rows. Rows are remembered by id: a new run moves no
    choice.
    """
    ids = [info.run for info in infos]
    remembered = [run for run in st.session_state.get("home_chosen", []) if run in ids]
    frame = _frame(infos, columns or _standard(infos))
    event = st.dataframe(
        frame,
        key="runs_" + str(hash((*ids, *columns))),
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


def _standard(infos: list[RunInfo]) -> list[str]:
    """The standard columns without those that say nothing of these runs."""
    empty = {
        "init": all(info.init == RECORDED for info in infos),
        "error": not any(info.error for info in infos),
        "tags": not any(info.tags for info in infos),
    }
    return [name for name in run_columns.STANDARD if not empty.get(name)]


def _frame(infos: list[RunInfo], columns: list[str]) -> pd.DataFrame:
    """The table of runs, one column for each name of ``run_columns.titles``."""
    special: dict[str, Callable[[], Any]] = {
        "name": lambda: [info.name for info in infos],
        "init": lambda: [_begins(info) for info in infos],
        "outcome": lambda: [theme.outcome_mark(info.outcome, info.status).text for info in infos],
        "error": lambda: [info.error or "" for info in infos],
        "loss": lambda: pd.Series([info.scores[0] for info in infos], dtype="float64"),
        "accuracy": lambda: pd.Series([info.scores[1] for info in infos], dtype="float64"),
        "curve": lambda: [_sparkline(info) for info in infos],
        "tags": lambda: [list(info.tags) for info in infos],
        "age": lambda: pd.to_datetime([info.created for info in infos], unit="s", utc=True),
    }
    return pd.DataFrame(
        {
            run_columns.title(name): special[name]() if name in special else run_columns.cells(infos, name)
            for name in columns
        }
    )


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


def _actions(chosen: list[RunInfo], without: str) -> None:
    """What can be done with the chosen runs; ``without`` any, how to choose."""
    if not chosen:
        st.caption(without)
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
        if 2 <= len(chosen) <= selection.MOST and st.button(
            "Compare", icon=":material/compare:", type="primary", key="compare"
        ):
            a, b, *more = sorted(chosen, key=lambda info: (info.outcome == "converged", info.created))
            sides = {"a": a.run, "b": b.run, **({"more": [info.run for info in more]} if more else {})}
            st.switch_page("screens/compare.py", query_params=sides)
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
        run_actions.archive_button(chosen)
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
