"""How many of n seeds converged with each initialization, and how sure n seeds make us.

Tells apart luck from cause: two intervals that overlap widely have not told two initializations apart yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base


def rates(rows: Sequence[Mapping[str, Any]], *, title: str = "Share of runs that converged") -> go.Figure:
    """Rows of ``initscope.comparison.sweep.table`` as points on their Wilson 95 % intervals, best first;
    ``label`` or ``init`` names a row.
    """
    told = [row for row in rows if row["runs"]]
    if not told:
        return base.blank(title, "Appears when the first run is decided: converged, or not.")
    ordered = sorted(told, key=lambda row: (row["converged"] / row["runs"], row["low"]))
    names = [formatting.escape(str(row.get("label") or row["init"])) for row in ordered]
    drawn = base.figure(title, base.TOP + 70 + 44 * len(ordered), showlegend=False)
    for name, row in zip(names, ordered, strict=True):
        color, rate = theme.init_color(row["init"]), row["converged"] / row["runs"]
        drawn.add_scatter(
            x=[row["low"], row["high"]],
            y=[name, name],
            mode="lines",
            line={"color": color, "width": 5},
            opacity=0.35,
            hoverinfo="skip",
        )
        drawn.add_scatter(
            x=[rate],
            y=[name],
            mode="markers+text",
            marker={"color": color, "size": 13, "symbol": theme.init_symbol(row["init"])},
            text=[f"{row['converged']} of {row['runs']}"],
            textposition="top center" if 0.1 < rate < 0.9 else "top right" if rate <= 0.1 else "top left",
            hovertemplate=f"{name}: {row['converged']} of {row['runs']} converged, 95 % interval "
            f"{formatting.percent(row['low'])} to {formatting.percent(row['high'])}<extra></extra>",
        )
    ticks = [0, 0.25, 0.5, 0.75, 1]
    drawn.update_xaxes(
        range=[-0.03, 1.03],
        tickvals=ticks,
        ticktext=[formatting.percent(t) for t in ticks],
        title={"text": "converged, with 95 % interval"},
        automargin=True,
    )
    drawn.update_yaxes(type="category", automargin=True, range=[-0.6, len(ordered) - 0.25])
    return drawn
