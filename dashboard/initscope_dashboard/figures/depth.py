"""The value of every layer at the first step, by depth, for several runs.

Tells apart initializations before any training: a flat line keeps its scale through the network, a slope of
one decade every two layers has lost the gradient at the first of sixteen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from initscope.schema import COLUMN
from initscope_dashboard.browser import theme
from initscope_dashboard.figures import base, layer_values
from initscope_dashboard.figures.base import Subject


def depth(
    subjects: Sequence[Subject],
    frames: Mapping[str, pd.DataFrame],
    metric: str = "grad_norm",
    *,
    height: int = 420,
    relative: bool = False,
) -> go.Figure:
    """Lines with markers, input at the left; an exact zero is an open circle on the lower edge, NaN a cross
    on the upper.

    ``relative``: by the share of each network's layers, for networks whose layers have no namesake in the
    other.
    """
    title = f"{COLUMN[metric].title} by depth at the first step"
    data = layer_values.first(subjects, frames, metric)
    if not data:
        return base.blank(title, "Appears with the first recorded step.", height)
    layers = list(dict.fromkeys(name for run in data for name in run.layers))
    everything = np.concatenate([run.values for run in data])
    low, high, zeros, bad = base.edges(everything)
    named = (
        {}
        if relative
        else {
            "shapes": base.block_lines(layers, "x"),
            "meta": {"narrow": {"xaxis.tickangle": 90}, **base.names_axis("xaxis", layers)},
        }
    )
    drawn = base.figure(title, height, hovermode="closest", **named)
    looks = theme.styles(run.subject.init for run in data)
    for run, name, look in zip(data, base.labels([run.subject for run in data]), looks, strict=True):
        placed, symbols = base.pinned(run.values, low, high)
        drawn.add_scatter(
            x=np.linspace(0, 100, len(run.layers)).astype(np.float32) if relative else run.layers,
            y=placed,
            mode="lines+markers",
            name=name,
            opacity=look.opacity,
            line={"color": look.color, "width": 2, "dash": look.dash},
            marker={
                "color": look.color,
                "size": 8 if len(layers) <= base.READABLE else 5,
                "symbol": [look.symbol if s == "circle" else s for s in symbols],
            },
            text=[f"{v:.3g}" for v in run.values],
            hovertemplate="%{customdata}: %{text}<extra>%{fullData.name}</extra>",
            customdata=run.layers,
        )
    if relative:
        drawn.update_xaxes(
            title={"text": "input → output, share of each network's layers", "standoff": 4},
            ticksuffix=" %",
            range=[-2, 102],
            showgrid=False,
        )
    else:
        drawn.update_xaxes(
            type="category",
            categoryorder="array",
            categoryarray=layers,
            dtick=1 if len(layers) <= base.READABLE else None,
            automargin=True,
            tickangle=-45,
            showgrid=False,
            title={"text": "input → output", "standoff": 4},
        )
    drawn.update_yaxes(**base.log_axis(COLUMN[metric].title.lower(), low, high, zeros, bad))
    return drawn
