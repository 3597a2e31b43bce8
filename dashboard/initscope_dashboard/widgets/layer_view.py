"""How a map of many layers is shown: search, order, blocks. Nothing of it appears for a network that fits as
it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from initscope_dashboard.content import formatting
from initscope_dashboard.figures import blocks, rows
from initscope_dashboard.figures.heatmap import Cells

MANY = 24
"""Layers that can be read at once."""

ORDERS = {"depth": "Input to output", "worst": "Worst on top"}
BLOCKS = {"layers": "Every layer", "worst": "Blocks: worst layer", "median": "Blocks: median layer"}
HELP = (
    "Blocks are read from the layers' names. The worst layer is the one farthest, in decades, from what it "
    "should be: gradients from the layer "
    "nearest the output, the signal from the layer nearest the input, update ratios from 10⁻³; dead units "
    "by their share, stable ranks by how low they are; NaN and exact zero first."
)


def layer_view(maps: Sequence[Cells | None], key: str) -> rows.Rows:
    """The controls, where there are many layers, and the rows that they choose for all ``maps``.

    What comes and goes has a place of its own: where an element took a container's place while the page is
    being drawn, a second click leaves Streamlit's page blank ("'setIn' cannot be called on an ElementNode").
    """
    names = list(dict.fromkeys(name for cells in maps if cells is not None for name in cells.layers))
    if len(names) <= MANY:
        return rows.choose(maps, rows.View())
    with st.container(horizontal=True, vertical_alignment="bottom"):
        pattern = st.text_input(
            "Search layers",
            key=f"{key}-search",
            placeholder=f"Search {formatting.count(len(names))} layers: attn, layers.3.*",
            width=280,
            label_visibility="collapsed",
        )
        order = st.pills(
            "Order",
            list(ORDERS),
            default="depth",
            required=True,
            key=f"{key}-order",
            format_func=ORDERS.get,
            label_visibility="collapsed",
        )
        shown = st.pills(
            "Rows",
            list(BLOCKS),
            default="layers",
            required=True,
            key=f"{key}-blocks",
            format_func=BLOCKS.get,
            label_visibility="collapsed",
        )
    below, note = st.container(), st.container()
    if order == "worst" or shown != "layers":
        below.caption(HELP)
    opened: list[str] = []
    if shown != "layers":
        found = list(dict.fromkeys(blocks.groups(names)))
        st.session_state[f"{key}-opened"] = [
            block for block in st.session_state.get(f"{key}-opened", []) if block in found
        ]
        opened = below.multiselect(
            "Open blocks",
            found,
            key=f"{key}-opened",
            placeholder="Open a block: choose it here or click its row",
            label_visibility="collapsed",
        )
    chosen = rows.choose(maps, rows.View(pattern, order, shown, frozenset(opened)))
    if not chosen.layers:
        note.info(
            f"No layer fits {formatting.markdown(repr(pattern))}. There are "
            f"{formatting.markdown(', '.join(names[:4]))} and {formatting.count(len(names) - 4)} more."
        )
    return chosen


def clicked(point: dict, chosen: rows.Rows, key: str) -> None:
    """A click on a block's row opens the block."""
    if point["y"] in chosen.layers and chosen.notes[at := chosen.layers.index(point["y"])]:
        st.session_state[f"{key}-opened"] = [*st.session_state.get(f"{key}-opened", []), chosen.blocks[at]]
