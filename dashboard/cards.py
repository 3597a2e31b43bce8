"""What runs are doing now: a headline, and a card a run with word and shape, progress, loss, speed and time left.

Both are kept current by the page's event stream, without a rerun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from core.store import RunInfo
from dashboard import sentences, text, theme
from dashboard.server import assets_path

_HEADLINE = st.components.v2.component(
    "initscope_headline",
    js="""
export default async function (component) {
  const { headline } = await import(new URL(component.data.assets + "/cards.js", location.origin))
  return headline(component)
}
""",
    isolate_styles=False,
)
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


def headline(runs: Sequence[RunInfo], progress: Mapping[str, Mapping[str, Any]], *, key: str) -> None:
    """The page's sentence, as its title: what the runs are doing now."""
    names = [text.shorten(info.name, 40) for info in runs]
    _HEADLINE(
        key=key,
        data={
            "assets": assets_path(),
            "text": sentences.live(names, [progress[info.run] for info in runs]),
            "runs": [{"run": info.run, "name": name, "state": dict(progress[info.run])} for info, name in zip(runs, names, strict=True)],
            "stream": [info.run for info in runs if info.live],
        },
    )


def cards(runs: Sequence[RunInfo], progress: Mapping[str, Mapping[str, Any]], *, key: str) -> bool:
    """Draw a card for each run. True in the rerun that follows the end of a live one.

    ``progress`` holds ``loaders.progress`` of every run; live runs update themselves from there on.
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
