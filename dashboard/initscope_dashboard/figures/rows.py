"""Which layers a map shows, and in which order: a search, the worst first, a block as one of its layers.

Every row stays a real layer with its real values, and several maps arranged together keep the same rows.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from initscope_dashboard.figures import blocks
from initscope_dashboard.figures.heatmap import Cells
from initscope_dashboard.figures.ratio import Ratio

Map = TypeVar("Map", Cells, Ratio)

ZERO_DECADES, BAD_DECADES = 50.0, 100.0
"""How far from usual an exact zero and a NaN count: beyond any float."""
USUAL_UPDATE = -3.0
"""log10 of a usual update ratio."""


class View(NamedTuple):
    """What a person chose. ``pattern``: words or wildcards, any of which may fit; ``opened``: blocks shown
    layer by layer.
    """

    pattern: str = ""
    order: Literal["depth", "worst"] = "depth"
    blocks: Literal["layers", "worst", "median"] = "layers"
    opened: frozenset[str] = frozenset()


class Rows(NamedTuple):
    """The rows of a map from the bottom up: layers, what each stands for beside itself, what the axis calls
    it, its block.
    """

    layers: list[str]
    notes: tuple[str, ...]
    shown: tuple[str, ...]
    blocks: list[str]


def distance(cells: Cells) -> np.ndarray:
    """How far each layer is from what it should be, in decades (a share: the share itself), mean over the
    columns.

    Gradients are measured from the layer nearest the output, which they reach first, the signal from the
    layer nearest the input, update ratios from 1e-3, stable ranks from the largest there is. A NaN is worse
    than an exact zero, a zero worse than any number.
    """
    z = cells.z.astype(np.float64)
    if cells.linear:
        off = z
    elif cells.metric == "update_ratio":
        off = np.abs(z - USUAL_UPDATE)
    elif cells.metric == "stable_rank":
        off = np.nanmax(z, initial=0.0) - z  # every one is at least 1
    else:
        side = z if cells.metric == "signal_std" else z[::-1]
        first = np.isfinite(side).argmax(axis=0)
        off = np.abs(z - np.take_along_axis(side, first[None], 0))
    off = np.where(cells.bad, BAD_DECADES, np.where(cells.zero, ZERO_DECADES, off))
    there = np.isfinite(off)
    return np.where(there, off, 0).sum(axis=1) / np.maximum(1, there.sum(axis=1))


def fits(layers: Sequence[str], pattern: str) -> list[str]:
    """The layers that fit any of the words: a wildcard pattern if it has one of ``*?[``, else a part of the
    name.
    """
    words = [
        word if set(word) & set("*?[") else f"*{word}*" for word in pattern.lower().replace(",", " ").split()
    ]
    return [
        name for name in layers if not words or any(fnmatch.fnmatchcase(name.lower(), word) for word in words)
    ]


def choose(maps: Sequence[Cells | None], view: View) -> Rows:
    """The rows that all ``maps`` shall have, the worst of them deciding; no rows if no layer fits the
    pattern.
    """
    there = [cells for cells in maps if cells is not None]
    layers = _merged([cells.layers for cells in there])
    score = dict.fromkeys(layers, 0.0)
    for cells in there:
        for name, value in zip(cells.layers, distance(cells), strict=True):
            score[name] = max(score[name], float(value))
    block = dict(zip(layers, blocks.groups(layers), strict=True))
    members: dict[str, list[str]] = {}
    for name in fits(layers, view.pattern):
        members.setdefault(name if view.blocks == "layers" else block[name], []).append(name)
    rows: list[tuple[str, str, str]] = []
    for group, names in members.items():
        if group in view.opened or len(names) == 1:
            rows += [(name, "", name) for name in names]
            continue
        ranked = sorted(names, key=lambda name: -score[name])
        one = ranked[0] if view.blocks == "worst" else ranked[len(ranked) // 2]
        rows.append((one, f"{view.blocks} of {len(names)} in {group}", group))
    if view.order == "worst":
        rows.sort(key=lambda row: score[row[0]])  # the last row is drawn on top
    return Rows(
        [row[0] for row in rows],
        tuple(row[1] for row in rows),
        tuple(row[2] for row in rows),
        [block[row[0]] for row in rows],
    )


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All names, each after those it follows: what one order alone has keeps its place among the others'."""
    result = list(orders[0]) if orders else []
    for order in orders[1:]:
        have, place = set(result), 0
        for name in order:
            if name in have:
                place = result.index(name) + 1
            else:
                result.insert(place, name)
                place += 1
    return result


def arranged(cells: Map | None, rows: Rows) -> Map | None:
    """``cells`` with exactly these rows; a layer that it lacks is an empty row."""
    if cells is None or not rows.layers:
        return None
    row = {name: i for i, name in enumerate(cells.layers)}
    at = np.array([row.get(name, -1) for name in rows.layers])
    z, zero, bad = cells.z[at], cells.zero[at], cells.bad[at]
    z[at < 0], zero[at < 0], bad[at < 0] = np.nan, False, False
    collapsed = any(rows.notes)
    return cells._replace(
        layers=list(rows.layers),
        z=z,
        zero=zero,
        bad=bad,
        notes=rows.notes if collapsed else (),
        shown=rows.shown if collapsed else (),
    )


def named(cells: Map, names: Mapping[str, str]) -> Map:
    """``cells`` with names for people on the axis; blocks keep theirs."""
    return (
        cells
        if cells.shown or all(key == name for key, name in names.items())
        else cells._replace(shown=tuple(names.get(layer, layer) for layer in cells.layers))
    )
