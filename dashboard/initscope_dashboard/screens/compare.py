"""Compare: did changing it fix it? The verdict, then the pictures that prove it, then what differs."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from initscope.comparison import differences
from initscope.comparison.compare import BY_NAME, Comparison, pair_layers
from initscope.comparison.statistics import p_text
from initscope.config.catalog import init_title
from initscope.errors import InitScopeError, RunFolderError
from initscope.schema import COLUMN, Verdict
from initscope.store import RunInfo
from initscope.store.layer_names import layer_names
from initscope_dashboard import loaders
from initscope_dashboard.browser import theme
from initscope_dashboard.content import comparison_choices, formatting, headlines, several
from initscope_dashboard.figures import bands, base, curves, depth, heatmap, ratio, rows
from initscope_dashboard.widgets import empty_state, layer_view, seed_sweep, selection, snippet, tab
from initscope_dashboard.widgets.plot import plot

SIDES = ("a", "b", "more")
"""Parameters of the address that name runs or groups."""
METRICS = ("grad_norm", "grad_rms", "update_ratio", "signal_std", "activation_grad_rms")


def page() -> None:
    listed = loaders.listing()
    choices = comparison_choices.choices(listed)
    if len(choices) < 2:
        empty_state.nothing_yet("Did changing it fix it?", "There are not two runs to compare yet.")
        return
    above = st.container()
    if gone := [
        side
        for name in SIDES
        for side in st.query_params.get_all(name)
        if side not in choices and not _selects(side, listed)
    ]:
        with above:
            selection.not_here(gone)
        _drop_gone(gone)
    choices = {
        **choices,
        **{side: side for name in SIDES for side in st.query_params.get_all(name) if side not in choices},
    }
    a, b = _choose(choices, comparison_choices.suggested_pair(listed))
    if more := _more(choices, (a, b)):
        _several(above, {side: choices[side] for side in (a, b, *more)}, listed)
        return
    try:
        result = loaders.comparison(a, b, listed)
    except InitScopeError as error:
        above.error(formatting.markdown(str(error)))
        return
    tab.title("Compare", " against ".join(map(init_title, result.labels)))
    with above:
        _verdict(result)
    try:
        _pictures(result)
    except RunFolderError as error:  # damage in a table that the verdict does not ask
        st.error(formatting.markdown(str(error)), icon=":material/error:")
    _differences(result)


def _selects(side: str, listed: list[RunInfo]) -> bool:
    """Whether a selection that is not in the list (several fields, as on the command line) names runs all the
    same.
    """
    try:
        return "=" in side and bool(loaders.runs().select(side, listed))
    except InitScopeError:
        return False


def _drop_gone(gone: list[str]) -> None:
    """Of A and B both, so that the suggestion is shown instead; of more sides those that are gone."""
    st.query_params["more"] = [side for side in st.query_params.get_all("more") if side not in gone]
    if any(st.query_params.get(name) in gone for name in ("a", "b")):
        for name in SIDES:
            st.query_params.pop(name, None)


def _choose(titles: dict[str, str], suggested: tuple[str, str]) -> tuple[str, str]:
    """The two sides; the address bar holds them, so a link opens the same comparison."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        a = _side("A", "a", titles, suggested[0])
        st.button("Swap", icon=":material/swap_horiz:", on_click=_swap, key="swap", help="Exchange A and B")
        b = _side("B", "b", titles, suggested[1])
    return a, b


def _side(label: str, parameter: str, titles: dict[str, str], suggested: str) -> str:
    key = f"compare_{parameter}"
    linked = st.query_params.get(parameter)
    if linked and linked != st.session_state.get(f"{key}_linked"):
        st.session_state[key] = st.session_state[f"{key}_linked"] = linked
    if st.session_state.get(key) not in titles:
        st.session_state[key] = linked if linked in titles else suggested
    chosen = st.selectbox(label, list(titles), key=key, format_func=lambda option: titles[option])
    st.session_state[f"{key}_linked"] = chosen
    st.query_params[parameter] = chosen
    return chosen


def _swap() -> None:
    a, b = st.session_state["compare_a"], st.session_state["compare_b"]
    for key, value in (("compare_a", b), ("compare_b", a)):
        st.session_state[key] = st.session_state[f"{key}_linked"] = value
    st.query_params.update({"a": b, "b": a})


def _more(titles: dict[str, str], pair: tuple[str, str]) -> list[str]:
    """Sides beside A and B; the address holds them, too."""
    linked = st.query_params.get_all("more")
    if linked != st.session_state.get("compare_more_linked"):
        st.session_state["compare_more"] = linked
    there = [side for side in titles if side not in pair]
    st.session_state["compare_more"] = [
        side for side in st.session_state.get("compare_more", []) if side in there
    ][: selection.MOST - 2]
    chosen = st.multiselect(
        "And",
        there,
        key="compare_more",
        format_func=lambda option: titles[option],
        max_selections=selection.MOST - 2,
        placeholder="More runs or groups, all in one picture",
    )
    st.session_state["compare_more_linked"] = chosen
    st.query_params["more"] = chosen
    return chosen


def _several(above: st.delta_generator.DeltaGenerator, titles: dict[str, str], listed: list[RunInfo]) -> None:
    """Three sides and more: what became of each, their curves in one picture, and what differs."""
    runs = loaders.runs()
    try:
        chosen = {side: loaders.listed(run.id for run in runs.select(side, listed)) for side in titles}
    except InitScopeError as error:
        above.error(formatting.markdown(str(error)))
        return
    sides = several.sides(chosen, titles)
    tab.title("Compare", f"{len(sides)} sides")
    with above:
        st.title(formatting.heading(several.sentence(sides)), anchor=False)
        for note in several.notes(sides):
            st.caption(formatting.markdown(note))
    _curves({side.label: list(side.members) for side in sides})
    st.dataframe(
        pd.DataFrame(several.table(sides)),
        hide_index=True,
        placeholder="–",
        column_config={
            "Rate": st.column_config.NumberColumn(format="percent", help="Converged of those decided"),
            "Median loss": st.column_config.NumberColumn(format="%.4g"),
            "Median accuracy": st.column_config.NumberColumn(format="percent"),
        },
        alt="What became of each side: outcomes, rate with its 95 % interval, loss and accuracy",
    )
    st.header("What differs", anchor=False)
    if not (differ := several.differing(sides)):
        st.markdown(headlines.nothing_differs([info for side in sides for info in side.members]))
        return
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Field": differences.title(field),
                    **{
                        init_title(side.label): _shown(field, value)
                        for side, value in zip(sides, values, strict=True)
                    },
                }
                for field, values in differ.items()
            ]
        ),
        hide_index=True,
        alt="Configuration fields that differ between the sides",
    )


def _verdict(result: Comparison) -> None:
    mark = theme.VERDICTS[result.verdict]
    st.title(f"{mark.shape} {formatting.heading(headlines.comparison(result))}", anchor=False)
    if evidence := _evidence(result):
        st.markdown(evidence)
    if result.warning:
        st.warning(formatting.markdown(result.warning), icon=":material/balance:")
    seed_sweep.button(result, key="compare_luck")
    if result.verdict == Verdict.FIXED and result.fair:
        snippet.of_change(result)
    (ka, na), (kb, nb) = result.converged["a"], result.converged["b"]
    low, high = result.interval
    if na + nb > 2:
        st.caption(
            "Difference in convergence rate, B less A: "
            f"{formatting.change(kb / max(nb, 1) - ka / max(na, 1))} (95 % interval "
            f"{formatting.change(low)} to {formatting.change(high)}); "
            f"Fisher's exact test {p_text(result.p_value)}; effect size h = {result.effect:.2f}."
        )


def _evidence(result: Comparison) -> str:
    """What the gradients say, in one sentence: the layer whose first-step gradient differs most."""
    told = [row for row in result.layers if row["log10_grad_ratio"] is not None]
    if not told:
        return ""
    most, last = max(told, key=lambda row: abs(row["log10_grad_ratio"])), told[-1]
    by_depth = any("layer_b" in row for row in result.layers)
    how = (
        " The networks have different layers: each is compared with the one as far along in the other, by "
        "relative depth."
        if by_depth
        else ""
    )
    if most is last:
        return (
            f"At the first step the gradient at {_where(last)}, the last layer, is "
            f"{formatting.decades(last['log10_grad_ratio'])} in B.{how}"
        )
    return (
        f"At the first step the gradient at {_where(most)} is "
        f"{formatting.decades(most['log10_grad_ratio'])} in B; "
        f"at {_where(last)}, the last layer, it is {formatting.decades(last['log10_grad_ratio'])}.{how}"
    )


def _where(row: dict) -> str:
    return formatting.markdown(row["called"])


def _pictures(result: Comparison) -> None:
    side_a, side_b = loaders.listed(result.runs["a"]), loaders.listed(result.runs["b"])
    if not side_a or not side_b:
        return
    one_a, one_b = side_a[0], side_b[0]
    metric = st.segmented_control(
        "What the heatmaps show",
        METRICS,
        default="grad_norm",
        key="compare_metric",
        bind="query-params",
        format_func=lambda name: COLUMN[name].title,
        required=True,
    )
    cells = [loaders.cells(one_a.run, metric), loaders.cells(one_b.run, metric)]
    _, how = pair_layers(*[each.layers if each is not None else [] for each in cells])
    same = how == BY_NAME
    third = (
        "the third is their ratio, layer by layer"
        if same
        else "their layers are different ones, so there is no map of their ratio"
    )
    st.caption(f"{COLUMN[metric].help}. Both heatmaps share one colour scale; {third}.")
    if len(side_a) + len(side_b) > 2:
        st.caption(
            f"The heatmaps show one run of each side: {formatting.markdown(one_a.name)} and "
            f"{formatting.markdown(one_b.name)}."
        )
    # Networks of different layers have rows of their own: one list of names for both would leave the smaller
    # one a sliver.
    chosen = (
        [layer_view.layer_view(cells, "compare")] * 2
        if same
        else [
            layer_view.layer_view([each], f"compare-{side}") for each, side in zip(cells, "ab", strict=True)
        ]
    )
    change = rows.arranged(ratio.ratio_data(*cells), chosen[0]) if same else None
    cells = [rows.arranged(each, view) for each, view in zip(cells, chosen, strict=True)]
    limits = heatmap.shared_limits(cells)
    left, right = st.columns(2)
    for column, who, side, info in ((left, cells[0], "A", one_a), (right, cells[1], "B", one_b)):
        with column:
            title = f"{side} · {info.name}"
            plot(
                heatmap.heatmap(
                    rows.named(who, layer_names(who.layers, info.state)) if who is not None else None,
                    title=title,
                    limits=limits,
                ),
                key=f"heatmap_{side}",
                alt=f"{COLUMN[metric].title} of every layer over the steps of {title}",
            )
    if same:
        plot(
            ratio.ratio(
                rows.named(change, layer_names(change.layers, one_a.state)) if change is not None else None,
                title=f"B over A · {COLUMN[metric].title}",
            ),
            key="ratio",
            alt="Log ratio of B to A for every layer and step",
        )
    _curves(dict(zip(result.labels, (side_a, side_b), strict=False)))
    plot(
        depth.depth(
            [base.subject(one_a), base.subject(one_b)],
            loaders.first_layers([one_a.run, one_b.run], metric),
            metric,
            relative=not same,
        ),
        key="depth",
        alt=f"{COLUMN[metric].title} of every layer at the first step, both runs",
    )


def _curves(sides_by_label: dict[str, list[RunInfo]]) -> None:
    infos = [info for side in sides_by_label.values() for info in side]
    subjects = [base.subject(info) for info in infos]
    steps = {info.run: loaders.frame(info.run, "steps") for info in infos}
    epochs = {info.run: loaders.frame(info.run, "epochs") for info in infos}
    classes = headlines.common_classes(infos)
    live = [info.run for info in infos if info.live]
    left, right = st.columns(2)
    if len(infos) > 4:  # lines could not be told apart: median and range of each side
        groups = {label: [steps[info.run] for info in side] for label, side in sides_by_label.items()}
        for column, name in ((left, "loss"), (right, "accuracy")):
            with column:
                plot(
                    bands.bands(groups, name, classes=classes),
                    key=f"compare_{name}",
                    alt=f"{COLUMN[name].title} over seeds of both sides",
                )
        return
    for column, name in ((left, "loss"), (right, "accuracy")):
        with column:
            plot(
                curves.curves(subjects, steps, epochs, name, classes=classes),
                key=f"compare_{name}",
                alt=f"{COLUMN[name].title} of both sides over the steps",
                stream=live,
            )


def _differences(result: Comparison) -> None:
    st.header("What differs", anchor=False)
    if not result.changed_fields:
        st.markdown(headlines.nothing_differs(loaders.listed([*result.runs["a"], *result.runs["b"]])))
        return
    frame = pd.DataFrame(
        {
            "Field": [differences.title(field) for field in result.changed_fields],
            "A": [_shown(field, values[0]) for field, values in result.changed_fields.items()],
            "B": [_shown(field, values[1]) for field, values in result.changed_fields.items()],
        }
    )
    st.dataframe(frame, hide_index=True, alt="Configuration fields that differ between A and B")
    if any(field.startswith((differences.OWN, differences.RECORDED)) for field in result.changed_fields):
        st.caption(
            "What the loops told of their configuration, and what was recorded of them. What else was "
            "changed is not known here."
        )
    else:
        st.caption(
            "Every other field is the same, the order of the data included."
            if result.fair
            else "Every other field is the same."
        )


def _shown(field: str, value: object) -> str:
    if (
        isinstance(value, list)
        and field == "recorded.input_shape"
        and all(isinstance(size, int) for size in value)
    ):
        return " × ".join(map(str, value)) or "one number"
    if isinstance(value, int) and not isinstance(value, bool) and field == "recorded.parameters":
        return formatting.count(value)
    if isinstance(value, float):
        return formatting.number(value)
    if isinstance(value, list):
        return ", ".join(_shown(field, item) for item in value)
    return init_title(str(value)) if field == "init" else "–" if value is None else str(value)


page()
