"""The layers table as arrays: what the rules compute with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from initscope.schema import LAYER_METRICS

MOST_STEPS = 1500
"""Layer rows are thinned to about so many steps: the first ones and an even choice of the others."""
EARLY = 10
"""Recorded steps that count as the beginning."""

Frame = Any
"""A pyarrow table or pandas data frame."""


@dataclass(frozen=True)
class LayerRows:
    """The layers table as arrays: ``values[metric]`` is (steps, layers), NaN where nothing was measured."""

    names: tuple[str, ...]
    steps: np.ndarray
    values: Mapping[str, np.ndarray]

    def first(self, metric: str) -> np.ndarray:
        """A metric at the first recorded step, one number a layer."""
        rows = self.values[metric]
        return rows[0] if len(rows) else np.full(len(self.names), np.nan)


def pandas_of(frame: Frame) -> Any:
    """A pandas data frame, whatever came in."""
    return frame.to_pandas() if hasattr(frame, "to_pandas") else frame


def layer_rows(layers: Frame) -> LayerRows:
    """Pivot the tidy layers table to (steps, layers) arrays, thinned to ``MOST_STEPS``."""
    frame = pandas_of(layers)
    steps = np.unique(frame["step"].to_numpy()) if len(frame) else np.array([], int)
    if len(steps) > MOST_STEPS:
        chosen = np.unique(np.linspace(2 * EARLY, len(steps) - 1, MOST_STEPS - 2 * EARLY).astype(int))
        steps = steps[np.concatenate([np.arange(2 * EARLY), chosen])]
        frame = frame[frame["step"].isin(steps)]
    depth = frame["depth"].to_numpy()
    # A layer that first runs later changes the order: the last row of each has the final depth.
    name = frame["layer"].astype(str).to_numpy()
    last_depth = dict(zip(name, depth, strict=True))
    names = tuple(sorted(last_depth, key=lambda n: last_depth[n]))
    where = {n: j for j, n in enumerate(names)}
    i, j = np.searchsorted(steps, frame["step"].to_numpy()), np.array([where[n] for n in name], int)
    values = {}
    for metric in LAYER_METRICS:
        grid = np.full((len(steps), len(names)), np.nan)
        grid[i, j] = frame[metric].to_numpy(dtype=float, na_value=np.nan)
        values[metric] = grid
    return LayerRows(names, steps, values)
