"""Second moments of a layer's units: what the mean-field recursion carries from layer to layer.

Units of one map are alike. Their covariance between two pixels, of one sample or of two, is the CNN Gaussian
process of Novak et al. 2019 and Garriga-Alonso et al. 2019; here it is condensed to

    E[z(x) z(x + lag)] = sqrt(p(x) p(x + lag)) * table(lag) (1)

a table by the lag between the pixels, times a profile p of mean one over the map's rows and one over its
columns: images are brighter in the middle, and zero padding darkens the rim.

Differences are carried, not covariances: two samples whose pre-activations agree to twelve digits are told
apart by a number of its own, not by the subtraction of two nearly equal ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray
Profile = tuple[Array, Array]
"""(rows, columns), each of mean one."""

FLAT: Profile = (np.ones(1), np.ones(1))


@dataclass(frozen=True)
class Field:
    """Moments of one layer's units, averaged over units, pixels and pairs of samples.

    Tables have one entry a lag (rows down, columns right), shape (height, width) of the map; a flat layer's
    are (1, 1).
    """

    square: float
    """q, the mean square of a unit."""
    mean: float
    """The mean of a unit (over weights)."""
    unequal: float
    """How much two samples differ in length within the pixels a unit sees: 1 - sqrt(q1 q2) / q (see
    ``InputStats.unequal``).

    ReLU passes on a difference of length in full, one of direction only in part: the two are carried apart.
    """
    space: Array
    """q minus the table of equation 1 within a sample: 0 at lag 0."""
    sample: Array
    """What a difference of direction adds to ``apart``: what is left between two samples scaled to equal
    length.
    """
    coherence: Array
    """By lag, how far the difference of length at one pixel is that of another: 1 at lag 0."""
    profile: Profile = FLAT
    """p of equation 1."""
    sample_profile: Profile = FLAT
    """The profile of ``sample``."""
    reach: float = 0.0
    """Variance of the input positions a unit sees, in pixels^2 along one axis."""
    jump: float = 1.0
    """Input pixels between neighbouring pixels of this map."""

    @property
    def same(self) -> Array:
        """The table of equation 1 within a sample."""
        return self.square - self.space

    @property
    def apart(self) -> Array:
        """``same`` minus the table between samples of their real lengths: half the mean squared difference at
        lag 0.
        """
        return self.length + (1 - self.unequal) * self.sample

    @property
    def length(self) -> Array:
        """The part of ``apart`` that is a difference of length."""
        return self.unequal * self.square * self.coherence

    @property
    def variance(self) -> float:
        return max(self.square - self.mean**2, 0.0)

    @property
    def ratio(self) -> float:
        """r with q1, q2 = q (1 +- r)."""
        return math.sqrt(self.unequal * (2 - self.unequal))

    @property
    def scale(self) -> float:
        """Side of the square of input pixels that a unit sees, weighted by how much it sees of each."""
        return math.sqrt(1 + 12 * self.reach)

    def with_apart(self, apart: Array, unequal: float) -> Field:
        """The same field with samples ``apart`` in total, of which ``unequal`` is a difference of lengths."""
        result = replace(self, unequal=min(unequal, 0.999))
        return replace(result, sample=np.maximum((apart - result.length) / (1 - result.unequal), 0.0))


def unequal_of(ratio: float) -> float:
    """1 - sqrt(1 - ratio^2), stable for small ratios: inverse of ``Field.ratio``."""
    ratio = min(abs(ratio), 1.0)
    return ratio**2 / (1 + math.sqrt(1 - ratio**2))


def lag_mean(table: Array) -> float:
    """Mean of a table over all ordered pairs of pixels."""
    weights = [np.where(np.arange(n) == 0, 1, 2) * np.arange(n, 0, -1) / n**2 for n in table.shape]
    return float(weights[0] @ table @ weights[1])


BINS = 8
"""Strips of rows, and of columns, in which ``InputStats`` holds the brightness of the images."""


@dataclass(frozen=True, kw_only=True)
class InputStats:
    """What theory needs to know about a batch: a handful of numbers, no image."""

    shape: tuple[int, ...]
    """Of one sample: (channels, height, width), or (features,)."""
    batch: int
    """Samples in the batch."""
    mean_square: float
    """Mean squared input value."""
    unequal: tuple[float, ...] = (0.0,)
    """How much two samples differ in length inside a square of 1, 2, 4, ... pixels and in the whole image
    (last): 1 - sum sqrt(Pa Pb) / sum (Pa + Pb)/2 over all squares and pairs, with P the sum of squares
    inside.
    """
    within: tuple[float, ...] = (1.0,)
    """Correlation (not centred) between pixels of one image at distance 0, 1, 2, 4, 8, ... pixels."""
    apart: tuple[float, ...] = (1.0,)
    """``within`` minus the same correlation between pixels of two different images."""
    coherence: tuple[float, ...] = (1.0,)
    """Correlation between two images' difference in brightness at a pixel and that at pixels 0, 1, 2, 4, ...
    away.
    """
    same_label: float = 0.1
    """Share of pairs of different samples that have the same class."""
    rows: tuple[float, ...] = (1.0,)
    """Mean square in horizontal strips from top to bottom, over that of the image."""
    columns: tuple[float, ...] = (1.0,)
    """The same in vertical strips from left to right."""
    apart_rows: tuple[float, ...] = (1.0,)
    """Variance between images in horizontal strips, over that of the image."""
    apart_columns: tuple[float, ...] = (1.0,)
    """The same in vertical strips."""

    def field(self) -> Field:
        """The inputs as a field: correlations interpolated in the logarithm of the distance."""
        height, width = self.shape[-2:] if len(self.shape) > 1 else (1, 1)
        distance = np.hypot(np.arange(height)[:, None], np.arange(width)[None, :])
        knots = np.log2(1 + np.array([0, *(2**i for i in range(len(self.within) - 1))]))
        within, apart, coherence = (
            np.interp(np.log2(1 + distance), knots, values)
            for values in (self.within, self.apart, self.coherence)
        )
        start = Field(
            self.mean_square,
            0.0,
            0.0,
            self.mean_square * (1 - within),
            np.zeros_like(distance),
            coherence,
            (_stretch(self.rows, height), _stretch(self.columns, width)),
            (_stretch(self.apart_rows, height), _stretch(self.apart_columns, width)),
        )
        return start.with_apart(
            self.mean_square * apart, self.unequal_at(1.0) if height * width > 1 else self.unequal[-1]
        )

    def unequal_at(self, scale: float) -> float:
        """``unequal`` inside a square of side ``scale``, interpolated in its logarithm."""
        knots = np.log2(
            [
                *(2.0**i for i in range(len(self.unequal) - 1)),
                max(self.shape[-2:]) if len(self.shape) > 1 else 1.0,
            ]
        )
        return float(np.interp(math.log2(scale), knots, self.unequal))


def _stretch(strips: tuple[float, ...], size: int) -> Array:
    """Strips to pixels, of mean one."""
    positions = (np.arange(size) + 0.5) / size * len(strips) - 0.5
    profile = np.interp(positions, np.arange(len(strips)), strips)
    return profile / profile.mean() if profile.mean() > 0 else np.ones(size)


def input_stats(inputs: Array, labels: Array | None = None) -> InputStats:
    """Statistics of a batch ``(N, channels, height, width)`` or ``(N, features)``; class indices ``labels``
    (N,).

    Without labels, pairs are taken to share a class one time in ten.
    """
    inputs = np.asarray(inputs, dtype=np.float64)
    images = inputs if inputs.ndim == 4 else inputs.reshape(len(inputs), -1, 1, 1)
    count, _, height, width = images.shape
    bessel = count / max(count - 1, 1)
    centred = images - images.mean(axis=0)
    power, varied = (images**2).mean(axis=(0, 1)), bessel * (centred**2).mean(axis=(0, 1))
    lengths = np.sqrt((images**2).sum(axis=1, keepdims=True))
    lengths -= lengths.mean(axis=0)
    within, apart, coherence = [1.0], [_ratio(varied.mean(), power.mean())], [1.0]
    distance = 1
    while distance < max(height, width):
        near = _lagged(images**2, np.ones_like(images), distance)
        within.append(_ratio(_lagged(images, images, distance), near, 1.0))
        apart.append(_ratio(bessel * _lagged(centred, centred, distance), near))
        coherence.append(
            _ratio(
                _lagged(lengths, lengths, distance), _lagged(lengths**2, np.ones_like(lengths), distance), 1.0
            )
        )
        distance *= 2
    sides = [2**i for i in range(max(height, width).bit_length()) if 2**i < max(height, width)]
    return InputStats(
        shape=inputs.shape[1:],
        batch=count,
        mean_square=float(power.mean()),
        unequal=tuple(_unequal(images, side) for side in (*sides, max(height, width))),
        within=tuple(within),
        apart=tuple(apart),
        coherence=tuple(coherence),
        same_label=_same_label(labels, count),
        rows=_strips(power.mean(axis=1)),
        columns=_strips(power.mean(axis=0)),
        apart_rows=_strips(varied.mean(axis=1)),
        apart_columns=_strips(varied.mean(axis=0)),
    )


def _ratio(value: float, of: float, otherwise: float = 0.0) -> float:
    return float(value / of) if of > 0 else otherwise


def _lagged(first: Array, second: Array, distance: int) -> float:
    """Mean over all pairs of pixels ``distance`` apart along an axis of (first second' + second first') /
    2.
    """
    total, pairs = 0.0, 0
    for axis in (2, 3):
        if first.shape[axis] > distance:
            near, far = np.arange(first.shape[axis] - distance), np.arange(distance, first.shape[axis])
            total += float((np.take(first, near, axis) * np.take(second, far, axis)).sum())
            total += float((np.take(second, near, axis) * np.take(first, far, axis)).sum())
            pairs += 2 * np.take(first, near, axis).size
    return total / max(pairs, 1)


def _unequal(images: Array, side: int) -> float:
    """``InputStats.unequal`` in squares of ``side`` pixels: sum over pairs of sqrt(Pa Pb) is ((sum sqrt P)^2
    - sum P) / 2.
    """
    count, _, height, width = images.shape
    if count < 2:
        return 0.0
    power = np.add.reduceat(
        np.add.reduceat((images**2).sum(axis=1), range(0, height, side), 1), range(0, width, side), 2
    )
    total = power.sum()
    both = ((np.sqrt(power).sum(axis=0) ** 2).sum() - total) / (count - 1)
    return min(max(_ratio(total - both, total), 0.0), 0.999)


def _strips(profile: Array) -> tuple[float, ...]:
    mean = profile.mean()
    parts = np.array_split(profile, min(BINS, len(profile)))
    return tuple(_ratio(part.mean(), mean, 1.0) for part in parts)


def _same_label(labels: Array | None, count: int) -> float:
    if labels is None or count < 2:
        return 0.1
    sizes = np.unique(np.asarray(labels), return_counts=True)[1]
    return float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
