"""Depth: does the story hold? Networks from LeNet-5 to ResNet-34, with PyTorch's weights and with
Kaiming's.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from initscope.comparison import network_study, sweep
from initscope.config import catalog
from initscope.config.run_config import RunConfig
from initscope.errors import InitScopeError
from initscope.scheduling import launcher
from initscope.schema import COLUMN
from initscope.store import RunInfo
from initscope_dashboard import loaders
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import networks, strips
from initscope_dashboard.server import access
from initscope_dashboard.widgets.plot import plot

METRICS = ("grad_norm", "grad_rms", "activation_grad_rms", "signal_std")


def page() -> None:
    infos = loaders.listing()
    names = network_study.sweeps(infos)
    above = st.container()
    if not names:
        above.title("Does the story hold?", anchor=False)
        above.markdown(
            "It says: LeNet and AlexNet train without care, VGG and GoogLeNet need initialization, ResNet "
            "solved depth. No networks have been run side by side yet."
        )
        _launcher("", [])
        return
    name = (
        st.selectbox("Networks", names, key="depth_sweep", bind="query-params")
        if len(names) > 1
        else names[0]
    )
    members = sweep.members(infos, name)
    rows = network_study.rows(members)
    with above:
        st.title(formatting.heading(network_study.sentence(rows)), anchor=False)
        _claims(rows)
        _progress(members)
    plot(
        networks.networks(rows),
        key="depth_rates",
        alt="Share of seeds that converged for each network and initialization, with 95 % intervals",
    )
    _by_depth(members, rows)
    with st.expander("Numbers"):
        _numbers(rows)
    _launcher(name, members)


def _claims(rows: list[dict]) -> None:
    """The story's three claims, each with its verdict and the counts behind it."""
    marks = {
        True: (theme.OUTCOMES["converged"], "holds"),
        False: (theme.OUTCOMES["not_converged"], "does not hold"),
        None: (theme.OUTCOMES["undecided"], "not decided yet"),
    }
    st.markdown(
        "\n".join(
            f"- :{marks[found.holds][0].badge}[{marks[found.holds][0].shape} {marks[found.holds][1]}] "
            f"**{found.claim}**: {formatting.markdown(found.text)}."
            for found in network_study.findings(rows)
        )
    )


def _progress(members: list[RunInfo]) -> None:
    live = [info for info in members if info.live]
    if live:
        share = sum(1.0 if not info.live else info.progress for info in members) / len(members)
        st.progress(share, text=f"{len(members) - len(live)} of {len(members)} runs have ended")


def _by_depth(members: list[RunInfo], rows: list[dict]) -> None:
    """A strip a network for each initialization, on one colour scale."""
    metric = st.segmented_control(
        "By depth, at the first step",
        METRICS,
        default=METRICS[0],
        required=True,
        key="depth_metric",
        format_func=lambda key: COLUMN[key].title,
    )
    st.caption(f"{COLUMN[metric].help}.")
    labels = list(dict.fromkeys(row["label"] for row in rows))
    inits = list(dict.fromkeys(row["init"] for row in rows))
    drawn = {init: _strips(members, rows, init, metric) for init in inits}
    shared = strips.limits(list(drawn.values()))
    for column, init in zip(st.columns(min(2, len(inits))) * len(inits), inits, strict=False):
        with column:
            plot(
                strips.strips(
                    drawn[init], metric, title=catalog.init_title(init), limits_=shared, order=labels
                ),
                key=f"depth_strips_{init}",
                alt=f"{COLUMN[metric].title} from first to last layer of every network with "
                f"{catalog.init_title(init)}",
            )
    st.caption(
        "Median over seeds. Auxiliary classifiers, which lie beside the way from input to output, are left "
        "out."
    )


def _strips(members: list[RunInfo], rows: list[dict], init: str, metric: str) -> list[strips.Strip]:
    """For each network the metric by depth at the first recorded step, as the median of its runs."""
    found = []
    for row in (row for row in rows if row["init"] == init):
        mine = [
            run.run for run in members if run.init == init and network_study.network_of(run) == row["network"]
        ]
        if one := strips.strip(row["label"], list(loaders.first_layers(mine, metric).values()), metric):
            found.append(one)
    return found


def _numbers(rows: list[dict]) -> None:
    frame = pd.DataFrame(
        {
            "Network": [row["label"] for row in rows],
            "Width": [row["width"] for row in rows],
            "Initialization": [catalog.init_title(row["init"]) for row in rows],
            "Converged": [f"{row['converged']} of {row['runs']}" for row in rows],
            "95 % interval": [formatting.interval(row["low"], row["high"]) for row in rows],
            "Undecided": [row["undecided"] for row in rows],
            "Live": [row["live"] for row in rows],
        }
    )
    st.dataframe(frame, hide_index=True, alt="Convergence counts of every network and initialization")


def _launcher(name: str, members: list[RunInfo]) -> None:
    """How many runs are missing for so many seeds, and the button that launches them."""
    if not access.may_change():
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        seeds = st.number_input("Seeds for each", 1, 100, network_study.SEEDS, key="depth_seeds", width=160)
        try:
            configs = sweep.missing(network_study.plan(name, members, int(seeds)), loaders.listing())
        except InitScopeError as error:
            st.error(formatting.markdown(str(error)))
            return
        label = (
            f"Launch {len(configs)} {'missing ' if members else ''}runs" if configs else "No run is missing"
        )
        if st.button(
            label,
            type="secondary" if members else "primary",
            disabled=not configs,
            icon=":material/play_arrow:",
            key="depth_launch",
        ):
            _launch(configs)
    if not members:
        st.caption(
            f"{len(network_study.STUDY)} networks, two initializations; about half a minute a run on one "
            "processor core."
        )


def _launch(configs: list[RunConfig]) -> None:
    try:
        launched = launcher.submit_missing(loaders.runs(), configs)
    except InitScopeError as error:
        st.error(formatting.markdown(str(error)))
        return
    st.toast(f"{len(launched)} runs queued", icon=":material/check:")
    st.rerun()


page()
