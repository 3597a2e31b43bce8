"""Where in a plane of two settings the network trains: the share of seeds that converged, with the theory's
boundary.

Tells apart a setting that happens to work from one in the middle of a region that works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from initscope.theory.trainability import Edge, TheoryMap, score, shown, title
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base

ROW = 46
"""Pixels a line of the map is high."""
ASIDE = 0.27
"""How far from the boundary a cell's number keeps, in columns."""


def trainability(
    rows: Sequence[Mapping[str, Any]], x: str, y: str, *, heading: str = "", theory: TheoryMap | None = None
) -> go.Figure:
    """Rows of ``initscope.comparison.sweep.table`` over the fields ``x`` and ``y`` as a map of rates; cells
    not yet run stay empty.

    ``theory``: its boundary is drawn over the map, and the cells in which most runs ended otherwise are
    crossed.
    """
    heading = heading or "Share of seeds that converged"
    told = [row for row in rows if row["runs"]]
    if not told:
        return base.blank(heading, "Appears when the first run is decided: converged, or not.")
    columns, lines = _values(rows, x), _values(rows, y)
    z = np.full((len(lines), len(columns)), np.nan, np.float32)
    words = np.full(z.shape, "", dtype=object)
    for row in told:
        at = lines.index(row[y]), columns.index(row[x])
        z[at] = row["converged"] / row["runs"]
        words[at] = f"{row['converged']} of {row['runs']} converged"
    drawn = base.figure(heading, base.TOP + 126 + ROW * len(lines))
    drawn.add_heatmap(
        z=z,
        x=np.arange(len(columns)),
        y=np.arange(len(lines)),
        zmin=0,
        zmax=1,
        colorscale=theme.SEQUENTIAL,
        xgap=2,
        ygap=2,
        text=words,
        customdata=[
            [f"{title(y)} {shown(y, line)}, {title(x).lower()} {shown(x, column)}" for column in columns]
            for line in lines
        ],
        hoverongaps=False,
        hovertemplate="%{customdata}<br>%{text}<extra></extra>",
        colorbar=_color_bar(),
    )
    edges = theory.edges if theory else ()
    for edge in edges:
        _edge(drawn, edge, columns, lines)
    _numbers(drawn, told, x, y, columns, lines, edges)
    if theory:
        _misses(
            drawn, [(columns.index(at), lines.index(line)) for at, line in score(told, x, y, theory).wrong]
        )
    drawn.update_layout(hovermode="closest", margin={"l": 64, "t": 66, "r": 26, "b": 72})
    drawn.update_xaxes(title={"text": title(x), "standoff": 16}, **_ticks(x, columns))
    drawn.update_yaxes(
        title={"text": "" if y in ("model", "init") else title(y), "standoff": 8},
        automargin=True,
        **_ticks(y, lines),
    )
    return drawn


def _color_bar() -> dict[str, Any]:
    """A slim bar between title and map, as over the other maps."""
    at = [0, 0.25, 0.5, 0.75, 1]
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
        "ticktext": [formatting.percent(v) for v in at],
        "ticks": "",
        "ticklabelposition": "outside top",
        "outlinewidth": 0,
        "ticklabeloverflow": "allow",
        "tickfont": {"size": 12},
    }


def _ticks(field: str, values: Sequence[Any]) -> dict[str, Any]:
    """An axis that counts cells and is labelled with their values."""
    return {
        "tickvals": list(range(len(values))),
        "ticktext": [shown(field, value) for value in values],
        "range": [-0.5, len(values) - 0.5],
        "showgrid": False,
        "zeroline": False,
        "tickangle": 0,
    }


def _edge(drawn: go.Figure, edge: Edge, columns: Sequence[Any], lines: Sequence[Any]) -> None:
    """A step from line to line, on a rim of paper so that it stands out from dark and bright cells alike."""
    x: list[float | None] = []
    y: list[float | None] = []
    last = None
    for value, line in sorted(edge.points, key=lambda point: lines.index(point[1])):
        at, row = _position(value, columns), lines.index(line)
        if last is not None and row != last + 1:
            x, y = [*x, None], [*y, None]
        x, y, last = [*x, at, at], [*y, row - 0.5, row + 0.5], row
    name = "theory: trains from here on" if edge.begins else "theory: trains up to here"
    drawn.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": theme.PAPER, "width": 7},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    drawn.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": theme.INK, "width": 2.5, "dash": "solid" if edge.begins else "dash"},
        name=name,
        legendgroup=name,
        hoverinfo="skip",
    )


def _numbers(
    drawn: go.Figure,
    told: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    columns: Sequence[Any],
    lines: Sequence[Any],
    edges: Sequence[Edge],
) -> None:
    """k/n in every cell, beside the boundary where that runs through the middle."""
    places, colors = [], []
    for row in told:
        at, line = columns.index(row[x]), lines.index(row[y])
        near = [
            _position(value, columns) for edge in edges for value, where in edge.points if where == row[y]
        ]
        near = [edge for edge in near if abs(edge - at) < ASIDE]
        places.append((at if not near else near[0] + (ASIDE if near[0] <= at else -ASIDE), line))
        colors.append("#22262B" if row["converged"] / row["runs"] > 0.55 else "#FFFFFF")
    drawn.add_scatter(
        x=[at for at, _ in places],
        y=[line for _, line in places],
        mode="text",
        text=[f"{row['converged']}/{row['runs']}" for row in told],
        textfont={"size": 12, "color": colors},
        hoverinfo="skip",
        showlegend=False,
    )


def _misses(drawn: go.Figure, cells: Sequence[tuple[int, int]]) -> None:
    if cells:
        drawn.add_scatter(
            x=[at + 0.36 for at, _ in cells],
            y=[line + 0.3 for _, line in cells],
            mode="markers",
            hoverinfo="skip",
            name="theory was wrong",
            marker={
                "symbol": "x",
                "size": 9,
                "color": theme.INK,
                "line": {"color": theme.PAPER, "width": 1.5},
            },
        )


def _values(rows: Sequence[Mapping[str, Any]], field: str) -> list[Any]:
    return sorted({row[field] for row in rows})


def _position(value: float, columns: Sequence[float]) -> float:
    """Where a number lies between the columns, as a column index, on a log scale if the columns are
    positive.
    """
    scale = np.log if min(columns) > 0 else np.asarray
    return float(np.interp(scale(value), scale(np.asarray(columns, float)), np.arange(len(columns))))
