"""Status cards: one a run, with word and shape, progress, loss, speed and time left, kept current by the event stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from core.store import RunInfo
from dashboard import text, theme
from dashboard.server import assets_path

_CARDS = st.components.v2.component(
    "initscope_cards",
    js="""
export default async function (component) {
  const { cards } = await import(new URL(component.data.assets + "/cards.js", location.origin))
  return cards(component)
}
""",
    isolate_styles=False,
)


def _token(color: str) -> str:
    return color.removeprefix("var(--").removesuffix(")")


def cards(runs: Sequence[RunInfo], progress: Mapping[str, Mapping[str, Any]], *, key: str) -> bool:
    """Draw a card for each run. True in the rerun that follows the end of the last live one.

    ``progress`` holds ``stream.progress`` of every run; live runs update themselves from there on.
    """
    marks = {**theme.OUTCOMES, **theme.STATUSES}
    data = {
        "assets": assets_path(),
        "cards": [
            {"run": info.run, "name": text.shorten(info.name, 48), "color": _token(theme.init_color(info.init)), "state": dict(progress[info.run])}
            for info in runs
        ],
        "marks": {str(name): {"word": m.word, "shape": m.shape, "color": _token(m.color)} for name, m in marks.items()},
        "stream": [info.run for info in runs if info.live],
    }
    result = _CARDS(key=key, data=data, on_ended_change=lambda: None)
    return bool(result.get("ended"))
