"""Loss over seeds: the median and the whole range, one colour an initialization or side of a comparison.

Tells apart a lucky seed from a property of the initialization: where bands do not touch, no seed crossed
over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from initscope.config.catalog import init_title
from initscope.schema import COLUMN
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base, curves

POINTS = 300


class Band(NamedTuple):
    """Median, lowest and highest value over runs, at each step; ``runs`` counts them."""

    init: str
    steps: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    runs: int


def bands_data(groups: Mapping[str, Sequence[pd.DataFrame]], column: str = "loss") -> list[Band]:
    """One band a group, over the steps that at least half of its runs have recorded; a group without rows is
    left out.

    Half: a run that has just begun, or ended early, cuts nobody off, and one run alone is not drawn as what
    all do.
    """
    found = []
    for init, frames in groups.items():
        usable = [frame for frame in frames if len(frame)]
        if not usable:
            continue
        recorded, times = np.unique(
            np.concatenate([frame["step"].to_numpy() for frame in usable]), return_counts=True
        )
        steps = recorded[2 * times >= len(usable)]
        steps = steps[:: -(-len(steps) // POINTS)] if len(steps) else steps
        values = np.array(
            [
                frame.drop_duplicates("step").set_index("step")[column].reindex(steps).to_numpy(np.float64)
                for frame in usable
            ]
        )
        values = np.where(np.isfinite(values), values, np.nan)
        told = ~np.isnan(values).all(axis=0)
        if not told.any():
            continue
        steps, values = steps[told], values[:, told]
        with np.errstate(invalid="ignore"):
            low, median, high = (f(values, axis=0) for f in (np.nanmin, np.nanmedian, np.nanmax))
        found.append(Band(init, steps, low, median, high, len(usable)))
    return found


def bands(
    groups: Mapping[str, Sequence[pd.DataFrame]], column: str = "loss", *, classes: int | None = None
) -> go.Figure:
    """Draw the bands, with the guess among ``classes`` (ln K or 1/K) as a reference line."""
    title = f"{COLUMN[column].title} over seeds: median and range"
    data = bands_data(groups, column)
    if not data:
        return base.blank(title, "Appears with the first recorded steps.")
    drawn = base.figure(title, 360)
    for band, color in zip(data, theme.group_colors([band.init for band in data]), strict=True):
        common = {
            "x": band.steps.astype(np.int32),
            "legendgroup": band.init,
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
        }
        drawn.add_scatter(y=band.low.astype(np.float32), line={"color": color, "width": 0}, **common)
        drawn.add_scatter(
            y=band.high.astype(np.float32),
            line={"color": color, "width": 0},
            fill="tonexty",
            fillcolor=theme.soft(color),
            **common,
        )
        drawn.add_scatter(
            x=band.steps.astype(np.int32),
            y=band.median.astype(np.float32),
            mode="lines",
            line={"color": color, "width": 2},
            name=f"{formatting.escape(init_title(band.init))} ({band.runs})",
            legendgroup=band.init,
            hovertemplate="%{fullData.name}: %{y:.3g}<extra></extra>",
        )
    drawn.update_xaxes(title={"text": "step", "standoff": 6}, rangemode="tozero", automargin=True)
    if column == "loss" and not classes:
        drawn.update_yaxes(title={"text": curves.loss_title(classes)})
    elif column == "loss":
        highest = max(float(np.nanmax(band.high)) for band in data)
        top = min(highest * 1.05, 3 * math.log(classes)) if highest > 0 else 1.0
        drawn.update_yaxes(
            range=[0, max(top, 1.15 * math.log(classes))], title={"text": curves.loss_title(classes)}
        )
        curves.reference(
            drawn, math.log(classes), f"ln {classes} = {math.log(classes):.3f}: a guess", False, above=True
        )
    else:
        curves.accuracy_axis(drawn, classes)
    return drawn
