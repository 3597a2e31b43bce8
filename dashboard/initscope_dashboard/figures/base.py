"""What every chart needs: who is drawn, the common layout, blocks of layers, axes in powers of ten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from initscope.store import RunInfo
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import blocks

TOP = 46
"""Pixels above the plot: one line of title and one of legend or colour bar ticks."""

MOST_BLOCKS = 50
"""Blocks that are parted by lines."""
READABLE = 40
"""Layers that all have their name on an axis."""


class Subject(NamedTuple):
    """A run as charts name it."""

    run: str
    label: str
    init: str


def subject(info: RunInfo) -> Subject:
    """The chart's view of a listed run."""
    return Subject(info.run, info.name, info.init)


def label(who: Subject, limit: int = 30) -> str:
    """The run's name, shortened and safe in a Plotly label."""
    return formatting.escape(formatting.shorten(who.label, limit))


def labels(subjects: Sequence[Subject], limit: int = 30) -> list[str]:
    """Labels that tell the runs apart: those that would read alike get the end of their run id."""
    plain = [label(who, limit) for who in subjects]
    return [
        f"{name} ({formatting.escape(who.run[-4:])})" if plain.count(name) > 1 else name
        for who, name in zip(subjects, plain, strict=True)
    ]


def figure(title: str, height: int, **layout: Any) -> go.Figure:
    """An empty figure in the house style: title at the left, quiet axes, legend under the plot."""
    base = {
        "template": "none",
        "title": {"text": title, "font": {"size": 15}},
        "height": height,
        "margin": {"l": 56, "r": 12, "t": TOP, "b": 44},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        "hoverlabel": {"align": "left"},
        "xaxis": {"separatethousands": True, "exponentformat": "none"},
    }
    return go.Figure(layout={**base, **layout})


def blank(title: str, hint: str, height: int = 220) -> go.Figure:
    """A titled figure without data that says what to do next."""
    drawn = figure(title, height, xaxis={"visible": False}, yaxis={"visible": False}, meta={"blank": hint})
    drawn.add_annotation(
        text=hint,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 14, "color": theme.MUTED},
    )
    return drawn


# -- layers


def layers_in_order(frame: pd.DataFrame) -> list[str]:
    """Layer names, nearest the input first."""
    pairs = frame[["layer", "depth"]].drop_duplicates().sort_values("depth", kind="stable")
    return [str(name) for name in pairs["layer"].drop_duplicates()]


def boundaries(layers: Sequence[str]) -> list[float]:
    """Positions halfway between neighbours of different blocks; none if nearly every layer were its own
    block, or if there were more lines than picture.
    """
    parts = blocks.runs(blocks.blocks(layers))
    return (
        [first - 0.5 for _, first, _ in parts[1:]]
        if 2 * (len(parts) - 1) <= len(layers) and len(parts) <= MOST_BLOCKS
        else []
    )


def block_lines(layers: Sequence[str], axis: str, color: str = theme.LINE, width: float = 1) -> list[dict]:
    """Thin lines between blocks, across ('y') or along ('x') the layer axis."""
    other = "x" if axis == "y" else "y"
    return [
        {
            "type": "line",
            f"{axis}0": at,
            f"{axis}1": at,
            f"{axis}ref": axis,
            f"{other}0": 0,
            f"{other}1": 1,
            f"{other}ref": "paper",
            "line": {"color": color, "width": width},
            "layer": "above" if color == theme.PAPER else "below",
        }
        for at in boundaries(layers)
    ]


def layer_height(layers: Sequence[str], least: int = 340, each: int = 20) -> int:
    """A height that gives every layer's name room, within about a screen."""
    return int(min(960, max(least, TOP + 60 + each * len(layers))))


def names_axis(axis: str, layers: Sequence[str], shown: Sequence[str] = ()) -> dict[str, Any]:
    """``layout.meta`` of a figure with layers on ``axis``: ``plot.js`` writes as many names as there is room
    for, layers from near and blocks from afar. ``shown`` are names to write instead of the layers' own.
    """
    names = blocks.short(shown or layers)
    parts = [(name, i, i) for i, name in enumerate(shown)] or blocks.runs(blocks.groups(layers))
    groups = blocks.short([group for group, _, _ in parts])
    parts = [
        [names[first] if first == last else group, first, last]
        for group, (_, first, last) in zip(groups, parts, strict=True)
    ]
    return {"rows": {"axis": axis, "keys": list(layers), "names": names, "groups": parts}}


# -- magnitudes


def decade_limits(values: np.ndarray, span: int = 2) -> tuple[int, int]:
    """Whole decades around log10 values, at least ``span`` of them; (-8, 0) if none is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -8, 0
    low, high = math.floor(float(finite.min()) + 1e-6), math.ceil(float(finite.max()) - 1e-6)
    while high - low < span:
        low, high = (low - 1, high) if (high - low) % 2 == 0 else (low, high + 1)
    return low, high


def power_ticks(low: float, high: float, most: int = 7) -> tuple[list[int], list[str]]:
    """Tick positions at whole decades and their texts ('10⁻⁸'), at most ``most``."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    at = list(range(first, last + 1, step))
    return at, [formatting.power(exponent) for exponent in at]


def edges(values: np.ndarray) -> tuple[int, int, bool, bool]:
    """(low, high, zeros, bad): decades around the positive values, one more below for exact zeros and above
    for NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = decade_limits(np.log10(values[np.isfinite(values) & (values > 0)]))
    zeros, bad = bool((values == 0).any()), not bool(np.isfinite(values).all())
    return low - zeros, high + bad, zeros, bad


def pinned(values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, list[str]]:
    """Values for a log axis from 10**low to 10**high, and a marker each: an exact zero is an open circle on
    the lower edge, NaN or infinity a cross on the upper one. ``plot.js`` does the same with live values.
    """
    values = np.asarray(values, dtype=np.float64)
    placed = np.where(values == 0, 10.0**low, np.where(np.isfinite(values), values, 10.0**high))
    symbols = ["circle-open" if v == 0 else "circle" if math.isfinite(v) else "x" for v in values]
    return placed, symbols


def log_axis(
    title: str, low: int, high: int, zeros: bool = False, bad: bool = False, most: int = 7
) -> dict[str, Any]:
    """A logarithmic axis from decade ``low`` to ``high``. With ``zeros`` its lower end reads '0', with
    ``bad`` its upper 'NaN'.
    """
    at, words = power_ticks(low + 2 * zeros, high - 2 * bad, most)
    if zeros:
        at, words = [low, *at], ["0", *words]
    if bad:
        at, words = [*at, high], [*words, "NaN"]
    pad = 0.02 * (high - low) + 0.05
    return {
        "type": "log",
        "title": {"text": title, "standoff": 8},
        "exponentformat": "power",
        "automargin": True,
        "range": [low - pad, high + pad],
        "tickvals": [10.0**e for e in at],
        "ticktext": words,
    }
