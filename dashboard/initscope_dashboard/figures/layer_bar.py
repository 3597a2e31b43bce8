"""Every layer's newest gradient norm, input at the bottom.

Tells apart a gradient that arrives at the input from one that dies on its way: healthy layers stand in one
column, a vanishing gradient is a slope to the left, a dead one an open circle on the edge.
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


def layer_bar(
    subjects: Sequence[Subject],
    frames: Mapping[str, pd.DataFrame],
    metric: str = "grad_norm",
    *,
    least_height: int = 380,
) -> go.Figure:
    """A dot a layer on a logarithmic axis, joined by a faint line; live rows move the dots."""
    title = f"{COLUMN[metric].title} of every layer, newest step"
    data = layer_values.newest(subjects, frames, metric)
    if not data:
        return base.blank(title, "Appears with the first recorded step.", least_height)
    layers = list(dict.fromkeys(name for run in data for name in run.layers))
    everything = np.concatenate([run.values for run in data])
    low, high, zeros, bad = base.edges(everything)
    drawn = base.figure(title, base.layer_height(layers, least_height), shapes=base.block_lines(layers, "y"))
    drawn.update_layout(hovermode="closest", margin={"l": 68}, meta=base.names_axis("yaxis", layers))
    size = 9 if len(layers) <= base.READABLE else 5
    looks = theme.styles(run.subject.init for run in data)
    names = base.labels([run.subject for run in data])
    for run, name, look in zip(data, names, looks, strict=True):
        placed, symbols = base.pinned(run.values, low, high)
        drawn.add_scatter(
            x=placed,
            y=run.layers,
            mode="lines+markers",
            name=name,
            opacity=look.opacity,
            line={"color": look.color, "width": 1, "dash": look.dash},
            marker={
                "color": look.color,
                "size": size,
                "symbol": [look.symbol if s == "circle" else s for s in symbols],
            },
            hovertemplate="%{customdata}: %{text}<extra>%{fullData.name}</extra>",
            text=[f"{v:.3g}" for v in run.values],
            customdata=run.layers,
            meta={"run": run.subject.run, "layers": metric, "symbol": look.symbol},
        )
    drawn.update_xaxes(**base.log_axis(COLUMN[metric].title.lower(), low, high, zeros, bad))
    drawn.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=layers,
        range=[-0.6, len(layers) - 0.4],
        dtick=1 if len(layers) <= base.READABLE else None,
        automargin=True,
    )
    return drawn
