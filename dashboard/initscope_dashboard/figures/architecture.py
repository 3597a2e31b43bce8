"""The VGG network as the story tells it: five blocks of maps that halve, then three linear layers, and where
the parameters are.

Tells apart what the eye expects (thirteen convolutions, most of the picture) from where the weights sit (the
first linear layer). Shapes and counts are computed here from the configuration, without torch; a test holds
them against the real network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from initscope.config import shapes
from initscope.config.run_config import RunConfig
from initscope_dashboard.browser import theme
from initscope_dashboard.content import formatting
from initscope_dashboard.figures import base


class Layer(NamedTuple):
    """One layer: its output is ``channels`` maps of ``size`` x ``size`` pixels (a linear layer: ``size``
    1).
    """

    name: str
    kind: str
    inputs: int
    channels: int
    size: int
    weights: int
    biases: int
    norm: int

    @property
    def parameters(self) -> int:
        return self.weights + self.biases + self.norm

    @property
    def multiply_adds(self) -> int:
        """For one image; normalisation and pooling not counted."""
        return (self.weights + self.biases) * self.size**2

    @property
    def shape(self) -> str:
        return (
            f"{self.channels:,}" if self.kind == "linear" else f"{self.channels} × {self.size} × {self.size}"
        )


def layers(config: RunConfig) -> list[Layer]:
    """Every layer with weights, and the poolings, from input to output; empty for a network that is not a
    VGG.
    """
    if config.model not in shapes.VGG_BLOCKS:
        return []
    result = []
    for layer in shapes.vgg_shapes(config, *shapes.inputs_and_classes(config)):
        taps = {"conv": 9, "pool": 0, "linear": 1}[layer.kind]
        size = layer.size // 2 if layer.kind == "pool" else layer.size
        weights, biases = taps * layer.inputs * layer.outputs, layer.outputs if taps else 0
        norm = 2 * layer.outputs if config.batch_norm and layer.kind == "conv" else 0
        result.append(Layer(layer.name, layer.kind, layer.inputs, layer.outputs, size, weights, biases, norm))
    return result


def parameters(network: Sequence[Layer]) -> int:
    """All weights and biases: 134,300,362 for the story's VGG16."""
    return sum(layer.parameters for layer in network)


def table(network: Sequence[Layer]) -> pd.DataFrame:
    """Every layer with shapes and counts, the input first."""
    total = parameters(network)
    return pd.DataFrame(
        {
            "layer": [layer.name for layer in network],
            "kernel": [{"conv": "3 × 3", "pool": "2 × 2 max", "linear": ""}[layer.kind] for layer in network],
            "output": [layer.shape for layer in network],
            "parameters": [layer.parameters for layer in network],
            "share": [layer.parameters / total for layer in network],
            "multiply-adds": [layer.multiply_adds for layer in network],
        }
    )


def short(value: int) -> str:
    """'640', '36.9 k', '102.8 M'."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return (
                f"{value / limit:.1f}{unit}"
                if value < 100 * limit or unit == " M"
                else f"{value / limit:.0f}{unit}"
            )
    return str(value)


class Slab(NamedTuple):
    """Where a layer is drawn: left edge, thickness, height, and how far its top and side lean back."""

    left: float
    thick: float
    high: float
    lean: float


def slabs(network: Sequence[Layer], image_size: int) -> list[Slab]:
    """Heights follow the map's size, thickness its channels, both flattened so that the smallest can still be
    seen.
    """
    result, at = [], 0.0
    before = None
    for layer in network:
        if layer.kind == "linear":
            thick, high = 0.5, 0.16 + 0.62 * (layer.channels / shapes.VGG_HIDDEN) ** 0.3
        else:
            thick = 0.22 if layer.kind == "pool" else 0.3 + 0.5 * (layer.channels / 512) ** 0.5
            high = max(0.1, (layer.size / max(image_size, 32)) ** 0.5)
        lean = 0.0 if layer.kind == "linear" else 0.38 * high
        gap = 0.0 if before is None else 0.3 if layer.kind == "pool" or before == "pool" else 0.24
        at += gap
        result.append(Slab(at, thick, min(1.0, high), lean))
        at += max(thick, 0.3 if layer.kind == "pool" else 0.62)
        before = layer.kind
    return result


def architecture(
    network: Sequence[Layer], *, title: str = "From image to answer", image_size: int = 224, height: int = 430
) -> go.Figure:
    """Slabs (maps and channels) over a bar for each layer's parameters. Wants 760 pixels: scroll sideways
    below.
    """
    if not network:
        return base.blank(
            title, "Drawn for the VGG family; torchinfo's table below has every network.", height
        )
    drawn = base.figure(
        formatting.escape(title),
        height,
        showlegend=False,
        hovermode="closest",
        margin={"l": 12, "r": 12, "t": 40, "b": 62},
    )
    places = slabs(network, image_size)
    fills = {"conv": theme.CONV, "pool": theme.POOL, "linear": theme.LINEAR}
    shapes = [
        shape for layer, slab in zip(network, places, strict=True) for shape in _slab(slab, fills[layer.kind])
    ]
    middles = [slab.left + slab.thick / 2 for slab in places]
    right = places[-1].left + 1.0
    drawn.update_layout(shapes=shapes)
    hover = [
        f"<b>{layer.name}</b><br>output {layer.shape}<br>"
        + (
            f"{formatting.count(layer.parameters)} parameters"
            if layer.parameters
            else "2 × 2 maximum, no parameters"
        )
        for layer in network
    ]
    drawn.add_scatter(
        x=[m + s.lean / 4 for m, s in zip(middles, places, strict=True)],
        y=[s.high / 2 for s in places],
        mode="markers",
        marker={"size": 26, "opacity": 0},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
    )
    with_weights = [
        (layer, m, words) for layer, m, words in zip(network, middles, hover, strict=True) if layer.parameters
    ]
    drawn.add_bar(
        x=[m for _, m, _ in with_weights],
        y=[layer.parameters for layer, _, _ in with_weights],
        width=0.6,
        yaxis="y2",
        marker={
            "color": [theme.LINEAR if layer.kind == "linear" else theme.CONV for layer, _, _ in with_weights],
            "line": {"color": theme.MUTED, "width": 0.8},
        },
        text=[short(layer.parameters) for layer, _, _ in with_weights],
        textposition="outside",
        textangle=0,
        cliponaxis=False,
        textfont={"size": 10},
        customdata=[words for _, _, words in with_weights],
        hovertemplate="%{customdata}<extra></extra>",
    )
    for words, x, y in _captions(network, places):
        drawn.add_annotation(
            text=words,
            x=x,
            y=y,
            xanchor="center",
            yanchor="bottom",
            yshift=4,
            showarrow=False,
            font={"size": 12},
        )
    drawn.add_annotation(
        text="parameters",
        x=0,
        xref="paper",
        xanchor="left",
        y=0.3,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        font={"size": 12, "color": theme.MUTED},
    )
    drawn.update_xaxes(
        range=[-0.25, right],
        tickvals=middles,
        ticktext=[layer.name for layer in network],
        tickangle=-60,
        showgrid=False,
        zeroline=False,
        anchor="y2",
        fixedrange=True,
        ticks="",
    )
    hidden = {
        "showticklabels": False,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "ticks": "",
        "showline": False,
    }
    drawn.update_layout(
        yaxis={**hidden, "domain": [0.4, 1], "range": [-0.03, 1.66]},
        yaxis2={**hidden, "domain": [0, 0.27], "zeroline": True, "rangemode": "tozero", "anchor": "x"},
    )
    return drawn


def _slab(slab: Slab, fill: str) -> list[dict]:
    """Front, top and side of a box leaning back to the right."""
    x0, x1, y1, d = slab.left, slab.left + slab.thick, slab.high, slab.lean
    dx = d * 0.9
    outline = {"color": theme.MUTED, "width": 0.8}
    front = {
        "type": "path",
        "path": f"M{x0},0 L{x1},0 L{x1},{y1} L{x0},{y1} Z",
        "fillcolor": fill,
        "line": outline,
    }
    if not d:
        return [front]
    top = {
        "type": "path",
        "path": f"M{x0},{y1} L{x1},{y1} L{x1 + dx},{y1 + d} L{x0 + dx},{y1 + d} Z",
        "fillcolor": fill,
        "line": outline,
    }
    side = {
        "type": "path",
        "path": f"M{x1},0 L{x1},{y1} L{x1 + dx},{y1 + d} L{x1 + dx},{d} Z",
        "fillcolor": fill,
        "line": outline,
    }
    return [top, side, front]


def _block(layer: str) -> str:
    """'conv3' of 'conv3_2'."""
    return layer.split("_")[0]


def _captions(network: Sequence[Layer], places: Sequence[Slab]) -> list[tuple[str, float, float]]:
    """(words, x, y): what each block puts out, over the block."""
    result = []
    blocks = dict.fromkeys(_block(layer.name) for layer in network if layer.kind == "conv")
    for name in blocks:
        inside = [i for i, layer in enumerate(network) if layer.kind == "conv" and _block(layer.name) == name]
        first, last = places[inside[0]], places[inside[-1]]
        layer = network[inside[0]]
        middle = (first.left + last.left + last.thick + 0.9 * first.lean) / 2
        result.append(
            (f"<b>{layer.size}</b> × {layer.size}<br>{layer.channels} maps", middle, first.high + first.lean)
        )
    for i, layer in enumerate(network):
        if layer.kind == "linear":
            result.append(
                (f"<b>{layer.channels:,}</b>", places[i].left + places[i].thick / 2, places[i].high)
            )
    return result
