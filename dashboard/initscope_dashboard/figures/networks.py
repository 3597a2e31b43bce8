"""How many of n seeds converged, network by network, with each initialization.

Tells apart a network that any weights train from one that needs the right ones: two markers at the right end,
or one at each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from initscope.config import catalog
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base


def networks(rows: Sequence[Mapping[str, Any]], *, title: str = "Share of seeds that converged") -> go.Figure:
    """Rows of ``initscope.comparison.network_study.rows`` as points on their Wilson 95 % intervals, the first
    network on top, an initialization a colour.
    """
    told = [row for row in rows if row["runs"]]
    if not told:
        return base.blank(title, "Appears when the first run is decided: converged, or not.")
    labels = list(dict.fromkeys(row["label"] for row in rows))[::-1]
    inits = list(dict.fromkeys(row["init"] for row in told))
    drawn = base.figure(
        title, base.TOP + 90 + 40 * len(labels), margin={"l": 56, "r": 12, "t": base.TOP, "b": 74}
    )
    for i, init in enumerate(inits):
        mine = [row for row in told if row["init"] == init]
        color, shift = theme.init_color(init), 0.36 * ((len(inits) - 1) / 2 - i) / max(1, len(inits) - 1)
        at = [labels.index(row["label"]) + shift for row in mine]
        rates = [row["converged"] / row["runs"] for row in mine]
        drawn.add_scatter(
            x=[x for row in mine for x in (row["low"], row["high"], None)],
            y=[y for place in at for y in (place, place, None)],
            mode="lines",
            line={"color": color, "width": 5},
            opacity=0.35,
            hoverinfo="skip",
            showlegend=False,
        )
        words = [
            f"{formatting.escape(row['label'])}, {catalog.init_title(init)}: {row['converged']} of "
            f"{row['runs']} converged, 95 % interval "
            f"{formatting.percent(row['low'])} to {formatting.percent(row['high'])}"
            + (f", {row['undecided']} undecided" if row["undecided"] else "")
            for row in mine
        ]
        drawn.add_scatter(
            x=rates,
            y=at,
            mode="markers",
            name=catalog.init_title(init),
            text=words,
            hovertemplate="%{text}<extra></extra>",
            marker={"color": color, "size": 12, "symbol": theme.init_symbol(init)},
        )
    ticks = [0, 0.25, 0.5, 0.75, 1]
    drawn.update_xaxes(
        range=[-0.03, 1.03],
        tickvals=ticks,
        ticktext=[formatting.percent(t) for t in ticks],
        title={"text": "converged, with 95 % interval"},
    )
    drawn.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[_wrapped(label) for label in labels],
        range=[-0.6, len(labels) - 0.4],
        automargin=True,
        zeroline=False,
        showgrid=False,
    )
    return drawn


def _wrapped(label: str) -> str:
    """A long name on two lines."""
    return formatting.escape(label).replace(" without ", "<br>without ").replace(" with ", "<br>with ")
