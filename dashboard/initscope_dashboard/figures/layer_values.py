"""One value of every layer at one recorded step, the first or the newest, for several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from initscope_dashboard.figures.base import Subject


class LayerValues(NamedTuple):
    """One run's value of every layer, nearest the input first."""

    subject: Subject
    layers: list[str]
    values: np.ndarray
    step: int


def first(subjects: Sequence[Subject], frames: Mapping[str, pd.DataFrame], metric: str) -> list[LayerValues]:
    """Each run's first recorded step; a run without rows is left out."""
    return _at(0, subjects, frames, metric)


def newest(subjects: Sequence[Subject], frames: Mapping[str, pd.DataFrame], metric: str) -> list[LayerValues]:
    """Each run's last recorded step; a run without rows is left out."""
    return _at(-1, subjects, frames, metric)


def _at(
    row: int, subjects: Sequence[Subject], frames: Mapping[str, pd.DataFrame], metric: str
) -> list[LayerValues]:
    result = []
    for who in subjects:
        frame = frames.get(who.run)
        if frame is None or frame.empty:
            continue
        step = int(frame["step"].iloc[row])
        rows = frame[frame["step"] == step].sort_values("depth", kind="stable")
        result.append(
            LayerValues(who, [str(n) for n in rows["layer"]], rows[metric].to_numpy(dtype=np.float64), step)
        )
    return result
