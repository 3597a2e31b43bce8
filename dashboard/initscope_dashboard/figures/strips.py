"""One quantity by depth for many networks at once: a strip a network, from its first layer to its last,
coloured by magnitude.

Tells apart a network whose gradient dies on its way back (a strip that darkens to the left) from one that
shortcuts or normalisation keep alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from initscope.schema import COLUMN
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base, heatmap

COLUMNS = 120
"""Cells of a strip: more than the layers of any network here, so that each has at least one."""
SIDE_BRANCHES = ("aux",)
"""First letters of layers that lie beside the way from input to output: GoogLeNet's auxiliary classifiers."""


class Strip(NamedTuple):
    """A network's layers, nearest the input first, with the median over its runs."""

    label: str
    layers: list[str]
    values: np.ndarray


def strip(label: str, frames: Sequence[pd.DataFrame], metric: str) -> Strip | None:
    """The median over runs of ``metric`` at their first recorded step; None if no run has rows."""
    columns = []
    for frame in frames:
        if frame.empty:
            continue
        rows = frame[frame["step"] == frame["step"].iloc[0]].sort_values("depth", kind="stable")
        on_path = rows[~rows["layer"].astype(str).str.startswith(SIDE_BRANCHES)]
        columns.append(pd.Series(on_path[metric].to_numpy(np.float64), index=on_path["layer"].astype(str)))
    if not columns:
        return None
    layers = list(columns[0].index)
    return Strip(label, layers, np.median([column.reindex(layers).to_numpy() for column in columns], axis=0))


def limits(groups: Sequence[Sequence[Strip]]) -> tuple[int, int]:
    """One colour range for several figures: whole decades around every positive value."""
    values = [one.values for strips in groups for one in strips]
    with np.errstate(divide="ignore", invalid="ignore"):
        return base.decade_limits(np.log10(np.concatenate(values)) if values else np.empty(0))


def strips(
    rows: Sequence[Strip],
    metric: str,
    *,
    title: str = "",
    limits_: tuple[int, int] | None = None,
    order: Sequence[str] = (),
) -> go.Figure:
    """Strips from top to bottom in ``order`` (else as given); input at the left. An exact zero has its own
    colour, NaN stays empty.
    """
    title = title or COLUMN[metric].title
    if not rows:
        return base.blank(title, "Appears with the first recorded step.")
    labels = [label for label in order if label in {one.label for one in rows}] or [one.label for one in rows]
    by_label = {one.label: one for one in rows}
    low, high = limits_ or limits([rows])
    z = np.full((len(labels), COLUMNS), np.nan, np.float32)
    words = np.full(z.shape, "", dtype=object)
    for i, label in enumerate(labels):
        one = by_label[label]
        index = np.arange(COLUMNS) * len(one.layers) // COLUMNS
        with np.errstate(divide="ignore", invalid="ignore"):
            z[i] = np.log10(one.values)[index]
        words[i] = [
            f"{formatting.escape(one.layers[k])}, layer {k + 1} of {len(one.layers)}: "
            f"{formatting.number(one.values[k])}"
            for k in index
        ]
    drawn = base.figure(title, base.TOP + 70 + 34 * len(labels))
    drawn.add_heatmap(
        z=np.where(np.isneginf(z), np.nan, z),
        x=np.linspace(0, 100, COLUMNS),
        y=list(range(len(labels))),
        zmin=low,
        zmax=high,
        ygap=4,
        colorscale=theme.SEQUENTIAL,
        colorbar=heatmap.color_bar(COLUMN[metric].title, low, high, False),
        text=words,
        hovertemplate="%{text}<extra></extra>",
    )
    zeros = np.isneginf(z)
    if zeros.any():
        drawn.add_heatmap(
            z=np.where(zeros, 1, np.nan).astype(np.float32),
            x=np.linspace(0, 100, COLUMNS),
            y=list(range(len(labels))),
            showscale=False,
            ygap=4,
            colorscale=[[0, theme.ZERO], [1, theme.ZERO]],
            text=words,
            hovertemplate="%{text}<extra></extra>",
        )
    drawn.update_xaxes(
        title={"text": "input → output, share of the network's layers", "standoff": 4},
        tickvals=[0, 50, 100],
        range=[-0.5, 100.5],
        ticktext=["first", "half way", "last"],
        showgrid=False,
        zeroline=False,
    )
    drawn.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[_wrapped(label) for label in labels],
        autorange="reversed",
        automargin=True,
        showgrid=False,
        zeroline=False,
    )
    return drawn


def _wrapped(label: str) -> str:
    return formatting.escape(label).replace(" without ", "<br>without ").replace(" with ", "<br>with ")
