"""One layer's value over time, for one or two runs: what a row of the heatmap looks like from the side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from initscope.schema import COLUMN
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.content.formatting import LINEAR_METRICS
from initscope_dashboard.figures import base
from initscope_dashboard.figures.base import Subject
from initscope_dashboard.figures.curves import POINTS, thin

FEW = 30
"""Points that are marked one by one."""


class LayerCurve(NamedTuple):
    """``values`` holds NaN where the value was not finite; ``zeros`` and ``bad`` are the steps of exact zeros
    and of NaN or infinity.
    """

    subject: Subject
    steps: np.ndarray
    values: np.ndarray
    zeros: np.ndarray
    bad: np.ndarray


def layer_curve_data(
    subjects: Sequence[Subject], frames: Mapping[str, pd.DataFrame], layer: str, metric: str = "grad_norm"
) -> list[LayerCurve]:
    """The layer's rows of each run; a run without that layer is left out."""
    result = []
    for who in subjects:
        frame = frames.get(who.run)
        if frame is None or frame.empty:
            continue
        rows = frame[frame["layer"] == layer]
        if rows.empty:
            continue
        steps, values = rows["step"].to_numpy(dtype=np.int32), rows[metric].to_numpy(dtype=np.float64)
        bad, zero = ~np.isfinite(values), (values == 0) & (metric not in LINEAR_METRICS)
        with np.errstate(divide="ignore", invalid="ignore"):
            line = np.where(bad | zero, np.nan, values if metric in LINEAR_METRICS else np.log10(values))
        x, y = thin(steps, line, POINTS)
        y = y if metric in LINEAR_METRICS else 10.0**y
        result.append(LayerCurve(who, x, y.astype(np.float32), _few(steps[zero]), _few(steps[bad])))
    return result


def _few(steps: np.ndarray, most: int = 200) -> np.ndarray:
    return steps[:: max(1, -(-len(steps) // most))]


def layer_curve(
    subjects: Sequence[Subject],
    frames: Mapping[str, pd.DataFrame],
    layer: str,
    metric: str = "grad_norm",
    *,
    called: str = "",
    height: int = 300,
) -> go.Figure:
    """The curves on a logarithmic axis (a share: linear); zeros lie on the lower edge, NaN and infinity on
    the upper. ``called``: what a person calls the layer.
    """
    title = f"{COLUMN[metric].title} of {formatting.escape(called or layer)} over time"
    data = layer_curve_data(subjects, frames, layer, metric)
    if not data:
        return base.blank(
            title, "Click a layer in the map above." if not layer else "The run has no such layer.", height
        )
    drawn = base.figure(title, height, hovermode="x unified", showlegend=True)
    values = np.concatenate([run.values for run in data])
    linear = metric in LINEAR_METRICS
    zeros, bad = any(run.zeros.size for run in data), any(run.bad.size for run in data)
    low, high = (0, 1) if linear else base.edges(values[np.isfinite(values)])[:2]
    low, high = (0, 1) if linear else (low - zeros, high + bad)
    looks = theme.styles(run.subject.init for run in data)
    for run, name, look in zip(data, base.labels([run.subject for run in data]), looks, strict=True):
        common = {"legendgroup": run.subject.run, "name": name}
        drawn.add_scatter(
            x=run.steps,
            y=run.values,
            mode="lines+markers" if len(run.steps) <= FEW else "lines",  # one point is no line
            marker={"size": 6, "color": look.color},
            line={"color": look.color, "width": 1.6, "dash": look.dash},
            hovertemplate="%{fullData.name}: " + ("%{y:.1%}" if linear else "%{y:.3g}") + "<extra></extra>",
            **common,
        )
        for steps, at, symbol, word in (
            (run.zeros, low, "circle-open", "exact zero"),
            (run.bad, high, "x", "NaN or infinite"),
        ):
            if steps.size:
                color = look.color if word == "exact zero" else theme.NONFINITE
                drawn.add_scatter(
                    x=steps,
                    y=np.full(len(steps), at if linear else 10.0**at),
                    mode="markers",
                    legendgroup=run.subject.run,
                    marker={"symbol": symbol, "size": 6, "color": color},
                    name=word,
                    hovertemplate=f"{word}<extra></extra>",
                )
    drawn.update_xaxes(title={"text": "step", "standoff": 6}, automargin=True)
    axis = (
        {"range": [-0.02, 1.02], "tickformat": ".0%"}
        if linear
        else base.log_axis(COLUMN[metric].title.lower(), low, high, zeros, bad)
    )
    drawn.update_yaxes(**{**axis, "automargin": True})
    return drawn
