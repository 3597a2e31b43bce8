"""Sweep: did the change fix it, or was it luck? Initializations over seeds, with intervals."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import streamlit as st

from initscope.comparison import network_study, survival, sweep
from initscope.comparison.compare import Comparison
from initscope.comparison.statistics import p_text, wilson
from initscope.config import catalog
from initscope.config.run_config import OPTIONS, PRESETS, preset
from initscope.store import RunInfo
from initscope.theory import trainability
from initscope_dashboard import loaders
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.figures import bands, rates
from initscope_dashboard.figures import survival as survival_figure
from initscope_dashboard.figures import trainability as maps
from initscope_dashboard.server import access
from initscope_dashboard.widgets import launch_form, seed_sweep, tab
from initscope_dashboard.widgets.plot import plot


def page() -> None:
    infos = loaders.listing()
    names = sweep.names(infos)
    above = st.container()
    if access.may_change():
        with st.expander("Launch a sweep", expanded=not names, icon=":material/play_arrow:"):
            _launcher()
    if not names:
        above.title("Was it luck?", anchor=False)
        above.markdown(
            "One run can be lucky. A sweep trains each initialization with several seeds and says how sure "
            "the answer is. There is none yet: launch one."
        )
        return
    name = _choose(names)
    tab.title("Sweep", name)
    members = sweep.members(infos, name)
    if network_study.over_networks(members):
        above.title(formatting.heading(network_study.sentence(network_study.rows(members))), anchor=False)
        above.page_link(
            "screens/depth.py",
            label="Network by network",
            icon=":material/stacks:",
            query_params={"depth_sweep": name},
        )
        return
    fields = _varied(members)
    everybody, members = (
        members,
        [info for info in members if all(info.config.get(field) is not None for field in fields)],
    )
    if not members:
        fields, members = [], everybody
    elif len(members) < len(
        everybody
    ):  # "auto" has no place on an axis; a damaged folder may not say it at all
        st.caption(
            f"{len(everybody) - len(members)} of {len(everybody)} runs have no number for "
            f"{' or '.join(map(trainability.title, fields))} and are left out."
        )
    rows = sweep.table(members, ("init", *fields))
    drawn = _maps(members, rows, fields) if fields else []
    with above:
        _sentence(members, rows, name, drawn)
    if drawn:
        _draw(drawn)
    else:
        _seeds(members, rows)
    with st.expander("Numbers"):
        _numbers(rows, fields)


def _choose(names: list[str]) -> str:
    """The sweep shown; the address bar holds it."""
    linked = st.query_params.get("sweep")
    if "sweep_name" not in st.session_state and linked in names:
        st.session_state["sweep_name"] = linked
    name = st.selectbox("Sweep", names, key="sweep_name") if len(names) > 1 else names[0]
    st.query_params["sweep"] = name
    return name


def _varied(members: list[RunInfo]) -> list[str]:
    """Fields besides initialization and seed that take several values in this sweep."""
    fields = dict.fromkeys("model" if name == "depth" else name for name in sweep.SWEEPABLE)

    def values(field: str) -> set[str]:
        found = [info.config.get(field) for info in members]
        return {repr(value) for value in found if value is not None or OPTIONS[field].optional}

    return [field for field in fields if len(values(field)) > 1][:2]


class Map(NamedTuple):
    """One trainability map: the plane of two fields, for one initialization unless that is one of them."""

    init: str
    rows: list[dict]
    x: str
    y: str
    theory: trainability.TheoryMap | None

    @property
    def sentence(self) -> str:
        return trainability.sentence(
            self.rows, self.x, self.y, self.theory, catalog.init_title(self.init) if self.init else ""
        )


def _maps(members: list[RunInfo], rows: list[dict], fields: list[str]) -> list[Map]:
    """A map for each initialization; with one field, initializations are the other axis. The network is drawn
    upwards.
    """
    if len(fields) == 1:
        return [Map("", rows, fields[0], "init", loaders.theory(members, fields[0], "init"))]
    x, y = fields if fields[0] != "model" else (fields[1], fields[0])
    inits = dict.fromkeys(row["init"] for row in rows)
    return [
        Map(
            init,
            [row for row in rows if row["init"] == init],
            x,
            y,
            loaders.theory([run for run in members if run.init == init], x, y),
        )
        for init in inits
    ]


def _sentence(members: list[RunInfo], rows: list[dict], name: str, drawn: list[Map]) -> None:
    """The verdict of the best initialization against the worst, or what the map shows; and how far the sweep
    has come.
    """
    live = [info for info in members if info.live]
    pair = _extremes(rows)
    if pair and len(rows) == len({row["init"] for row in rows}):
        result = loaders.comparison(*[f"init={init},sweep={name}" for init in pair], members[::-1])
        st.title(
            f"{theme.VERDICTS[result.verdict].shape} {formatting.heading(headlines.comparison(result))}",
            anchor=False,
        )
        _how_sure(result)
        _as_counted(rows, pair, result)
        st.page_link(
            "screens/compare.py",
            label="Compare these two",
            icon=":material/compare:",
            query_params={"a": f"init={pair[0]},sweep={name}", "b": f"init={pair[1]},sweep={name}"},
        )
    else:
        counted = sweep.best_against_rest(
            [{**row, "init": catalog.init_title(row["init"])} for row in sweep.table(members)]
        )
        st.title(formatting.markdown(drawn[0].sentence if len(drawn) == 1 else counted), anchor=False)
        if len(drawn) == 1:
            st.caption(
                formatting.markdown(
                    f"{counted} Each cell: how many of its seeds converged. The line: where theory, asked "
                    "before any training, sees it begin or end."
                )
            )
    if live:
        _progress(members)


def _as_counted(rows: list[dict], pair: tuple[str, str], result: Comparison) -> None:
    """Put the comparison's counts into the rows of its two sides, so that chart, table and headline say one
    number: a comparison counts a run that is slower than all of the other side's as not converged.
    """
    for init, side in zip(pair, "ab", strict=True):
        row = next(row for row in rows if row["init"] == init)
        converged, told = result.converged[side]
        low, high = wilson(converged, told)
        undecided = max(0, row["undecided"] - (told - row["runs"]))
        row |= {"converged": converged, "runs": told, "low": low, "high": high, "undecided": undecided}


def _progress(members: list[RunInfo]) -> None:
    """How far the sweep is and how long it will take; the sidebar reloads the page whenever a run has
    ended.
    """
    ended = [info for info in members if not info.live]
    share, left = sweep.underway(members)
    st.progress(
        share,
        text=f"{len(ended)} of {len(members)} runs have ended"
        + (f" · {formatting.duration(left)} left" if left else ""),
    )


def _extremes(rows: list[dict]) -> tuple[str, str] | None:
    """(worst, best) initialization by rate; PyTorch's default stands for the worst where it is as bad."""
    told = [row for row in rows if row["runs"]]
    if len({row["init"] for row in told}) < 2:
        return None
    worst = min(told, key=lambda row: (row["converged"] / row["runs"], row["init"] != "default"))
    best = max(
        told, key=lambda row: (row["converged"] / row["runs"], row["runs"], row["init"] == "kaiming_normal")
    )
    return (worst["init"], best["init"]) if worst["init"] != best["init"] else None


def _how_sure(result: Comparison) -> None:
    low, high = result.interval
    st.caption(
        f"Difference in convergence rate {formatting.change(low)} to {formatting.change(high)} (95 % "
        f"interval, Newcombe); Fisher's exact test {p_text(result.p_value)}; "
        f"effect size h = {result.effect:.2f}."
    )


def _seeds(members: list[RunInfo], rows: list[dict]) -> None:
    plot(
        rates.rates([{**row, "label": catalog.init_title(row["init"])} for row in rows]),
        key="rates",
        alt="Share of runs that converged for each initialization, with 95 % intervals",
    )
    _leaving(members)
    inits = list(dict.fromkeys(info.init for info in members))
    groups = {
        init: list(loaders.frames([i.run for i in members if i.init == init], "steps").values())
        for init in inits
    }
    classes = headlines.common_classes(members)
    left, right = st.columns(2)
    with left:
        plot(
            bands.bands(groups, "loss", classes=classes),
            key="band_loss",
            alt="Training loss over seeds: median and range for each initialization",
        )
    with right:
        plot(
            bands.bands(groups, "accuracy", classes=classes),
            key="band_accuracy",
            alt="Training accuracy over seeds: median and range",
        )


def _leaving(members: list[RunInfo]) -> None:
    """When the seeds leave chance, if ever: what a count at the end does not tell."""
    curves = loaders.left_chance(members)
    words = survival.sentence({catalog.init_title(init): curve for init, curve in curves.items()})
    plot(survival_figure.survival(curves), key="left_chance", alt=f"{survival_figure.TITLE}. {words}")
    if curves:
        st.caption(
            f"{formatting.markdown(words)} A seed has left chance once the mean training accuracy of "
            f"{survival.WINDOW} batches is clearly above guessing. A tick: a run was watched no longer and "
            "had not left. Kaplan and Meier's estimate, pointwise."
        )


def _draw(drawn: list[Map]) -> None:
    for one in drawn:
        name = catalog.init_title(one.init)
        if len(drawn) > 1:
            st.markdown(formatting.markdown(one.sentence))
        plot(
            maps.trainability(
                one.rows,
                one.x,
                one.y,
                heading=f"{name}: share of seeds that converged" if one.init else "",
                theory=one.theory,
            ),
            key=f"map_{one.init}",
            alt=one.sentence,
        )


def _numbers(rows: list[dict], fields: list[str]) -> None:
    frame = pd.DataFrame(
        {
            "Initialization": [catalog.init_title(row["init"]) for row in rows],
            **{
                trainability.title(field): [trainability.shown(field, row[field]) for row in rows]
                for field in fields
            },
            "Converged": [f"{row['converged']} of {row['runs']}" for row in rows],
            "95 % interval": [formatting.interval(row["low"], row["high"]) for row in rows],
            "Undecided": [row["undecided"] for row in rows],
            "Live": [row["live"] for row in rows],
        }
    )
    st.dataframe(frame, hide_index=True, alt="Convergence counts of every cell of the sweep")


def _launcher() -> None:
    """Initializations, seeds and up to two numeric axes over a preset."""
    with st.form("sweep_form", border=False, enter_to_submit=False):
        base_name = st.selectbox(
            "Preset", list(PRESETS), format_func=lambda name: launch_form.PRESET_TITLES.get(name, name)
        )
        inits = st.multiselect(
            "Initializations",
            list(catalog.INITS),
            default=list(launch_form.STORY),
            format_func=catalog.init_title,
        )
        left, right = st.columns(2)
        seeds = left.number_input("Seeds for each", 1, 1000, 5)
        vary = right.text_input(
            "Also vary",
            placeholder="gain=0.5,1,2  depth=11,16",
            help="At most two of these, with a space between: " + ", ".join(sweep.SWEEPABLE) + ".",
        )
        if st.form_submit_button("Launch the sweep", type="primary"):
            launched = seed_sweep.begin(preset(base_name), inits, int(seeds), vary)
            if launched is not None:
                st.toast(
                    f"{launched} runs queued" if launched else "All of these runs are there already",
                    icon=":material/check:",
                )
                st.rerun()


page()
