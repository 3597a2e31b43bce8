"""One observation about a run, and what all rules share in making one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import LIMITS, OURS_NAME, Thresholds


@dataclass(frozen=True)
class Finding:
    """``value`` against ``threshold``, at ``layers`` (none: the whole run), seen at the recorded ``step``
    (None: at no one step).

    ``first``: seen at the first recorded step already, so that initialization, inputs or structure did it,
    not training.
    """

    id: str
    layers: tuple[str, ...]
    value: float | None
    threshold: float | None
    source: str
    text: str
    step: int | None = None
    first: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers)}


def source_of(name: str, thresholds: Thresholds) -> str:
    """Whose number a threshold is: moved by hand, for ours the place it was taken from, else the preset's."""
    if name in thresholds.moved:
        return "moved by hand"
    return LIMITS[name].source if thresholds.name == OURS_NAME else thresholds.name


def plural(v: RunSignals, names: Sequence[str]) -> str:
    """Layers for a sentence."""
    first = v.called(names[0])
    return first if len(names) == 1 else f"{first} to {v.called(names[-1])} ({len(names)} layers)"


def moment(v: RunSignals, at: int) -> str:
    """When, for a sentence: the index of a recorded step."""
    return "Before any update" if at == 0 else f"By step {int(v.rows.steps[at])},"


def start_of(v: RunSignals) -> int | None:
    """The first recorded step."""
    return int(v.rows.steps[0]) if len(v.rows.steps) else None


def names_of(v: RunSignals, mask: np.ndarray) -> tuple[str, ...]:
    """Names of the layers where ``mask`` holds."""
    return tuple(name for name, yes in zip(v.rows.names, mask, strict=True) if yes)


def since(condition: np.ndarray) -> int | None:
    """Index of the first recorded step with ``condition`` if it holds there at the very first, or lasts: for
    half of what follows or of the last fifth of the run.
    """
    if not len(condition) or not condition.any():
        return None
    at = int(condition.argmax())
    lasts = condition[at:].mean() >= 0.5 or condition[-max(1, len(condition) // 5) :].mean() >= 0.5
    return at if at == 0 or lasts else None
