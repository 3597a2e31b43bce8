"""What runs are doing now: a headline, a card a run with word and shape, progress, loss, speed and time left,
and the sidebar's rows.

All are kept current by the page's event stream, without a rerun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from initscope.store import RunInfo
from initscope_dashboard.browser import theme
from initscope_dashboard.browser.assets import assets_path
from initscope_dashboard.content import formatting, headlines
from initscope_dashboard.widgets.component import component

_HEADLINE = component("initscope_headline", "cards.js", "headline")
_CARDS = component("initscope_cards", "cards.js", "cards")
_PROGRESS = component("initscope_progress", "cards.js", "progress")


def _token(color: str) -> str:
    return color.removeprefix("var(--").removesuffix(")")


def _marks() -> dict[str, dict[str, str]]:
    marks = {**theme.OUTCOMES, **theme.STATUSES}
    return {
        str(name): {"word": mark.word, "shape": mark.shape, "color": _token(mark.color)}
        for name, mark in marks.items()
    }


def headline(runs: Sequence[RunInfo], progress: Mapping[str, Mapping[str, Any]], *, key: str) -> None:
    """The page's sentence, as its title: what the runs are doing now."""
    names = [formatting.shorten(info.name, 40) for info in runs]
    _HEADLINE(
        key=key,
        data={
            "assets": assets_path(),
            "text": headlines.live(names, [progress[info.run] for info in runs]),
            "runs": [
                {"run": info.run, "name": name, "state": dict(progress[info.run])}
                for info, name in zip(runs, names, strict=True)
            ],
            "stream": [info.run for info in runs if info.live],
        },
    )


def cards(runs: Sequence[RunInfo], progress: Mapping[str, Mapping[str, Any]], *, key: str) -> bool:
    """Draw a card for each run. True in the rerun that follows the end of a live one.

    ``progress`` holds ``loaders.progress`` of every run; live runs update themselves from there on.
    """
    data = {
        "assets": assets_path(),
        "cards": [
            {
                "run": info.run,
                "name": formatting.shorten(info.name, 48),
                "color": _token(look.color),
                "state": dict(progress[info.run]),
            }
            for info, look in zip(runs, theme.styles(info.init for info in runs), strict=True)
        ],
        "marks": _marks(),
        "stream": [info.run for info in runs if info.live],
    }
    result = _CARDS(key=key, data=data, on_ended_change=lambda: None)
    return bool(result.get("ended"))


def progress_rows(
    runs: Sequence[RunInfo], *, more: int, there: str, key: str, on_stop: Callable[[str], None] | None
) -> None:
    """A row for each live run: name, progress, time left and, with ``on_stop(run id)``, a button. ``more``
    runs are only counted.

    Causes a rerun when one of them has begun or ended, or the folder's runs are others than those that
    ``there`` (``stream.standing``) stands for.
    """
    data = {
        "assets": assets_path(),
        "rows": [
            {"run": info.run, "name": formatting.shorten(info.name, 24), "state": _standing(info)}
            for info in runs
        ],
        "marks": _marks(),
        "more": more,
        "stops": on_stop is not None,
        "stream": [info.run for info in runs],
        "there": there,
    }

    def stop() -> None:
        run_id = st.session_state.get(key, {}).get("stop")
        if on_stop and run_id in data["stream"]:
            on_stop(run_id)

    _PROGRESS(key=key, data=data, on_stop_change=stop, on_changed_change=lambda: None)


def _standing(info: RunInfo) -> dict[str, Any]:
    """Of ``loaders.progress`` what a row shows, without reading any row of the run."""
    done = info.progress
    left = (info.state.get("seconds") or 0.0) * (1 - done) / done if done else None
    names = ("step", "total_steps", "phase")
    return {"status": info.status, "seconds_left": left, **{name: info.state.get(name) for name in names}}
