"""Where in a plane of two settings the network trains: the share of seeds that converged, with the theory's boundary.

Tells apart a setting that happens to work from one in the middle of a region that works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from core.config import OPTIONS
from dashboard import text, theme
from dashboard.figures import base


def axis_title(field: str) -> str:
    """How an axis is called: the config field's title, the network for its depth."""
    return "Network" if field == "model" else OPTIONS[field].title


def trainability(
    rows: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    *,
    title: str = "",
    boundary: Sequence[Sequence[tuple[Any, Any]]] = (),
) -> go.Figure:
    """Rows of ``core.sweep.table`` over the fields ``x`` and ``y`` as a map of rates; cells not yet run stay empty.

    ``boundary``: lines of (x, y) pairs where theory sees training begin or end (``core.forecast.boundary``).
    """
    title = title or "Share of seeds that converged"
    told = [row for row in rows if row["runs"]]
    if not told:
        return base.blank(title, "Appears when the first run has ended.")
    columns, lines = _values(rows, x), _values(rows, y)
    z = np.full((len(lines), len(columns)), np.nan, np.float32)
    words = np.full(z.shape, "", dtype=object)
    for row in told:
        at = lines.index(row[y]), columns.index(row[x])
        z[at] = row["converged"] / row["runs"]
        words[at] = f"{row['converged']} of {row['runs']}"
    drawn = base.figure(title, max(300, base.TOP + 90 + 46 * len(lines)))
    ticks = [0, 0.5, 1]
    drawn.add_heatmap(
        z=z, x=[_label(v) for v in columns], y=[_label(v) for v in lines], zmin=0, zmax=1, colorscale=theme.SEQUENTIAL, xgap=2, ygap=2,
        text=words, texttemplate="%{text}", hoverongaps=False,
        hovertemplate=f"{axis_title(x)} %{{x}}, {axis_title(y)} %{{y}}<br>%{{text}} converged<extra></extra>",
        colorbar={"thickness": 10, "tickvals": ticks, "ticktext": [text.percent(t) for t in ticks], "outlinewidth": 0},
    )
    for i, line in enumerate(boundary):
        drawn.add_scatter(
            x=[_position(value, columns) for value, _ in line], y=[_label(value) for _, value in line], mode="lines+markers", xaxis="x2",
            line={"color": theme.NONFINITE, "width": 2.5}, marker={"size": 8}, name="theory's boundary", legendgroup="theory", showlegend=i == 0,
            customdata=[text.number(value) for value, _ in line], hovertemplate="theory's boundary: %{customdata}<extra></extra>",
        )
    if boundary:
        # A second, linear axis over the first: the boundary falls between the map's columns.
        drawn.update_layout(xaxis2={"overlaying": "x", "range": [-0.5, len(columns) - 0.5], "visible": False, "fixedrange": True})
    drawn.update_layout(xaxis={"title": {"text": axis_title(x)}, "type": "category", "range": [-0.5, len(columns) - 0.5]})
    drawn.update_yaxes(title={"text": axis_title(y)}, type="category", automargin=True)
    return drawn


def _values(rows: Sequence[Mapping[str, Any]], field: str) -> list[Any]:
    return sorted({row[field] for row in rows})


def _label(value: Any) -> str:
    return text.number(value) if isinstance(value, (int, float)) else str(value)


def _position(value: float, columns: Sequence[float]) -> float:
    """Where a number lies between the columns, as a column index, on a log scale if the columns are positive."""
    scale = np.log if min(columns) > 0 else np.asarray
    return float(np.interp(scale(value), scale(np.asarray(columns, float)), np.arange(len(columns))))
