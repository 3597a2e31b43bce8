"""Why three by three: a stack of small kernels sees as far as one large kernel, with fewer weights and more
ReLUs between.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base


class Stack(NamedTuple):
    """``layers`` convolutions 3x3 against one of the same receptive field, both from C to C channels, biases
    left out.
    """

    layers: int
    field: int
    stacked: int
    single: int

    @property
    def saving(self) -> float:
        return 1 - self.stacked / self.single


def stack(layers: int, channels: int = 512) -> Stack:
    """n layers see 2n + 1 pixels each way and hold 9n C^2 weights; one layer of that size holds (2n + 1)^2
    C^2.
    """
    field = 2 * layers + 1
    return Stack(layers, field, 9 * layers * channels**2, field**2 * channels**2)


def receptive_field(height: int = 330) -> go.Figure:
    """Which input pixels reach one output pixel through one, two and three 3x3 layers."""
    ring = np.maximum(*np.abs(np.mgrid[-3:4, -3:4])).clip(1, 3)
    drawn = base.figure(
        "What one output pixel sees of the input",
        height,
        showlegend=False,
        margin={"l": 12, "r": 12, "t": 46, "b": 12},
    )
    drawn.add_heatmap(
        z=ring.astype(np.uint8),
        zmin=1,
        zmax=3,
        colorscale=[[0, theme.ACCENT], [0.5, "var(--more-1)"], [1, theme.CONV]],
        showscale=False,
        xgap=3,
        ygap=3,
        customdata=2 * ring + 1,
        hovertemplate="reached through %{z} layers of 3 × 3<extra></extra>",
    )
    for layers, y in ((1, 3), (2, 5), (3, 6)):
        color = theme.PAPER if layers < 3 else theme.INK
        under = {1: theme.ACCENT, 2: "var(--more-1)", 3: theme.CONV}[layers]
        words = {
            1: "<b>3 × 3</b><br>one layer",
            2: "<b>5 × 5</b> two layers",
            3: "<b>7 × 7</b> three layers",
        }[layers]
        drawn.add_annotation(
            text=words,
            x=3,
            y=y,
            showarrow=False,
            font={"color": color, "size": 13},
            bgcolor=under,
            borderpad=2,
        )
    hidden = {"visible": False, "fixedrange": True}
    drawn.update_layout(
        xaxis={**hidden, "constrain": "domain"}, yaxis={**hidden, "scaleanchor": "x", "constrain": "domain"}
    )
    return drawn


def parameters(channels: int = 512, height: int = 330) -> go.Figure:
    """Weights of two and three stacked 3x3 layers against one 5x5 and one 7x7."""
    title = f"Weights for the same view, {channels} channels in and out"
    drawn = base.figure(
        title, height, showlegend=False, margin={"l": 12, "r": 60, "t": 46, "b": 34}, bargap=0.35
    )
    stacks = [stack(2, channels), stack(3, channels)]
    names, values, colors, words, short = [], [], [], [], []
    for s in stacks:
        names += [f"one {s.field} × {s.field}", f"{'two' if s.layers == 2 else 'three'} 3 × 3"]
        values += [s.single, s.stacked]
        colors += [theme.LINE, theme.ACCENT]
        words += [
            f"{s.field**2} C² = {formatting.number(s.single)}",
            f"{9 * s.layers} C² = {formatting.number(s.stacked)} · {formatting.percent(round(s.saving, 2))} "
            "fewer",
        ]
        short += [f"{s.field**2} C²", f"{9 * s.layers} C² · {formatting.percent(round(s.saving, 2))} fewer"]
    drawn.add_bar(
        x=values[::-1],
        y=names[::-1],
        orientation="h",
        marker={"color": colors[::-1]},
        text=words[::-1],
        textposition="auto",
        insidetextanchor="start",
        textfont={"size": 13},
        insidetextfont={"color": [theme.PAPER if c == theme.ACCENT else theme.INK for c in colors[::-1]]},
        outsidetextfont={"color": theme.INK},
        hovertemplate="%{y}: %{x:,} weights<extra></extra>",
        meta={"narrow": {"text": short[::-1]}},
    )
    drawn.update_xaxes(
        showgrid=False, zeroline=False, showticklabels=False, showline=False, ticks="", fixedrange=True
    )
    drawn.update_yaxes(automargin=True, fixedrange=True, showgrid=False, tickfont={"size": 13}, ticks="")
    drawn.add_shape(
        type="line",
        x0=0,
        x1=1,
        xref="paper",
        y0=1.5,
        y1=1.5,
        line={"color": theme.LINE, "width": 1, "dash": "dot"},
    )
    return drawn
