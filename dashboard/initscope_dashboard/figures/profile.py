"""Signal or gradient by depth before any training: measured dots on predicted lines, one colour an
initialization.

Tells apart an initialization that keeps its scale (flat) from one that loses it layer by layer (a slope), and
theory from accident: where dots lie on the line, the loss was to be expected from the variances alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from initscope_dashboard.browser import theme
from initscope_dashboard.figures import base

TITLES = {
    "signal_std": "Signal: standard deviation of a unit across images",
    "activation_rms": "Pre-activation RMS",
    "activation_grad_rms": "Error signal, on its way back",
    "grad_rms": "Gradient RMS of the weights",
    "difference": "1 − correlation of two images",
}


def profile(probes: Mapping[str, Mapping[str, Any]], metric: str = "signal_std") -> go.Figure:
    """``probes``: {initialization: the JSON of ``initscope probe``}. Lines are theory, markers measurement
    (with the range over seeds where there are several).
    """
    title = TITLES[metric]
    if not probes:
        return base.blank(title, "Choose an initialization.")
    if metric == "difference":
        probes = {init: _with_difference(result) for init, result in probes.items()}
    layers = list(dict.fromkeys(row["layer"] for result in probes.values() for row in result["layers"]))
    everything = np.array(
        [
            v
            for result in probes.values()
            for row in result["layers"]
            for side in ("measured", "predicted")
            if (v := row[side][metric]) is not None
        ],
        float,
    )
    low, high = base.decade_limits(np.log10(everything[np.isfinite(everything) & (everything > 0)]))
    low -= bool((everything == 0).any())
    drawn = base.figure(
        title,
        440,
        shapes=base.block_lines(layers, "x"),
        meta={"narrow": {"xaxis.tickangle": 90}, **base.names_axis("xaxis", layers)},
    )
    for init, result in probes.items():
        color, symbol = theme.init_color(init), theme.init_symbol(init)
        names = [row["layer"] for row in result["layers"]]
        predicted = np.array([_number(row["predicted"][metric]) for row in result["layers"]])
        measured = _measured(result, metric)
        placed, symbols = base.pinned(np.where(np.isnan(measured), 0, measured), low, high)
        if not np.isnan(predicted).all():
            drawn.add_scatter(
                x=names,
                y=np.where(predicted > 0, predicted, np.nan),
                mode="lines",
                line={"color": color, "width": 2},
                name=init,
                legendgroup=init,
                showlegend=False,
                customdata=[f"{v:.2g}" for v in predicted],
                hovertemplate="%{x}: theory %{customdata}<extra>" + init + "</extra>",
            )
        drawn.add_scatter(
            x=names,
            y=placed,
            mode="markers",
            name=init,
            legendgroup=init,
            error_y=_range(result, metric, measured),
            marker={
                "color": color,
                "size": 8,
                "symbol": [symbol if s == "circle" else s for s in symbols],
                "line": {"color": theme.PAPER, "width": 1},
            },
            customdata=[f"{v:.2g}" for v in measured],
            hovertemplate="%{x}: measured %{customdata}<extra>" + init + "</extra>",
        )
    drawn.update_xaxes(
        type="category",
        title={"text": "input → output", "standoff": 8},
        categoryorder="array",
        categoryarray=layers,
        tickangle=90,
        automargin=True,
    )
    drawn.update_layout(
        margin={"b": 124}
    )  # upright layer names, the axis title and the legend, one below the other
    drawn.update_yaxes(**base.log_axis("", low, high))
    return drawn


def _with_difference(result: Mapping[str, Any]) -> dict[str, Any]:
    """The probe with 1 - correlation in its rows: on a logarithmic scale it shows how fast all inputs become
    one.
    """

    def less(value: float | None) -> float | None:
        return None if value is None else max(0.0, 1 - value)

    layers = [
        {
            **row,
            **{side: {"difference": less(row[side]["correlation"])} for side in ("measured", "predicted")},
        }
        for row in result["layers"]
    ]
    turned = {"min": "max", "median": "median", "max": "min"}
    band = [
        {
            "difference": row["correlation"]
            and {name: less(row["correlation"][other]) for name, other in turned.items()}
        }
        for row in result.get("band") or []
    ]
    return {**result, "layers": layers, "band": band}


def _measured(result: Mapping[str, Any], metric: str) -> np.ndarray:
    """The median over seeds where several were measured, else the one measurement."""
    band = result.get("band") or []
    values = [row[metric]["median"] if row[metric] else None for row in band] or [
        row["measured"][metric] for row in result["layers"]
    ]
    return np.array([_number(value) for value in values])


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _range(result: Mapping[str, Any], metric: str, middle: np.ndarray) -> dict[str, Any]:
    """Whiskers from the lowest to the highest seed."""
    rows: Sequence[Mapping[str, Any]] = result.get("band") or []
    if not rows or any(row[metric] is None for row in rows):
        return {"visible": False}
    up = np.maximum(0, np.array([row[metric]["max"] for row in rows]) - middle)
    down = np.maximum(0, middle - np.array([row[metric]["min"] for row in rows]))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3}
