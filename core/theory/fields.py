"""Second moments of a layer's units: what the mean-field recursion carries from layer to layer.

Units of one map are alike, pixels are treated as stationary, so a layer is described by the covariance of a unit with
itself at another pixel of the same sample, and of another sample, as a function of the distance (lag) between pixels
(the diagonal of the CNN Gaussian process of Novak et al. 2019 and Garriga-Alonso et al. 2019, averaged over pixels).

Differences are carried, not covariances: two samples whose pre-activations agree to twelve digits are told apart by
a number of its own, not by the subtraction of two nearly equal ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Field:
    """Moments of one layer's units, averaged over units, pixels and pairs of samples.

    ``space`` and ``sample`` have one entry a lag (rows down, columns right), shape (height, width) of the map; a flat
    layer has shape (1, 1).
    """

    square: float
    """q, the mean square of a unit."""
    mean: float
    """The mean of a unit (over weights)."""
    unequal: float
    """How much samples differ in length: 1 - sqrt(q1 q2) / q, with q1 and q2 the mean squares of a typical pair."""
    space: Array
    """q - E[z(x) z(x + lag)] within a sample: 0 at lag 0."""
    sample: Array
    """E[z(x) z(x + lag)] within a sample minus the same between two samples scaled to equal length."""

    @property
    def same(self) -> Array:
        """E[z(x) z(x + lag)] within a sample."""
        return self.square - self.space

    @property
    def apart(self) -> Array:
        """``same`` minus the covariance between samples of their real lengths: half the mean squared difference at lag 0."""
        return self.unequal * self.same + (1 - self.unequal) * self.sample

    @property
    def variance(self) -> float:
        return max(self.square - self.mean**2, 0.0)

    @property
    def ratio(self) -> float:
        """r with q1, q2 = q (1 +- r)."""
        return math.sqrt(self.unequal * (2 - self.unequal))


def unequal_of(ratio: float) -> float:
    """1 - sqrt(1 - ratio^2), stable for small ratios: inverse of ``Field.ratio``."""
    ratio = min(abs(ratio), 1.0)
    return ratio**2 / (1 + math.sqrt(1 - ratio**2))


def from_apart(square: float, mean: float, unequal: float, space: Array, apart: Array) -> Field:
    """The field whose samples are ``apart`` in total: takes out the part that is a difference of lengths."""
    unequal = min(unequal, 0.999)
    sample = np.maximum((apart - unequal * (square - space)) / (1 - unequal), 0.0)
    return Field(square, mean, unequal, space, sample)


def flatten(field: Field) -> Field:
    """A map as a vector: a linear layer's weights are independent between pixels, so only lag 0 is left."""
    return Field(field.square, field.mean, field.unequal, np.zeros((1, 1)), field.sample[:1, :1].copy())


@dataclass(frozen=True)
class InputStats:
    """What theory needs to know about a batch: a handful of numbers."""

    shape: tuple[int, ...]
    """Of one sample: (channels, height, width), or (features,)."""
    batch: int
    """Samples in the batch."""
    mean_square: float
    """Mean squared input value."""
    unequal: float
    """How much the samples' lengths differ: the variance of their RMS over the mean square (see ``Field.unequal``)."""
    within: tuple[float, ...]
    """Correlation (uncentered) between pixels of one image at distance 0, 1, 2, 4, 8, ... pixels."""
    between: tuple[float, ...]
    """``within`` minus the same correlation between pixels of two different images scaled to equal length."""
    same_label: float = 0.1
    """Share of pairs of different samples that have the same class."""

    def field(self) -> Field:
        """The inputs as a field: correlations interpolated in the logarithm of the distance."""
        if len(self.shape) == 1:
            return Field(self.mean_square, 0.0, self.unequal, np.zeros((1, 1)), np.full((1, 1), self.mean_square * self.between[0]))
        height, width = self.shape[-2:]
        distance = np.hypot(np.arange(height)[:, None], np.arange(width)[None, :])
        knots = np.log2(1 + np.array(distances(len(self.within))))
        space = self.mean_square * (1 - np.interp(np.log2(1 + distance), knots, self.within))
        sample = self.mean_square * np.interp(np.log2(1 + distance), knots, self.between)
        return Field(self.mean_square, 0.0, self.unequal, space, sample)


def distances(count: int) -> list[int]:
    """0, 1, 2, 4, 8, ...: the distances at which ``InputStats`` holds correlations."""
    return [0, *(2**i for i in range(count - 1))]


def input_stats(inputs: Array, labels: Array | None = None) -> InputStats:
    """Statistics of a batch ``(N, channels, height, width)`` or ``(N, features)``; class indices ``labels`` (N,).

    Without labels, pairs are taken to share a class one time in ten.
    """
    inputs = np.asarray(inputs, dtype=np.float64)
    count = len(inputs)
    squares = (inputs**2).reshape(count, -1).mean(axis=1)
    mean_square = float(squares.mean())
    rms = np.sqrt(squares)
    unequal = float(rms.var(ddof=1) / mean_square) if count > 1 and mean_square else 0.0
    # Samples of equal length, minus their mean: what the direction of a sample adds (a sample of zeros has none).
    scaled = inputs / np.where(rms > 0, rms, 1.0).reshape(-1, *[1] * (inputs.ndim - 1))
    centred = scaled - scaled.mean(axis=0)
    bessel = count / max(count - 1, 1)
    sizes = inputs.shape[2:]
    within, between = [1.0], [bessel * float((centred**2).mean())]
    step = 1
    while sizes and step < max(sizes):
        power, same = _lagged(scaled, scaled, step)
        within.append(same / power if power else 1.0)
        between.append(bessel * _lagged(centred, scaled, step)[1] / power if power else 0.0)
        step *= 2
    return InputStats(
        shape=inputs.shape[1:], batch=count, mean_square=mean_square, unequal=min(unequal, 0.999), within=tuple(within),
        between=tuple(between), same_label=_same_label(labels, count),
    )  # fmt: skip


def _lagged(values: Array, reference: Array, step: int) -> tuple[float, float]:
    """(mean square of ``reference``, mean product of ``values``) over all pairs of pixels ``step`` apart, both directions."""
    power, product, pairs = 0.0, 0.0, 0
    for axis in (2, 3):
        if values.ndim <= axis or values.shape[axis] <= step:
            continue
        near, far = np.arange(values.shape[axis] - step), np.arange(step, values.shape[axis])
        first, second = np.take(values, near, axis), np.take(values, far, axis)
        product += float((first * second).sum())
        power += float((np.take(reference, near, axis) ** 2).sum() + (np.take(reference, far, axis) ** 2).sum()) / 2
        pairs += first.size
    return power / max(pairs, 1), product / max(pairs, 1)


def _same_label(labels: Array | None, count: int) -> float:
    if labels is None or count < 2:
        return 0.1
    sizes = np.unique(np.asarray(labels), return_counts=True)[1]
    return float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
