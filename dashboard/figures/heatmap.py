"""Every layer (input at the bottom, output at the top) over all steps, coloured by magnitude.

Tells apart a gradient that never reaches the first layers from one that is small everywhere, and shows when it changed.
An exact zero and a NaN are colours of their own: neither has a place on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from core.schema import COLUMN
from dashboard import text, theme
from dashboard.figures import base

METRICS = ("grad_norm", "grad_rms", "update_ratio", "signal_std", "activation_grad_rms", "dead_fraction")
"""Metrics worth a map, the usual one first."""

LINEAR = frozenset({"dead_fraction"})
"""Shares from 0 to 1; all others are magnitudes on a logarithmic scale."""

COLUMNS = 700
"""Columns a map keeps: about one for every two pixels of a wide screen."""


class Cells(NamedTuple):
    """A map: one row a layer (nearest the input first), one column for every ``per`` recorded steps.

    ``z`` is log10 of the value (the value itself if ``linear``), NaN where there is none; ``zero`` and ``bad`` mark
    exact zeros and NaN or infinities.
    """

    metric: str
    layers: list[str]
    steps: np.ndarray
    z: np.ndarray
    zero: np.ndarray
    bad: np.ndarray
    per: int
    linear: bool


def matrix(frame: pd.DataFrame, metric: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(layers, steps, values of shape (layers, steps), present): the tidy rows as a table."""
    layers = base.layers_in_order(frame)
    steps, column = np.unique(frame["step"].to_numpy(), return_inverse=True)
    row = pd.Categorical(frame["layer"].astype(str), categories=layers).codes
    values = np.full((len(layers), len(steps)), np.nan, np.float32)
    present = np.zeros(values.shape, bool)
    values[row, column] = frame[metric].to_numpy(dtype=np.float32)
    # pandas reads "not measured" (null) as NaN too: it is one only where the row says that something was not finite.
    broken = frame["nonfinite"].to_numpy() > 0 if "nonfinite" in frame else np.full(len(frame), metric not in LINEAR)
    present[row, column] = ~np.isnan(values[row, column]) | broken
    return layers, steps, values, present


def binned(values: np.ndarray, present: np.ndarray, per: int, linear: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(z, zero, bad) with ``per`` columns made one: the median; bad if any of them is, zero if more than half are."""
    rows, n = values.shape
    width = -(-n // per)
    pad = ((0, 0), (0, width * per - n))
    v = np.pad(values, pad, constant_values=np.nan).reshape(rows, width, per)
    here = np.pad(present, pad).reshape(rows, width, per)
    bad = (here & ~np.isfinite(v)).any(axis=2)
    zeros = (here & (v == 0)).sum(axis=2)
    zero = (2 * zeros > here.sum(axis=2)) & ~bad & (not linear)
    usable = here & np.isfinite(v) & ((v > 0) | linear)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(usable, v if linear else np.log10(np.where(usable, v, 1)), np.nan)
    z = _median(z)
    z[zero | bad] = np.nan
    return z.astype(np.float32), zero, bad


def _median(z: np.ndarray) -> np.ndarray:
    """``np.nanmedian`` along the last axis without its warning for empty cells."""
    if z.shape[2] == 1:
        return z[:, :, 0].copy()
    ordered = np.sort(z, axis=2)  # NaN last
    n = np.isfinite(ordered).sum(axis=2)
    low = np.take_along_axis(ordered, np.maximum(0, (n - 1) // 2)[..., None], 2)[..., 0]
    high = np.take_along_axis(ordered, (n // 2)[..., None], 2)[..., 0]
    return np.where(n > 0, (low + high) / 2, np.nan)


def heatmap_data(frame: pd.DataFrame | None, metric: str = "grad_norm", columns: int = COLUMNS) -> Cells | None:
    """The map of one run's ``layers`` table, None if it has no rows."""
    if frame is None or frame.empty:
        return None
    layers, steps, values, present = matrix(frame, metric)
    per = -(-len(steps) // columns)
    linear = metric in LINEAR
    z, zero, bad = binned(values, present, per, linear)
    return Cells(metric, layers, steps[::per].astype(np.int32), z, zero, bad, per, linear)


def shared_limits(maps: Sequence[Cells | None]) -> tuple[float, float]:
    """One colour range for several maps: whole decades around all of them, 0 to 1 for a share."""
    there = [cells for cells in maps if cells is not None]
    if there and there[0].linear:
        return 0, 1
    return base.decade_limits(np.concatenate([cells.z.ravel() for cells in there]) if there else np.empty(0))


def heatmap(
    cells: Cells | None, *, title: str | None = None, limits: tuple[float, float] | None = None, colorbar: bool = True
) -> go.Figure:
    """Draw a map. ``limits``: the colour range (see ``shared_limits``); ``title`` is escaped here."""
    metric = COLUMN[cells.metric].title if cells else COLUMN[METRICS[0]].title
    heading = text.escape(title) if title else metric
    if cells is None:
        return base.blank(heading, "No layer rows yet: they appear with the first recorded step.")
    low, high = limits or shared_limits([cells])
    drawn = base.figure(heading, base.layer_height(cells.layers))
    drawn.add_heatmap(
        z=cells.z, x=cells.steps, y=cells.layers, zmin=low, zmax=high, colorscale=theme.SEQUENTIAL, showscale=colorbar,
        colorbar=color_bar(metric, low, high, cells.linear), hovertemplate=_hover(metric, cells.per),
        meta={"text": "share" if cells.linear else "log10"},
    )
    special(drawn, cells.steps, cells.layers, cells.zero, theme.ZERO, "exact zero", cells.per)
    special(drawn, cells.steps, cells.layers, cells.bad, theme.NONFINITE, "NaN or infinite", cells.per)
    finish(drawn, cells.layers, cells.steps, cells.per)
    return drawn


def color_bar(title: str, low: float, high: float, linear: bool) -> dict[str, Any]:
    """A slim bar over the plot; ticks are powers of ten."""
    if linear:
        at, words = [0, 0.25, 0.5, 0.75, 1], [text.percent(v) for v in (0, 0.25, 0.5, 0.75, 1)]
    else:
        at, words = base.power_ticks(low, high, most=6)
    return {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "ypad": 4, "xpad": 0, "len": 1, "thickness": 8,
            "tickvals": at, "ticktext": words, "ticks": "", "ticklabelposition": "outside top", "ticklabeloverflow": "allow",
            "outlinewidth": 0, "tickfont": {"size": 12}}


def special(drawn: go.Figure, steps: np.ndarray, layers: list[str], mask: np.ndarray, color: str, name: str, per: int) -> None:
    """Paint the cells of ``mask`` in one colour and name it in the legend; nothing if there are none."""
    if not mask.any():
        return
    drawn.add_heatmap(
        z=np.where(mask, 1, np.nan).astype(np.float32), x=steps, y=layers, zmin=0, zmax=1, colorscale=[[0, color], [1, color]],
        showscale=False, hovertemplate=f"<b>%{{y}}</b> · step %{{x}}{_around(per)}<br>{name}<extra></extra>",
    )
    drawn.add_scatter(
        x=[None], y=[layers[0]], mode="markers", marker={"symbol": "square", "size": 12, "color": color}, name=name, hoverinfo="skip", showlegend=True
    )


def finish(drawn: go.Figure, layers: list[str], steps: np.ndarray, per: int) -> None:
    """Axes, block lines and the note on reduction that all maps share."""
    words = "step" if per == 1 else f"step · each column: median of {per} recorded steps"
    drawn.update_layout(
        shapes=base.block_lines(layers, "y", theme.PAPER, 2), hovermode="closest", margin={"l": 68, "t": 66, "r": 18},
    )
    drawn.update_xaxes(title={"text": words, "standoff": 14}, showgrid=False, zeroline=False, automargin=True, ticks="outside", ticklen=4)
    drawn.update_yaxes(type="category", categoryorder="array", categoryarray=layers, range=[-0.5, len(layers) - 0.5], dtick=1 if len(layers) <= 40 else None,
                       showgrid=False, zeroline=False, automargin=True)


def _around(per: int) -> str:
    return "" if per == 1 else f" and the next {per - 1}"


def _hover(metric: str, per: int) -> str:
    return f"<b>%{{y}}</b> · step %{{x}}{_around(per)}<br>{metric}: %{{text}}<extra></extra>"
