"""The share of seeds that have left chance by step n, one curve an initialization, with its band.

Tells apart an initialization that never trains from one that trains late or only with some seeds, which a
count at the end does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from initscope.comparison.survival import Survival
from initscope.config.catalog import init_title
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base

TITLE = "Seeds that have left chance by step n, with 95 % band"


class Stairs(NamedTuple):
    """A curve as it is drawn: each level holds up to the next step; ``marks`` are (steps, shares)
    where watching a run ended.
    """

    init: str
    name: str
    curve: Survival
    words: list[str]
    marks: tuple[list[int], list[float]]


def survival_data(curves: Mapping[str, Survival]) -> list[Stairs]:
    """The stairs of each initialization. Where all have left nothing can change any more: that curve goes on
    to the end of the longest.
    """
    found = []
    longest = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
    for init, curve in curves.items():
        if curve.left == curve.runs and curve.steps[-1] < longest:
            curve = curve._replace(
                steps=np.append(curve.steps, longest),
                **{
                    name: np.append(getattr(curve, name), getattr(curve, name)[-1])
                    for name in ("share", "low", "high")
                },
                watched=np.append(curve.watched, 0),
            )
        words = [
            f"{formatting.percent(share)} by step {formatting.count(int(step))}, 95 % band "
            f"{formatting.interval(low, high)}, {watched} of {curve.runs} still watched"
            for step, share, low, high, watched in zip(
                curve.steps, curve.share, curve.low, curve.high, curve.watched, strict=True
            )
        ]
        ended = sorted(set(curve.unwatched))
        at = [float(curve.share[np.searchsorted(curve.steps, step)]) for step in ended]
        found.append(Stairs(init, init_title(init), curve, words, (ended, at)))
    return found


def survival(curves: Mapping[str, Survival]) -> go.Figure:
    """Draw ``initscope.comparison.survival`` curves by initialization."""
    data = survival_data(curves)
    if not data:
        return base.blank(TITLE, "Appears with the first recorded steps of a run whose chance is known.")
    drawn = base.figure(TITLE, 360)
    colors = theme.group_colors([stairs.init for stairs in data])
    for (init, name, curve, words, (ended, at)), color in zip(data, colors, strict=True):
        steps = curve.steps.astype(np.int32)
        common = {"x": steps, "mode": "lines", "legendgroup": init}
        edge = {"color": color, "width": 0, "shape": "hv"}
        quiet = {"hoverinfo": "skip", "showlegend": False}
        drawn.add_scatter(y=curve.low.astype(np.float32), line=edge, **common, **quiet)
        drawn.add_scatter(
            y=curve.high.astype(np.float32),
            line=edge,
            fill="tonexty",
            fillcolor=theme.soft(color),
            **common,
            **quiet,
        )
        label = formatting.escape(name)
        drawn.add_scatter(
            y=curve.share.astype(np.float32),
            line={"color": color, "width": 2.4, "shape": "hv"},
            name=f"{label} ({curve.left} of {curve.runs})",
            text=words,
            hovertemplate=label + ": %{text}<extra></extra>",
            **common,
        )
        drawn.add_scatter(
            x=ended,
            y=at,
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 9, "color": color, "line": {"width": 2}},
            legendgroup=init,
            hovertemplate=f"{label}: not watched any longer, and had not left<extra></extra>",
            showlegend=False,
        )
    drawn.update_layout(hovermode="closest")
    drawn.update_xaxes(title={"text": "step", "standoff": 6}, rangemode="tozero", automargin=True)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    drawn.update_yaxes(
        range=[-0.03, 1.03],
        tickvals=ticks,
        ticktext=[formatting.percent(tick) for tick in ticks],
        title={"text": "have left chance", "standoff": 8},
        automargin=True,
    )
    return drawn
