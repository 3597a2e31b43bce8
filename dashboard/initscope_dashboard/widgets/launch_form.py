"""The launcher's fields, made from the config's own declaration; what a person typed, checked beside each
field.
"""

from __future__ import annotations

import contextlib
from typing import Any

import streamlit as st

from initscope.config import catalog, factory
from initscope.config.option import Option
from initscope.config.run_config import OPTIONS, PRESETS, RunConfig, preset
from initscope.errors import ConfigError

MAIN = ("init_seed", "epochs", "learning_rate", "optimizer", "data")
"""Always visible, below preset and initializations; every other field is under "more"."""
CONFIGS = "launch_configs"
"""Session state: what the launcher says now, one config an initialization; none while a field is wrong."""
HIDDEN = ("init", "sweep", "model_sha256", "data_sha256")
"""Chosen elsewhere: initializations several at once, the sweep by the Sweep page, the files of own factories
by model and data.
"""
MORE = tuple(name for name in OPTIONS if name not in MAIN + HIDDEN)
SWITCH = {"": "As in the paper", "yes": "Yes", "no": "No"}
"""What an optional switch can be: typed value and title."""
STORY = ("default", "kaiming_normal")
PRESET_TITLES = {
    "quick": "Quick · digits, 32 px",
    "tutorial_32": "Tutorial · FashionMNIST, 32 px",
    "tutorial_224": "Tutorial · FashionMNIST, 224 px (GPU)",
    "story_32": "Story, at its own rate · FashionMNIST, 32 px",
    "story_224": "Story, at its own rate · FashionMNIST, 224 px (GPU)",
}


def field_key(name: str) -> str:
    """The session-state key of a field's widget."""
    return f"launch_{name}"


def begin() -> None:
    """Fill the fields from the first preset, once a session. Each field has ``persist_state="session"``: a
    page switch in the middle of a script run (a launch does one) would else forget what was typed.
    """
    if field_key("init_seed") not in st.session_state:
        st.session_state[field_key("preset")] = next(iter(PRESETS))
        st.session_state[field_key("inits")] = list(STORY)
        fill(preset(next(iter(PRESETS))))


def fill(config: RunConfig) -> None:
    """Put a config's values into the fields. To be called before the fields are drawn."""
    for name in MAIN + MORE:
        st.session_state[field_key(name)] = typed(OPTIONS[name], getattr(config, name))
    if config.batch_norm == catalog.own_batch_norm(config.model):
        st.session_state[field_key("batch_norm")] = ""  # so that another network brings its own


def typed(spec: Option, value: Any) -> Any:
    """A value as its field shows it: numbers as a person would type them, nothing as an empty text."""
    if spec.kind is bool and spec.optional:
        return "" if value is None else "yes" if value else "no"
    if spec.kind is bool or spec.choices or spec.name == "data":
        return value
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def fields() -> tuple[list[RunConfig], list[str]]:
    """Draw all fields. Returns one config an initialization, and the problems; with problems there are no
    configs.
    """
    st.selectbox(
        "Preset",
        list(PRESETS),
        key=field_key("preset"),
        persist_state="session",
        format_func=lambda name: PRESET_TITLES.get(name, name),
        on_change=lambda: fill(preset(st.session_state[field_key("preset")])),
        help="Fills in every field below.",
    )
    inits = st.multiselect(
        "Initialization",
        list(catalog.INITS),
        key=field_key("inits"),
        persist_state="session",
        format_func=catalog.init_title,
        help="One run each, with the same seed and the same order of data. "
        + " ".join(f"**{entry.title}**: {entry.formula}." for entry in catalog.INITS.values()),
    )
    values, problems = {}, []
    for pair in (MAIN[:2], MAIN[2:4], MAIN[4:]):  # row by row, as the keyboard goes through them
        for name, place in zip(pair, st.columns(len(pair)), strict=True):
            with place:
                _collect(name, values, problems)
    for name, why in factory.not_offered().items():
        st.caption(f":red[{_plain(f'{name} is not offered: {why}')}]")
    more = st.expander("More", key="launch_more", on_change="rerun")
    for (
        name
    ) in MORE:  # drawn when they are looked at: two dozen fields are most of what a page would have to draw
        with more if more.open else contextlib.nullcontext():
            _collect(name, values, problems, drawn=more.open)
    if not inits:
        problems.append("Choose at least one initialization.")
    if problems:
        return [], problems
    try:
        return [RunConfig.from_dict({**values, "init": init}) for init in inits], []
    except ConfigError as error:  # values that are right one by one and do not fit together
        st.caption(f":red[{_plain(str(error))}]")
        return [], [str(error)]


def _collect(name: str, values: dict[str, Any], problems: list[str], drawn: bool = True) -> None:
    """Draw one field, unless it stays out of sight, and read it; a bad value is refused right under it."""
    spec = OPTIONS[name]
    raw = _widget(spec) if drawn else st.session_state[field_key(name)]
    try:
        values[name] = spec.parse(raw)
    except ConfigError as error:
        st.caption(f":red[{_plain(str(error))}]")
        problems.append(str(error))


def _widget(spec: Option) -> Any:
    key, label = field_key(spec.name), spec.title + (f" ({spec.unit})" if spec.unit else "")
    if spec.name == "data":
        return st.selectbox(
            label,
            [*catalog.DATA, *factory.offered("data")],
            key=key,
            persist_state="session",
            format_func=catalog.data_title,
            help=spec.help,
        )
    if spec.kind is bool and spec.optional:
        return st.selectbox(
            label, list(SWITCH), key=key, persist_state="session", format_func=SWITCH.get, help=spec.help
        )
    if spec.kind is bool:
        return st.toggle(label, key=key, persist_state="session", help=spec.help)
    if spec.choices:
        choices = [*spec.choices, *(factory.offered(spec.name) if spec.own else ())]
        return st.selectbox(
            label,
            choices,
            key=key,
            persist_state="session",
            format_func=catalog.model_title if spec.name == "model" else str,
            help=spec.help,
        )
    return st.text_input(
        label,
        key=key,
        persist_state="session",
        help=f"{spec.help}: {spec.expected}.",
        placeholder="auto" if spec.optional else "",
    )


def _plain(text: str) -> str:
    """A message as Streamlit markdown inside a colour directive: nothing in it may end the directive or start
    another.
    """
    return "".join("\\" + char if char in r"\`*_{}[]()<>#+-!|~$:" else char for char in text)
