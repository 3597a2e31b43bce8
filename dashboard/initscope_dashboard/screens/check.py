"""Check: is anything wrong with the network before it is trained? A copy learns one batch, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from initscope.config import catalog, factory
from initscope.config.run_config import OPTIONS, RunConfig
from initscope.diagnosis.finding import Finding
from initscope_dashboard import loaders
from initscope_dashboard.content import formatting
from initscope_dashboard.server import access
from initscope_dashboard.widgets import findings, launch_form, sidebar, tab

ASKED = "check_asked"
"""The config that was checked last in this session, as JSON: what is shown is never another one's answer."""


def page() -> None:
    above = st.container()
    if not access.may_change():
        above.title("Is anything wrong before it is trained?", anchor=False)
        above.info(loaders.NO_PROCESSES.capitalize() + ".")
        return
    config = _choose()
    if config is None:
        above.title("Is anything wrong before it is trained?", anchor=False)
        st.info("The launcher in the sidebar has a field to correct first.")
        return
    what = _named(config)
    asked = loaders.check_key(config)
    pressed = st.button(
        "Check it", type="primary", icon=":material/fact_check:", key="check", help="Ten seconds to a minute"
    )
    if pressed:
        st.session_state[ASKED] = asked
    if st.session_state.get(ASKED) != asked:
        above.title("Is anything wrong before it is trained?", anchor=False)
        above.markdown(
            f"A copy of {formatting.markdown(what)} learns one batch by heart. What it shows on the way, and "
            "whether it can, tells of most mistakes before a training is spent on them. Nothing is recorded."
        )
        return
    worked, found = loaders.check(config)
    if not worked:
        above.title("It could not be checked.", anchor=False)
        st.error(formatting.markdown(found), icon=":material/error:")
        return
    tab.title("Check", what)
    above.title(formatting.markdown(formatting.typeset(found["headline"])), anchor=False)
    _told(found, what)
    if found["sound"] and st.button("Launch it", icon=":material/play_arrow:", key="check_launch"):
        sidebar.launch([config])


def _choose() -> RunConfig | None:
    """The config that the launcher in the sidebar says, of one initialization; network and data can be chosen
    here, too. None while a field there is wrong.
    """
    left, middle, right = st.columns(3)
    for place, name, titles in (
        (left, "model", catalog.model_title),
        (middle, "data", catalog.data_title),
    ):
        _mirrored(place, name, titles)
    configs: list[RunConfig] = st.session_state.get(launch_form.CONFIGS, [])
    by_init = {config.init: config for config in configs}
    if not by_init:
        return None
    init = right.selectbox("Initialization", list(by_init), key="check_init", format_func=catalog.init_title)
    st.caption("Learning rate, optimizer and every other field are those of the launcher in the sidebar.")
    return by_init[init]


def _mirrored(place: st.delta_generator.DeltaGenerator, name: str, titles: Any) -> None:
    """A field of the launcher once more: what is chosen here is chosen there."""
    here, there = f"check_{name}", launch_form.field_key(name)
    spec = OPTIONS[name]
    choices = [*(spec.choices or catalog.DATA), *factory.offered(name)]
    st.session_state[here] = st.session_state[there]

    def carry() -> None:
        st.session_state[there] = st.session_state[here]

    place.selectbox(spec.title, choices, key=here, format_func=titles, help=spec.help, on_change=carry)


def _named(config: RunConfig) -> str:
    return (
        f"{catalog.model_title(config.model)} on {catalog.data_title(config.data)} with "
        f"{catalog.init_title(config.init)}"
    )


def _told(found: Mapping[str, Any], what: str) -> None:
    guess = f", a guess costs {formatting.number(found['guessing'])}" if found["guessing"] is not None else ""
    learned = {
        True: "one batch was learned by heart",
        False: "one batch was not learned",
        None: "so few steps do not tell whether one batch is learned",
    }[found["learned"]]
    st.caption(
        formatting.markdown(
            f"{what} · {learned}: loss {formatting.number(found['first_loss'])} "
            f"to {formatting.number(found['last_loss'])} in {found['steps']} steps{guess} · "
            f"{formatting.duration(found['seconds'])}"
        )
    )
    for title, kind in (
        ("What to mend", "findings"),
        ("Out of the ordinary, and in nobody's way", "notes"),
    ):
        if found[kind]:
            st.header(title, anchor=False)
        for values in found[kind]:
            rest = {key: value for key, value in values.items() if key != "snippet"}
            findings.finding(Finding(**{**rest, "layers": tuple(rest["layers"])}), values["snippet"] or "")


page()
