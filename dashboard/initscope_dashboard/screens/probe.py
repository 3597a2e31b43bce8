"""Probe: will this initialization train? One batch through the network, before a second is spent on
training.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from initscope.config import catalog
from initscope.config.run_config import PRESETS, RunConfig, preset
from initscope.schema import Outcome
from initscope_dashboard import loaders
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import profile
from initscope_dashboard.widgets import launch_form, sidebar
from initscope_dashboard.widgets.plot import plot

SEEDS = 3


def page() -> None:
    above = st.container()
    config, inits = _choose()
    probes, failed = loaders.probes(config, inits, SEEDS)
    with above:
        _sentence(probes)
    for init, reason in failed.items():
        st.warning(f"{catalog.init_title(init)}: {formatting.markdown(reason)}", icon=":material/warning:")
    _forecasts(config, probes)
    left, right = st.columns(2)
    with left:
        plot(
            profile.profile(probes, "signal_std"),
            key="probe_signal",
            alt="Signal by depth for each initialization, measured and predicted",
        )
    with right:
        plot(
            profile.profile(probes, "activation_grad_rms"),
            key="probe_error",
            alt="Error signal by depth for each initialization, measured and predicted",
        )
    st.caption(
        "Lines: mean-field theory, from the variances alone. Markers: measured on one batch, with the "
        f"range over {SEEDS} seeds."
    )
    with st.expander("More quantities"):
        metric = st.segmented_control(
            "Quantity",
            ["difference", "activation_rms", "grad_rms"],
            default="difference",
            required=True,
            format_func=lambda name: profile.TITLES[name],
            label_visibility="collapsed",
        )
        plot(
            profile.profile(probes, metric),
            key="probe_more",
            alt=f"{profile.TITLES[metric]} by depth, measured and predicted",
        )
    with st.expander("Numbers"):
        _numbers(probes)


def _choose() -> tuple[RunConfig, list[str]]:
    """The network, from a preset, and the initializations to look at."""
    left, middle, right = st.columns([2, 4, 1])
    name = left.selectbox(
        "Preset",
        list(PRESETS),
        key="probe_preset",
        format_func=lambda option: launch_form.PRESET_TITLES.get(option, option),
    )
    inits = middle.multiselect(
        "Initializations",
        list(catalog.INITS),
        default=["default", "xavier_normal", "kaiming_normal"],
        key="probe_inits",
        format_func=catalog.init_title,
    )
    gain = right.number_input(
        "Gain",
        min_value=0.01,
        max_value=100.0,
        value=1.0,
        step=0.1,
        key="probe_gain",
        help="Multiplies every initial weight.",
    )
    return preset(name).replace(gain=gain), inits


def _sentence(probes: dict[str, dict]) -> None:
    good, bad = [], []
    for init, result in probes.items():
        trains = result["forecast"]["outcome"] == Outcome.CONVERGED
        (good if trains else bad).append(catalog.init_title(init))
    if not probes:
        st.title("Will this initialization train?", anchor=False)
    elif good and bad:
        st.title(
            formatting.markdown(f"Forecast: {_list(good)} will train; {_list(bad)} will not."), anchor=False
        )
    else:
        st.title(
            formatting.markdown(
                f"Forecast: {_list(good or bad)} {'will train' if good else 'will not train'}."
            ),
            anchor=False,
        )


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _forecasts(config: RunConfig, probes: dict[str, dict]) -> None:
    """Each initialization's forecast with its reason, and a button that puts it to the test."""
    for init, result in probes.items():
        mark = theme.OUTCOMES[result["forecast"]["outcome"]]
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            st.markdown(
                f":{mark.badge}[{mark.shape}] **{catalog.init_title(init)}** · "
                f"{formatting.markdown(formatting.typeset(result['forecast']['reason']))}"
            )
            will_train = result["forecast"]["outcome"] == Outcome.CONVERGED
            if will_train and st.button(
                "Launch it", key=f"probe_launch_{init}", icon=":material/play_arrow:", type="primary"
            ):
                sidebar.launch([config.replace(init=init)])


def _numbers(probes: dict[str, dict]) -> None:
    rows = [
        {
            "Initialization": catalog.init_title(init),
            "Layer": row["layer"],
            **{
                f"{name}, {side}": formatting.number(row[side][metric], 2)
                for metric, name in (
                    ("signal_std", "Signal"),
                    ("activation_grad_rms", "Error signal"),
                    ("grad_rms", "Gradient RMS"),
                )
                for side in ("measured", "predicted")
            },
        }
        for init, result in probes.items()
        for row in result["layers"]
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Measured and predicted values of every layer")


page()
