"""How much larger B's value is than A's, for every layer and step, in decades around zero.

Tells apart a fix that revived the first layers from one that only scaled everything: one colour is a mere
factor, a gradient of colours from bottom to top is a changed depth profile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from initscope.schema import COLUMN
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base, heatmap
from initscope_dashboard.figures.heatmap import Cells


class Ratio(NamedTuple):
    """log10(B/A) of the layers both have, on the steps both reached; ``zero`` and ``bad`` mark cells where
    either run has one.
    """

    metric: str
    layers: list[str]
    steps: np.ndarray
    z: np.ndarray
    zero: np.ndarray
    bad: np.ndarray
    per: int
    notes: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


def ratio_data(a: Cells | None, b: Cells | None) -> Ratio | None:
    """The ratio of two maps, None if they have no layer or no step in common.

    Columns that begin at the same step are compared; if the maps have different columns, each of the coarser
    one is compared with the finer one's last before its end. Shares have no ratio.
    """
    if a is None or b is None or a.linear or not len(a.steps) or not len(b.steps):
        return None
    layers = [name for name in a.layers if name in set(b.layers)]
    end = min(a.steps[-1], b.steps[-1])
    coarse = a if (a.steps <= end).sum() <= (b.steps <= end).sum() else b
    steps = coarse.steps[(coarse.steps <= end) & (coarse.steps >= max(a.steps[0], b.steps[0]))]
    if not layers or not steps.size:
        return None
    za, zero_a, bad_a = _at(a, layers, steps)
    zb, zero_b, bad_b = _at(b, layers, steps)
    return Ratio(
        a.metric, layers, steps, zb - za, (zero_a | zero_b) & ~(bad_a | bad_b), bad_a | bad_b, coarse.per
    )


def _at(cells: Cells, layers: list[str], steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = {name: i for i, name in enumerate(cells.layers)}
    rows = [row[name] for name in layers]
    columns = np.searchsorted(cells.steps, steps, side="right") - 1
    return cells.z[rows][:, columns], cells.zero[rows][:, columns], cells.bad[rows][:, columns]


def ratio(data: Ratio | None, *, title: str | None = None, span: float | None = None) -> go.Figure:
    """Draw the map of B over A; ``span``: decades to either side of equal."""
    heading = formatting.escape(title) if title else "B against A"
    if data is None:
        return base.blank(heading, "The two runs have no layer and step in common.")
    finite = data.z[np.isfinite(data.z)]
    half = span or max(1, math.ceil(float(np.abs(finite).max()) - 1e-6) if finite.size else 1)
    bar, short = _bar(half)
    drawn = base.figure(heading, base.layer_height(data.layers))
    told = heatmap.hover(data, COLUMN[data.metric].title, "log10ratio")
    told["meta"]["narrow"] = {"colorbar.ticktext": short}
    drawn.add_heatmap(
        z=data.z,
        x=data.steps,
        y=data.layers,
        zmin=-half,
        zmax=half,
        colorscale=theme.DIVERGING,
        colorbar=bar,
        **told,
    )
    heatmap.special(drawn, data, data.zero, theme.ZERO, "an exact zero in A or B")
    heatmap.special(drawn, data, data.bad, theme.NONFINITE, "NaN or infinite in A or B")
    heatmap.finish(drawn, data)
    return drawn


def _bar(half: float) -> tuple[dict, list[str]]:
    """The colour bar with ticks in words, and the shorter words for a narrow screen."""
    step = max(1, math.floor(0.75 * half))  # inside the bar: the words are long
    at = [-step, 0, step]
    words = [
        "equal" if v == 0 else f"{formatting.number(10.0 ** abs(v))} × {'larger' if v > 0 else 'smaller'}"
        for v in at
    ]
    short = ["equal" if v == 0 else ("×" if v > 0 else "÷") + formatting.power(abs(v)) for v in at]
    return {**heatmap.color_bar("", -half, half, False), "tickvals": at, "ticktext": words}, short
