"""Where in a plane of two settings a network trains: what theory says of every cell, where it sees the
boundary, and how often it was right. No torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initscope.config.catalog import MODELS, init_title
from initscope.config.run_config import OPTIONS, RunConfig
from initscope.errors import ConfigError
from initscope.schema import Outcome
from initscope.theory import TheoryUnavailable
from initscope.theory.forecast import expect

HALVINGS = 5
"""How often the interval between two columns is halved to find the boundary: to a thirty-second of it."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Edge:
    """A boundary: (x, y) pairs, one a line of the map. ``begins``: training is foreseen for larger x, else
    for smaller.
    """

    begins: bool
    points: tuple[tuple[float, Any], ...]


@dataclass(frozen=True)
class TheoryMap:
    """``trains[x, y]``: whether theory alone foresees convergence; ``edges``: where that changes along x."""

    trains: Mapping[tuple[Any, Any], bool]
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class Score:
    """Decided runs that ended as theory foresaw, of how many, and the cells in which most did not."""

    right: int
    runs: int
    wrong: tuple[tuple[Any, Any], ...]


def theory_map(base: RunConfig, x: str, xs: Sequence[Any], y: str, ys: Sequence[Any]) -> TheoryMap | None:
    """Theory's forecast for every cell of the plane of the config fields ``x`` and ``y``, but for lines that
    theory does not cover (a network that branches, ``lsuv``); None if it covers none.

    Between two neighbouring numbers of ``xs`` with different forecasts the boundary is found by bisection, on
    a log scale where both are positive. Edges join the boundaries of neighbouring lines that point the same
    way.
    """
    xs, ys = sorted(xs), sorted(ys)

    def trains(at: Any, line: Any) -> bool:
        return expect(base.replace(**{x: at, y: line}))["outcome"] == Outcome.CONVERGED

    cells: dict[tuple[Any, Any], bool] = {}
    points: dict[tuple[bool, int], list[tuple[float, Any]]] = {}
    for line in ys:
        try:
            cells |= {(at, line): trains(at, line) for at in xs}
        except (ConfigError, TheoryUnavailable):
            continue
        if not all(isinstance(at, (int, float)) for at in xs):
            continue
        seen = {True: 0, False: 0}
        for low, high in itertools.pairwise(xs):
            begins = cells[high, line]
            if cells[low, line] == begins:
                continue
            for _ in range(HALVINGS):
                middle = _middle(low, high)
                low, high = (low, middle) if trains(middle, line) == begins else (middle, high)
            points.setdefault((begins, seen[begins]), []).append((_middle(low, high), line))
            seen[begins] += 1
    return (
        TheoryMap(cells, tuple(Edge(begins, tuple(pairs)) for (begins, _), pairs in points.items()))
        if cells
        else None
    )


def _middle(low: float, high: float) -> float:
    return math.sqrt(low * high) if low > 0 else (low + high) / 2


def score(rows: Sequence[Row], x: str, y: str, theory: TheoryMap) -> Score:
    """How theory compares with rows of ``initscope.comparison.sweep.table`` over ``x`` and ``y``; cells
    without a decided run do not count.
    """
    told = [row for row in rows if row["runs"] and (row[x], row[y]) in theory.trains]
    right = {
        (row[x], row[y]): row["converged"]
        if theory.trains[row[x], row[y]]
        else row["runs"] - row["converged"]
        for row in told
    }
    wrong = tuple((row[x], row[y]) for row in told if 2 * right[row[x], row[y]] < row["runs"])
    return Score(sum(right.values()), sum(row["runs"] for row in told), wrong)


def sentence(rows: Sequence[Row], x: str, y: str, theory: TheoryMap | None = None, who: str = "") -> str:
    """What a map shows, and how well theory foresaw it: "Kaiming normal trains from gain 0.4 in VGG11, from
    gain 1 in VGG19; theory foresaw 70 of 72 outcomes."

    ``who`` trains. A cell does if more than half of its decided runs converged. Of more than two lines the
    first and the last are named.
    """
    lines = sorted({row[y] for row in rows if row["runs"]})
    if not lines:
        return "No run of this map has ended yet."
    trains = f"{who} trains" if who else "Trains"
    spans = {line: span([row for row in rows if row[y] == line], x) for line in lines}
    if len(lines) > 1 and len(set(spans.values())) == 1:
        told = f"{trains} {spans[lines[0]]}, whatever the {title(y).lower()}"
    else:
        told = f"{trains} " + ", ".join(
            f"{spans[line]} {_place(y, line)}" for line in dict.fromkeys([lines[0], lines[-1]])
        )
    if theory is None:
        return told + "."
    found = score(rows, x, y, theory)
    return f"{told}; theory foresaw {found.right} of {found.runs} outcomes."


def sentences(base: RunConfig, rows: Sequence[Row], inits: Sequence[str], axes: Sequence[Any]) -> list[str]:
    """One ``sentence`` an initialization, for a sweep of ``base`` over two axes (with ``field`` and
    ``values``).
    """
    x, y = sorted(axes, key=lambda axis: axis.field == "model")
    told = []
    for init in inits:
        theory = theory_map(base.replace(init=init), x.field, x.values, y.field, y.values)
        told.append(
            sentence([row for row in rows if row["init"] == init], x.field, y.field, theory, init_title(init))
        )
    return told


def span(rows: Sequence[Row], x: str) -> str:
    """The values of ``x`` at which most runs converged, of one line's rows: 'from gain 0.4', 'at no gain
    tried'.
    """
    told = sorted((row for row in rows if row["runs"]), key=lambda row: row[x])
    good = [i for i, row in enumerate(told) if 2 * row["converged"] > row["runs"]]
    name = title(x).lower()
    if not good:
        return f"at no {name} tried"
    if len(good) == len(told):
        return f"at every {name} tried"
    values = [shown(x, told[i][x]) for i in good]
    if (
        good[-1] - good[0] + 1 != len(good)
        or (len(good) == 1 and 0 < good[0] < len(told) - 1)
        or not isinstance(told[0][x], (int, float))
    ):
        return (
            f"at {name} {', '.join(values[:-1])} and {values[-1]}"
            if len(values) > 1
            else f"at {name} {values[0]}"
        )
    if good[-1] == len(told) - 1:
        return f"from {name} {values[0]}"
    return f"up to {name} {values[-1]}" if good[0] == 0 else f"from {name} {values[0]} to {values[-1]}"


def title(field: str) -> str:
    """How an axis is called: the config field's title, the network for its depth."""
    return "Network" if field == "model" else OPTIONS[field].title


def shown(field: str, value: Any) -> str:
    """An axis' value in words."""
    if field == "init":
        return init_title(value)
    if field == "model":
        return MODELS[value].title if value in MODELS else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _place(field: str, value: Any) -> str:
    return (
        f"{'in' if field == 'model' else 'with'} "
        f"{'' if field in ('model', 'init') else title(field).lower() + ' '}{shown(field, value)}"
    )
