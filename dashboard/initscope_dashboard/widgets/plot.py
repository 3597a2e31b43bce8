"""Draw a Plotly figure that keeps its node and the reader's zoom over reruns, and grows with live rows.

``st.plotly_chart`` makes a new chart for every change of data; this component calls ``Plotly.react`` instead.
Colours are tokens (``initscope_dashboard.browser.theme``) that the browser fills in for the light or dark
theme. The scripts come from the routes in ``server.app``, so a rerun sends a figure's data and nothing else.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from initscope_dashboard.browser.assets import assets_path
from initscope_dashboard.widgets.component import component

_PLOT = component("initscope_plot", "plot.js", "draw")


def plain(value: Any) -> Any:
    """A figure's dictionary as JSON: the few arrays that plotly.py leaves (empty ones) as lists, NaN and
    infinity as null.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def packed(figure: go.Figure) -> dict[str, Any]:
    """The figure's dictionary with the z of every map as sixteen-bit numbers, compressed: a twentieth of the
    same numbers as JSON, half of float32.

    ``z = offset + scale * number``; the steps are a thousandth of a decade (0.12 % of a value at most) unless
    the map spans more than 65 of them. The two bytes of the numbers lie apart, which compresses better;
    -32768 is NaN. ``plot.js`` unpacks.
    """
    drawn = figure.to_dict()
    for given, trace in zip(figure.data, drawn["data"], strict=True):
        if given.type != "heatmap" or "text" not in (given.meta or {}):
            continue
        z = np.asarray(given.z, np.float64)
        finite = z[np.isfinite(z)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        offset, scale = (low + high) / 2, max(1e-3, (high - low) / 65_000)
        numbers = np.where(np.isfinite(z), np.rint((np.nan_to_num(z) - offset) / scale), -32_768).astype(
            "<i2"
        )
        planes = numbers.ravel().view(np.uint8).reshape(-1, 2).T.tobytes()
        trace["z"] = {
            "deflated": base64.b64encode(zlib.compress(planes, 6)).decode(),
            "shape": list(z.shape),
            "offset": offset,
            "scale": scale,
        }
    return drawn


def plot(
    figure: go.Figure,
    *,
    key: str,
    alt: str,
    height: int | None = None,
    on_click: Callable[[dict[str, Any]], None] | None = None,
    clicks: bool = False,
    stream: Sequence[str] = (),
    min_width: int = 0,
    still: bool = False,
) -> dict[str, Any] | None:
    """Draw ``figure``; returns the point that was clicked in this rerun, or None.

    ``key`` must be unique on the page and stay the same between reruns. ``alt`` says in words what the
    picture shows. ``on_click(point)`` runs before the rerun that a click causes; ``clicks=True`` asks for
    clicks without a callback. A point is ``{"x", "y", "run", "trace"}``. ``stream`` holds the ids of runs
    whose new rows extend the traces with ``meta["run"]`` without a rerun. Under ``min_width`` pixels the
    figure scrolls sideways. ``still``: no tool bar.
    """
    key = re.sub(
        "_{2,}", "_", key
    )  # two are Streamlit's own separator, and an initialization's name may come from a foreign folder
    drawn = plain(packed(figure))
    drawn["layout"].pop("template", None)
    data = {
        "assets": assets_path(),
        "figure": drawn,
        "key": key,
        "alt": alt,
        "height": int(height or figure.layout.height or 360),
        "clicks": bool(on_click or clicks),
        "stream": list(stream),
        "min_width": min_width,
        "still": still,
        "file": re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-") or "figure",
    }

    def clicked() -> None:
        point = _point(st.session_state.get(key))
        if on_click and point:
            on_click(point)

    return _point(_PLOT(key=key, data=data, height=data["height"], on_click_change=clicked))


def _point(sent: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What was clicked, if what came over the websocket is a point of a chart: whoever has the page open may
    send anything.
    """
    point = (sent or {}).get("click")
    if (
        not isinstance(point, dict)
        or not {"x", "y", "run", "trace"} <= point.keys()
        or any(isinstance(value, (dict, list)) for value in point.values())
    ):
        return None
    return point
