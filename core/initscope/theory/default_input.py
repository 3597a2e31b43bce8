"""A typical batch without reading any data: what theory needs to draw its curve where torch and the data set
are not loaded.

The numbers are those of the embedded digits (``input_stats`` of 64 images at 32x32; a test holds them against
it). Strokes in the middle of a dark image: FashionMNIST and MNIST differ by tens of percent, not by powers of
ten.
"""

from __future__ import annotations

import numpy as np

from initscope.config.run_config import RunConfig
from initscope.theory.fields import InputStats

_SIZE = 32
_MEAN, _MEAN_SQUARE = 0.305, 0.190
_WITHIN = (1.0, 0.986, 0.947, 0.826, 0.589, 0.456)
_APART = (0.241, 0.231, 0.204, 0.126, 0.004, -0.006)
_COHERENCE = (1.0, 0.958, 0.845, 0.515, 0.016, -0.023)
_UNEQUAL = (0.241, 0.228, 0.198, 0.114, 0.047, 0.008)
_ROWS = (0.99, 1.15, 0.95, 0.99, 1.02, 0.91, 0.99, 1.01)
_COLUMNS = (0.01, 0.25, 1.55, 2.22, 2.13, 1.48, 0.34, 0.02)
_APART_ROWS = (0.76, 0.78, 1.07, 1.16, 1.21, 1.20, 0.94, 0.87)
_APART_COLUMNS = (0.02, 0.50, 1.62, 1.53, 1.66, 1.87, 0.76, 0.04)


def typical_stats(config: RunConfig, *, in_channels: int = 1, num_classes: int = 10) -> InputStats:
    """Statistics of a batch as ``config`` would see it, were its data the digits. Balanced classes."""
    size = config.image_size
    count = size.bit_length() - (size == 1 << (size.bit_length() - 1))
    pixels = np.array([0, *(2**i for i in range(count))]) * _SIZE / size
    within, apart, coherence = (_at(pixels, table) for table in (_WITHIN, _APART, _COHERENCE))
    square = _MEAN_SQUARE
    if config.normalize == "standardize":
        variance = _MEAN_SQUARE - _MEAN**2
        within, apart, square = (
            (within * _MEAN_SQUARE - _MEAN**2) / variance,
            apart * _MEAN_SQUARE / variance,
            1.0,
        )
    sides = np.minimum(2.0 ** np.arange(count + 1) * _SIZE / size, _SIZE)
    return InputStats(
        shape=(in_channels, size, size),
        batch=config.batch_size,
        mean_square=square,
        unequal=tuple(np.interp(np.log2(np.maximum(sides, 1)), np.arange(len(_UNEQUAL)), _UNEQUAL).tolist()),
        within=tuple(within.tolist()),
        apart=tuple(apart.tolist()),
        coherence=tuple(coherence.tolist()),
        same_label=1 / num_classes,
        rows=_ROWS,
        columns=_COLUMNS,
        apart_rows=_APART_ROWS,
        apart_columns=_APART_COLUMNS,
    )


def _at(pixels: np.ndarray, table: tuple[float, ...]) -> np.ndarray:
    """A table by distance 0, 1, 2, 4, ... at other distances: smooth images differ by the square of a small
    distance.
    """
    knots = np.log2(1 + np.array([0, *(2**i for i in range(len(table) - 1))]))
    far = np.interp(np.log2(1 + pixels), knots, table)
    return np.where(pixels < 1, table[0] - (table[0] - table[1]) * pixels**2, far)
