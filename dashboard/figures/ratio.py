"""How much larger B's value is than A's, for every layer and step, in decades around zero.

Tells apart a fix that revived the first layers from one that only scaled everything: one colour is a mere factor, a
gradient of colours from bottom to top is a changed depth profile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from core.schema import COLUMN
from dashboard import text, theme
from dashboard.figures import base, heatmap


class Ratio(NamedTuple):
    """log10(B/A) of the layers both have, on the steps both reached; ``zero`` and ``bad`` mark cells where either run has one."""

    metric: str
    layers: list[str]
    steps: np.ndarray
    z: np.ndarray
    zero: np.ndarray
    bad: np.ndarray
    per: int


def ratio_data(a: pd.DataFrame | None, b: pd.DataFrame | None, metric: str = "grad_norm", columns: int = heatmap.COLUMNS) -> Ratio | None:
    """The ratio's map, None if the runs have no layer or no step in common.

    Steps that both recorded are compared; if they recorded at different steps, each is compared with the last one before it.
    """
    if a is None or b is None or a.empty or b.empty:
        return None
    layers_a, steps_a, values_a, present_a = heatmap.matrix(a, metric)
    layers_b, steps_b, values_b, present_b = heatmap.matrix(b, metric)
    layers = [name for name in layers_a if name in set(layers_b)]
    end = min(steps_a[-1], steps_b[-1])
    coarse = steps_a if len(steps_a[steps_a <= end]) <= len(steps_b[steps_b <= end]) else steps_b
    steps = coarse[(coarse <= end) & (coarse >= max(steps_a[0], steps_b[0]))]
    if not layers or not steps.size:
        return None
    per = -(-len(steps) // columns)
    maps = []
    for names, at, values, present in ((layers_a, steps_a, values_a, present_a), (layers_b, steps_b, values_b, present_b)):
        rows = [names.index(name) for name in layers]
        column = np.searchsorted(at, steps, side="right") - 1
        maps.append(heatmap.binned(values[rows][:, column], present[rows][:, column], per, False))
    (za, zero_a, bad_a), (zb, zero_b, bad_b) = maps
    return Ratio(metric, layers, steps[::per].astype(np.int32), zb - za, (zero_a | zero_b) & ~(bad_a | bad_b), bad_a | bad_b, per)


def ratio(data: Ratio | None, *, title: str | None = None, span: float | None = None) -> go.Figure:
    """Draw the map of B over A; ``span``: decades to either side of equal."""
    heading = text.escape(title) if title else "B against A"
    if data is None:
        return base.blank(heading, "The two runs have no layer and step in common.")
    finite = data.z[np.isfinite(data.z)]
    half = span or max(1, math.ceil(float(np.abs(finite).max()) - 1e-6) if finite.size else 1)
    bar, short = _bar(half)
    drawn = base.figure(heading, base.layer_height(data.layers))
    drawn.add_heatmap(
        z=data.z, x=data.steps, y=data.layers, zmin=-half, zmax=half, colorscale=theme.DIVERGING, colorbar=bar,
        hovertemplate=f"<b>%{{y}}</b> · step %{{x}}<br>{COLUMN[data.metric].title}: %{{text}}<extra></extra>", meta={"text": "log10ratio", "narrow": {"colorbar.ticktext": short}},
    )
    heatmap.special(drawn, data.steps, data.layers, data.zero, theme.ZERO, "an exact zero in A or B", data.per)
    heatmap.special(drawn, data.steps, data.layers, data.bad, theme.NONFINITE, "NaN or infinite in A or B", data.per)
    heatmap.finish(drawn, data.layers, data.steps, data.per)
    return drawn


def _bar(half: float) -> tuple[dict, list[str]]:
    """The colour bar with ticks in words, and the shorter words for a narrow screen."""
    step = max(1, math.floor(0.75 * half))  # inside the bar: the words are long
    at = [-step, 0, step]
    words = ["equal" if v == 0 else f"{text.number(10.0 ** abs(v))} × {'larger' if v > 0 else 'smaller'}" for v in at]
    short = ["equal" if v == 0 else ("×" if v > 0 else "÷") + text.power(abs(v)) for v in at]
    return {**heatmap.color_bar("", -half, half, False), "tickvals": at, "ticktext": words}, short
