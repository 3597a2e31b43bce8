"""The story's measured numbers: how soon VGG16 leaves chance on FashionMNIST, by initialization, rate and
seed.

``story.csv`` is what ``python -m tests.benchmarks.story --seeds 2`` wrote: quarter width, 32 pixels,
batches of 64, Adam, at most 400 steps. A cell has left chance at the step at which the mean accuracy of its
last 20 batches is above 25 %.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from initscope.config.catalog import init_title

MEASURED = Path(__file__).with_suffix(".csv")
CONDITION = (
    "VGG16 without batch norm at a quarter of its width, FashionMNIST at 32 pixels, batches of 64, Adam at "
    "three learning rates, two seeds each, at most 400 steps. It has left chance once the mean accuracy of "
    "20 batches is above 25 %. Measured by `python -m tests.benchmarks.story --seeds 2`."
)


class Cell(NamedTuple):
    """One training: ``left_at`` is the step at which it left chance, None if it had not after ``steps``."""

    init: str
    learning_rate: float
    seed: int
    steps: int
    left_at: int | None


@cache
def cells() -> tuple[Cell, ...]:
    """Every training that was measured, in the order of the file."""
    with open(MEASURED, encoding="utf-8", newline="") as file:
        return tuple(
            Cell(
                row["init"],
                float(row["learning_rate"]),
                int(row["seed"]),
                int(row["steps"]),
                int(row["left_at"]) if row["left_at"] else None,
            )
            for row in csv.DictReader(file)
        )


def sentence() -> str:
    """What the cells say of the story's two initializations, with their numbers."""
    return f"With {_told('kaiming_normal', 'VGG16 begins to learn')}; with {_told('default', 'it begins')}."


def _told(init: str, verb: str) -> str:
    mine = [cell for cell in cells() if cell.init == init]
    left = sorted(cell.left_at for cell in mine if cell.left_at is not None)
    never = len(mine) - len(left)
    who = f"{init_title(init)} weights {verb}"
    span = f"after {left[0]} to {left[-1]} steps in {len(left)} of {len(mine)} runs"
    return f"{who} {span}" + (
        f" and not within {max(cell.steps for cell in mine)} in {never}" if never else ""
    )


def shrinks_by(layers: int) -> float:
    """What is left of a signal of size 1 after so many layers with PyTorch's default weights and ReLU,
    biases left aside: each layer multiplies its variance by fan_in · 1/(3 fan_in) · 1/2 = 1/6.
    """
    return 6 ** (-layers / 2)
