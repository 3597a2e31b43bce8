"""The story's two pictures: a signal on its way through the layers by theory, and when trainings left
chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from initscope.config.catalog import init_title
from initscope.schema import COLUMN
from initscope_dashboard.browser import theme
from initscope_dashboard.content import story
from initscope_dashboard.figures import base

RATES = {1e-3: "circle", 3e-4: "square", 1e-4: "diamond"}
ARROWS = {"signal_std": "forward: input → output", "activation_grad_rms": "backward: input ← output"}


def journey(rows: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> go.Figure:
    """``rows``: {initialization: theory's rows, one a layer}. Flat: the scale is kept. A slope: lost or
    blown up.
    """
    title = f"{COLUMN[metric].title}, {ARROWS[metric]}"
    layers = [row["layer"] for row in next(iter(rows.values()))]
    values = {init: np.array([row[metric] or np.nan for row in one], float) for init, one in rows.items()}
    known = np.concatenate(list(values.values()))
    low, high = base.decade_limits(np.log10(known[np.isfinite(known) & (known > 0)]))
    drawn = base.figure(title, 380, shapes=base.block_lines(layers, "x"), **_names(layers))
    for init, at in values.items():
        drawn.add_scatter(
            x=layers,
            y=at,
            mode="lines+markers",
            name=init_title(init),
            line={"color": theme.init_color(init), "width": 2},
            marker={"symbol": theme.init_symbol(init), "size": 7},
            customdata=[f"{value:.2g}" for value in at],
            hovertemplate="%{x}: %{customdata}<extra>" + init_title(init) + "</extra>",
        )
    drawn.update_xaxes(type="category", tickangle=90, automargin=True)
    drawn.update_layout(margin={"b": 110})
    drawn.update_yaxes(**base.log_axis("", low, high))
    return drawn


def _names(layers: Sequence[str]) -> dict[str, Any]:
    return {"meta": {"narrow": {"xaxis.tickangle": 90}, **base.names_axis("xaxis", layers)}}


def left_chance(cells: Sequence[story.Cell]) -> go.Figure:
    """A mark a training at the step at which it left chance; an open one at the right where it had not."""
    inits = list(dict.fromkeys(cell.init for cell in cells))
    most = max(cell.steps for cell in cells)
    drawn = base.figure("Steps until it leaves chance", base.TOP + 130 + 40 * len(inits))
    for rate, symbol in RATES.items():
        mine = [cell for cell in cells if cell.learning_rate == rate]
        drawn.add_scatter(
            x=[cell.left_at or cell.steps for cell in mine],
            y=[init_title(cell.init) for cell in mine],
            mode="markers",
            name=f"learning rate {rate:g}",
            legendgroup=symbol,
            showlegend=False,
            marker={
                "color": [theme.init_color(cell.init) for cell in mine],
                "symbol": [symbol if cell.left_at else f"{symbol}-open" for cell in mine],
                "size": 12,
                "line": {"width": 2, "color": [theme.init_color(cell.init) for cell in mine]},
            },
            customdata=[
                f"seed {cell.seed}: "
                + (f"step {cell.left_at}" if cell.left_at else f"not within {cell.steps}")
                for cell in mine
            ],
            hovertemplate="%{y}, %{customdata}<extra>%{fullData.name}</extra>",
        )
        drawn.add_scatter(  # the legend's marks: of no initialization's colour
            x=[None],
            y=[init_title(inits[0])],
            mode="markers",
            name=f"learning rate {rate:g}",
            legendgroup=symbol,
            marker={"symbol": symbol, "size": 11, "color": theme.MUTED},
        )
    drawn.update_layout(margin={"b": 92})
    drawn.update_xaxes(
        type="log",
        range=[np.log10(15), np.log10(1.15 * most)],
        tickvals=[20, 50, 100, 200, 400],
        title={"text": f"optimizer steps; open: not within {most}"},
    )
    drawn.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[init_title(init) for init in inits[::-1]],
        automargin=True,
    )
    return drawn
