"""Kernels and windows along one axis of a map: which input pixels an output pixel sees, and what that does to
pairs.

A pair of pixels a lag apart has covariance sqrt(p(x) p(x + lag)) table(lag) (equation 1 of ``fields``).
Everything here is exact for such covariances but for one average: a share by lag stands for all pairs at that
lag.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Shares:
    """What a profile becomes: its mean, the new profile over that mean, and by lag how much of the table two
    pixels share.
    """

    mean: float
    profile: Array
    shares: Array


def _shares(views: Array, taps: int) -> Shares:
    """``views[t, x]``: square root of the profile at the pixel that x sees through tap t, 0 where there is
    none.
    """
    size = views.shape[1]
    profile = (views**2).sum(axis=0) / taps
    lengths = np.sqrt(profile)
    together = sum(_by_lag(view, view) for view in views) / taps
    alone = _by_lag(lengths, lengths)
    shares = np.divide(together, alone, out=np.zeros(size), where=alone > 0)
    mean = float(profile.mean())
    return Shares(mean, profile / mean if mean > 0 else np.ones(size), shares)


def _by_lag(first: Array, second: Array) -> Array:
    """Sum over x of first(x) second(x + lag), for lag 0, 1, 2, ..."""
    return np.correlate(second, first, "full")[len(first) - 1 :]


@dataclass(frozen=True)
class Taps:
    """A kernel of ``kernel`` taps along an axis of ``size`` input pixels."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def outputs(self) -> int:
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def input_lags(self) -> Array:
        """The input lag of each output lag."""
        lags = np.arange(self.outputs) * self.stride
        return np.minimum(lags, self.size - 1)

    @property
    def spread(self) -> float:
        """Variance of the positions of the taps, in input pixels^2."""
        return self.dilation**2 * (self.kernel**2 - 1) / 12

    @functools.cached_property
    def _sees(self) -> tuple[Array, Array]:
        """(input pixel of (tap, output), whether it is inside), both of shape (kernel, outputs)."""
        position = (
            np.arange(self.outputs)[None, :] * self.stride
            - self.padding
            + np.arange(self.kernel)[:, None] * self.dilation
        )
        inside = (position >= 0) & (position < self.size)
        return np.where(inside, position, 0), inside

    def _views(self, profile: Array) -> Array:
        position, inside = self._sees
        return np.sqrt(profile)[position] * inside

    def gather(self, profile: Array) -> Shares:
        """Outputs as means over their taps: at lag 0 the mean is the share of the taps that fall inside,
        10/12 for 3 on 4 pixels.
        """
        return _shares(self._views(profile), self.kernel)

    def scatter(self, profile: Array) -> Shares:
        """Inputs as sums over the outputs that see them: the way back."""
        position, inside = self._sees
        views = np.zeros((self.kernel, self.size))
        for tap in range(self.kernel):
            np.add.at(views[tap], position[tap][inside[tap]], np.sqrt(profile)[inside[tap]])
        return _shares(views, 1)

    def overlap(self, grads: Array, profile: Array) -> Array:
        """By output lag, for the mean over taps: the sum over ordered pairs of outputs of the roots of both
        profiles.
        """
        views = self._views(profile) * np.sqrt(grads)
        total = sum(_by_lag(view, view) for view in views) / self.kernel
        return total * np.where(np.arange(self.outputs) == 0, 1, 2)


class Windows:
    """Pooling windows along an axis of ``size`` pixels."""

    def __init__(self, size: int, kernel: int, stride: int, padding: int):
        self.size, self.stride, self.padding = size, stride, padding
        self.kernel = min(kernel, size + 2 * padding)
        self.outputs = max((size + 2 * padding - kernel) // stride + 1, 1)

    @functools.cached_property
    def average(self) -> Array:
        """Matrix (outputs, size): a table by pixel lag to its mean over pairs of pixels of two windows a lag
        apart.
        """
        result = np.zeros((self.outputs, self.size))
        for lag in range(self.outputs):
            for shift in range(1 - self.kernel, self.kernel):
                result[lag, min(abs(lag * self.stride + shift), self.size - 1)] += (
                    self.kernel - abs(shift)
                ) / self.kernel**2
        return result

    @functools.cached_property
    def spread(self) -> Array:
        """Matrix (size, outputs): pairs of pixels a lag apart in windows a lag apart, per pair of pixels a
        lag apart.
        """
        result = np.zeros((self.size, self.outputs))
        for lag in range(1 - self.outputs, self.outputs):
            for shift in range(1 - self.kernel, self.kernel):
                apart = lag * self.stride + shift
                if 0 <= apart < self.size:
                    pairs = (self.kernel - abs(shift)) * (self.outputs - abs(lag))
                    result[apart, abs(lag)] += pairs / (self.size - apart)
        return result

    @functools.cached_property
    def _members(self) -> Array:
        """Matrix (outputs, size): 1 where the pixel is in the window."""
        position = (
            np.arange(self.size)[None, :] + self.padding - np.arange(self.outputs)[:, None] * self.stride
        )
        return ((position >= 0) & (position < self.kernel)).astype(float)

    def pool(self, profile: Array) -> Array:
        """The profile of the windows."""
        pooled = self._members @ profile / self._members.sum(axis=1)
        return pooled / pooled.mean()

    def unpool(self, profile: Array) -> Array:
        """The profile of the pixels, a window's share spread evenly over them."""
        spread = self._members.T @ profile
        return spread / spread.mean()
