"""Every layer (input at the bottom, output at the top) over all steps, coloured by magnitude.

Tells apart a gradient that never reaches the first layers from one that is small everywhere, and shows when
it changed. An exact zero and a NaN are colours of their own: neither has a place on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from initscope.schema import COLUMN, SELDOM
from initscope.store.grid import Grid
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.content.formatting import LINEAR_METRICS
from initscope_dashboard.figures import base

METRICS = (
    "grad_norm",
    "grad_rms",
    "update_ratio",
    "signal_std",
    "activation_grad_rms",
    "dead_fraction",
    "stable_rank",
)
"""Metrics worth a map, the usual one first."""

COLUMNS = 700
"""Columns a map keeps: about one for every two pixels of a wide screen."""

CELLS = 120_000
"""Cells a map of many layers keeps: it then has fewer columns, but never fewer than ``FEWEST``."""
FEWEST = 120

FAR = 1.0
"""Decades from its column's median at which a single value is shown instead of it, if it lies far outside the
others.
"""
FAR_SHARE = 0.25
"""The same for shares."""


class Cells(NamedTuple):
    """A map: one row a layer (nearest the input first), one column for every ``per`` recorded steps.

    ``z`` is log10 of the value (the value itself if ``linear``), NaN where there is none; ``zero`` and
    ``bad`` mark exact zeros and NaN or infinities. ``moments`` holds (step, values of the layers) at the
    first, middle and last recorded step. ``notes`` says of each row what it stands for beside its layer,
    ``shown`` what the axis calls it.
    """

    metric: str
    layers: list[str]
    steps: np.ndarray
    z: np.ndarray
    zero: np.ndarray
    bad: np.ndarray
    per: int
    linear: bool
    moments: tuple[tuple[int, np.ndarray], ...] = ()
    notes: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


def columns_for(layers: int, most: int = COLUMNS) -> int:
    """How many columns a map of so many layers keeps."""
    return max(min(most, FEWEST), min(most, CELLS // max(1, layers)))


def matrix(frame: pd.DataFrame, metric: str) -> Grid:
    """The tidy rows as a table of layers x steps."""
    layers = base.layers_in_order(frame)
    steps, column = np.unique(frame["step"].to_numpy(), return_inverse=True)
    row = pd.Categorical(frame["layer"].astype(str), categories=layers).codes
    values = np.full((len(layers), len(steps)), np.nan, np.float32)
    present = np.zeros(values.shape, bool)
    values[row, column] = frame[metric].to_numpy(dtype=np.float32)
    # pandas reads "not measured" (null) as NaN too: it is one only where the row says that something was not
    # finite.
    broken = (
        frame["nonfinite"].to_numpy() > 0
        if "nonfinite" in frame
        else np.full(len(frame), metric not in LINEAR_METRICS)
    )
    present[row, column] = ~np.isnan(values[row, column]) | broken
    return Grid(layers, np.arange(len(layers)), steps, values, present)


def binned(
    values: np.ndarray, present: np.ndarray, per: int, linear: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(z, zero, bad) with ``per`` columns made one: the median, or the one value that lies far outside the
    others; bad if any of them is, zero if more than half are.
    """
    rows, n = values.shape
    width = -(-n // per)
    pad = ((0, 0), (0, width * per - n))
    v = np.pad(values, pad, constant_values=np.nan).reshape(rows, width, per)
    here = np.pad(present, pad).reshape(rows, width, per)
    finite = np.isfinite(v)
    bad = (here & ~finite).any(axis=2)
    if linear:
        usable = here & finite
        zero = np.zeros(bad.shape, bool)
    else:
        zeros = (here & (v == 0)).sum(axis=2)
        zero = (2 * zeros > here.sum(axis=2)) & ~bad
        usable = here & finite & (v > 0)
    z = _typical(np.where(usable, v, np.nan), usable.sum(axis=2), linear)
    z[zero | bad] = np.nan
    return z.astype(np.float32), zero, bad


def _typical(v: np.ndarray, n: np.ndarray, linear: bool) -> np.ndarray:
    """The median of the ``n`` numbers along the last axis (others are NaN), NaN for none. A value beyond
    Tukey's outer fence (three interquartile ranges outside the quartiles) and ``FAR`` from the median is
    shown in its place: a spike of one step in a thousand stays visible. Medians and distances are of log10
    unless ``linear``.
    """

    def scale(x: np.ndarray) -> np.ndarray:
        return x if linear else np.log10(x)

    with np.errstate(divide="ignore", invalid="ignore"):
        if v.shape[2] == 1:
            return scale(v[:, :, 0])
        ordered = np.sort(v, axis=2)  # NaN last

        def at(index: np.ndarray) -> np.ndarray:
            return scale(
                np.take_along_axis(ordered, np.clip(index, 0, v.shape[2] - 1)[..., None], 2)[..., 0].astype(
                    np.float64
                )
            )

        middle = (at((n - 1) // 2) + at(n // 2)) / 2
        low, high, least, most = at(-(-(n - 1) // 4)), at(3 * (n - 1) // 4), at(np.zeros_like(n)), at(n - 1)
        fence, far = 3 * np.maximum(high - low, 0), FAR_SHARE if linear else FAR
        above = (most > high + fence) & (most - middle > far)
        below = (least < low - fence) & (middle - least > far)
        spike = np.where(above & ~(below & (middle - least > most - middle)), most, least)
        return np.where(n > 0, np.where(above | below, spike, middle), np.nan)


def reduced(grids: Iterable[Grid], metric: str, total: int, columns: int | None = None) -> Cells | None:
    """The map of a run that comes in pieces, ``total`` rows (a layer and a step each) in all. None if nothing
    comes.
    """
    linear = metric in LINEAR_METRICS
    row: dict[str, int] = {}
    depth: dict[str, int] = {}
    done: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    moments: dict[int, tuple[int, list[str], np.ndarray]] = {}
    seen, per, steps, rest = 0, 0, 0, None
    last: Grid | None = None
    for grid in grids:
        last = grid
        for name, at in zip(grid.layers, grid.depths, strict=True):
            row.setdefault(name, len(row))
            depth.setdefault(name, int(at))
        steps = steps or max(1, total // len(row))
        per = per or -(-steps // (columns or columns_for(len(row))))
        for wanted in (0, steps // 2):
            if seen <= wanted < seen + len(grid.steps):
                moments[wanted] = (int(grid.steps[wanted - seen]), grid.layers, grid.values[:, wanted - seen])
        seen += len(grid.steps)
        piece = _spread(grid, row, rest)
        whole = len(piece.steps) - len(piece.steps) % per
        if whole:
            done.append(
                (
                    piece.steps[:whole:per],
                    *binned(piece.values[:, :whole], piece.present[:, :whole], per, linear),
                )
            )
        rest = piece._replace(
            steps=piece.steps[whole:], values=piece.values[:, whole:], present=piece.present[:, whole:]
        )
    if last is None or rest is None:
        return None
    if len(rest.steps):
        done.append((rest.steps[:1], *binned(rest.values, rest.present, per, linear)))
    moments[seen] = (int(last.steps[-1]), last.layers, last.values[:, -1])
    names = sorted(row, key=lambda name: (depth[name], row[name]))
    order = [row[name] for name in names]
    z, zero, bad = (
        np.concatenate([_grown(part[k], len(row)) for part in done], axis=1)[order] for k in (1, 2, 3)
    )
    at = np.concatenate([part[0] for part in done]).astype(np.int32)
    return Cells(
        metric,
        names,
        at,
        z,
        zero,
        bad,
        per,
        linear,
        tuple(_moment(*moments[key], names) for key in sorted(moments)),
    )


def _spread(grid: Grid, row: Mapping[str, int], rest: Grid | None) -> Grid:
    """``grid`` with its layers in the rows that ``row`` says, after what the last piece left over."""
    if list(row) == grid.layers:
        values, present = grid.values, grid.present
    else:
        values = np.full((len(row), len(grid.steps)), np.nan, np.float32)
        present = np.zeros(values.shape, bool)
        rows = [row[name] for name in grid.layers]
        values[rows], present[rows] = grid.values, grid.present
    if rest is None or not len(rest.steps):
        return Grid(list(row), grid.depths, grid.steps, values, present)
    before = (_grown(rest.values, len(row)), _grown(rest.present, len(row)))
    steps = np.concatenate([rest.steps, grid.steps])
    return Grid(
        list(row),
        grid.depths,
        steps,
        np.concatenate([before[0], values], axis=1),
        np.concatenate([before[1], present], axis=1),
    )


def _grown(part: np.ndarray, rows: int) -> np.ndarray:
    """``part`` with empty rows for the layers that joined after it."""
    if len(part) == rows:
        return part
    empty = np.full((rows - len(part), part.shape[1]), False if part.dtype == bool else np.nan, part.dtype)
    return np.concatenate([part, empty])


def _moment(
    step: int, layers: Sequence[str], values: np.ndarray, names: Sequence[str]
) -> tuple[int, np.ndarray]:
    known = dict(zip(layers, values, strict=True))
    return step, np.array([known.get(name, np.nan) for name in names], np.float64)


def heatmap_data(
    frame: pd.DataFrame | None, metric: str = "grad_norm", columns: int | None = None
) -> Cells | None:
    """The map of one run's ``layers`` table, None if it has no rows."""
    if frame is None or frame.empty:
        return None
    grid = matrix(frame, metric)
    return reduced([grid], metric, len(grid.steps) * len(grid.layers), columns)


def shared_limits(maps: Sequence[Cells | None]) -> tuple[float, float]:
    """One colour range for several maps: whole decades around all of them, 0 to 1 for a share."""
    there = [cells for cells in maps if cells is not None]
    if there and there[0].linear:
        return 0, 1
    return base.decade_limits(np.concatenate([cells.z.ravel() for cells in there]) if there else np.empty(0))


def heatmap(
    cells: Cells | None,
    *,
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    colorbar: bool = True,
) -> go.Figure:
    """Draw a map. ``limits``: the colour range (see ``shared_limits``); ``title`` is escaped here."""
    metric = COLUMN[cells.metric].title if cells else COLUMN[METRICS[0]].title
    heading = formatting.escape(title) if title else metric
    if cells is None:
        return base.blank(heading, "No layer rows yet: they appear with the first recorded step.")
    low, high = limits or shared_limits([cells])
    drawn = base.figure(heading, base.layer_height(cells.layers))
    drawn.add_heatmap(
        z=cells.z,
        x=cells.steps,
        y=cells.layers,
        zmin=low,
        zmax=high,
        colorscale=theme.SEQUENTIAL,
        showscale=colorbar,
        colorbar=color_bar(metric, low, high, cells.linear),
        **hover(cells, metric, "share" if cells.linear else "log10"),
    )
    special(drawn, cells, cells.zero, theme.ZERO, "exact zero")
    special(drawn, cells, cells.bad, theme.NONFINITE, "NaN or infinite")
    finish(drawn, cells)
    return drawn


def hover(cells: Any, what: str, kind: str) -> dict[str, Any]:
    """Hover text of a map: the browser writes it from z and the row's full name, whatever the axis calls
    it.
    """
    meta = {
        "text": kind,
        "what": what,
        "around": _around(cells.per),
        **({"notes": list(cells.notes)} if cells.notes else {}),
    }
    return {"hovertemplate": "%{text}<extra></extra>", "meta": meta}


def color_bar(title: str, low: float, high: float, linear: bool) -> dict[str, Any]:
    """A slim bar over the plot; ticks are powers of ten."""
    if linear:
        at, words = [0, 0.25, 0.5, 0.75, 1], [formatting.percent(v) for v in (0, 0.25, 0.5, 0.75, 1)]
    else:
        at, words = base.power_ticks(low, high, most=6)
    return {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yanchor": "bottom",
        "ypad": 4,
        "xpad": 0,
        "len": 1,
        "thickness": 8,
        "tickvals": at,
        "ticktext": words,
        "ticks": "",
        "ticklabelposition": "outside top",
        "ticklabeloverflow": "allow",
        "outlinewidth": 0,
        "tickfont": {"size": 12},
    }


def special(drawn: go.Figure, cells: Any, mask: np.ndarray, color: str, name: str) -> None:
    """Paint the cells of ``mask`` in one colour and name it in the legend; nothing if there are none."""
    if not mask.any():
        return
    drawn.add_heatmap(
        z=np.where(mask, 1, np.nan).astype(np.float32),
        x=cells.steps,
        y=cells.layers,
        zmin=0,
        zmax=1,
        colorscale=[[0, color], [1, color]],
        showscale=False,
        **hover(cells, name, "mark"),
    )
    drawn.add_scatter(
        x=[None],
        y=[cells.layers[0]],
        mode="markers",
        marker={"symbol": "square", "size": 12, "color": color},
        name=name,
        hoverinfo="skip",
        showlegend=True,
    )


def finish(drawn: go.Figure, cells: Any) -> None:
    """Axes, block lines and the note on reduction that all maps share."""
    layers = cells.layers
    seldom = cells.metric in SELDOM
    kind = "such" if seldom else "recorded"
    words = (
        f"step{' · one recorded step in a hundred' if seldom else ''}"
        if cells.per == 1
        else f"step · each column: median of {cells.per:,} {kind} steps, spikes kept"
    )
    drawn.update_layout(
        shapes=base.block_lines(layers, "y", theme.PAPER, 2 if len(layers) <= base.READABLE else 1),
        hovermode="closest",
        margin={"l": 68, "t": 66, "r": 18},
        meta=base.names_axis("yaxis", layers, cells.shown),
    )
    drawn.update_xaxes(
        title={"text": words, "standoff": 14},
        showgrid=False,
        zeroline=False,
        automargin=True,
        ticks="outside",
        ticklen=4,
    )
    drawn.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=layers,
        range=[-0.5, len(layers) - 0.5],
        dtick=1 if len(layers) <= base.READABLE else None,
        showgrid=False,
        zeroline=False,
        automargin=True,
    )


def _around(per: int) -> str:
    return "" if per == 1 else f" and the next {per - 1:,}"


def layer_table(cells: Cells) -> pd.DataFrame:
    """The metric at the first, middle and last recorded step, a row a layer, the input first."""
    return pd.DataFrame(
        {"layer": cells.layers, **{f"step {step:,}": values for step, values in cells.moments}}
    )
