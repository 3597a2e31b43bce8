"""The layers theory knows: each maps a ``Field`` forward and the covariances of the gradient back.

Back-propagated errors are taken to be independent of the forward pass (Schoenholz et al. 2017, section 3).
The fans are exact: taps of a kernel that fall on zero padding add nothing, so that a 3x3 kernel on a 1x1 map
sums over one ninth of its fan_in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from initscope.errors import TheoryUnavailable
from initscope.theory import geometry, kernels
from initscope.theory.fields import FLAT, Array, Field, InputStats, Profile, lag_mean, unequal_of

Pair = tuple[int, int]


@dataclass(frozen=True)
class Gradient:
    """Covariance of the loss gradient at two pixels, as in equation 1 of ``fields``.

    ``table`` has shape (2, height, width): [0] within a sample, [1] between two samples.
    """

    table: Array
    profile: Profile = FLAT

    def scaled(self, factor: Array | float) -> Gradient:
        return Gradient(self.table * factor, self.profile)


@dataclass(frozen=True)
class Weighted:
    """A convolution or linear layer with independent weights N(0, weight_std^2) and biases N(0,
    bias_std^2).
    """

    name: str
    kind: str
    """Class of the module, lower case."""
    weight_std: float
    bias_std: float
    fan_in: int
    fan_out: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def _axes(self, field: Field) -> list[geometry.Taps]:
        sides = zip(field.space.shape, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [geometry.Taps(*side) for side in sides]

    def forward(self, field: Field, stats: InputStats) -> Field:
        """K_out = bias_std^2 + weight_std^2 fan_in K_in (Poole et al. 2016, equation 3; Xiao et al. 2018,
        equation 2.5).

        On a map, K_in is the mean over the taps that two output pixels have in common. The bias is the same
        for every pixel and sample: it drops out of all differences, and dilutes a difference of lengths.
        """
        axes = self._axes(field)
        near = np.ix_(*(axis.input_lags for axis in axes))
        weight, bias = self.weight_std**2 * self.fan_in, self.bias_std**2
        rows, columns = (axis.gather(p) for axis, p in zip(axes, field.profile, strict=True))
        kept, shared = weight * rows.mean * columns.mean, np.multiply.outer(rows.shares, columns.shares)
        s_rows, s_columns = (axis.gather(p) for axis, p in zip(axes, field.sample_profile, strict=True))
        s_kept, s_shared = (
            weight * s_rows.mean * s_columns.mean,
            np.multiply.outer(s_rows.shares, s_columns.shares),
        )

        square = bias + kept * field.square
        share = kept * field.square / square if square > 0 else 1.0
        result = Field(
            square=square,
            mean=0.0,
            unequal=field.unequal,
            space=kept * ((1 - shared) * field.square + shared * field.space[near]),
            sample=s_kept * s_shared * field.sample[near],
            coherence=shared * field.coherence[near],
            profile=tuple(1 + share * (axis.profile - 1) for axis in (rows, columns)),
            sample_profile=(s_rows.profile, s_columns.profile),
            reach=field.reach + field.jump**2 * sum(axis.spread for axis in axes) / 2,
            jump=field.jump * math.sqrt(math.prod(self.stride)),
        )
        # A wider view averages lengths: what was a difference of length inside small squares becomes one of
        # direction.
        widened = _quotient(stats.unequal_at(result.scale), stats.unequal_at(field.scale))
        unequal = unequal_of(field.ratio * share) * widened
        apart = kept * shared * field.length[near] + (1 - field.unequal) * result.sample
        return result if unequal == field.unequal else result.with_apart(apart, unequal)

    def backward(self, grads: Gradient, field: Field, stats: InputStats) -> Gradient:
        """d loss / d input: weight_std^2 fan_out times the covariance of d loss / d output (He et al. 2015,
        equation 13).
        """
        axes = self._axes(field)
        rows, columns = (axis.scatter(p) for axis, p in zip(axes, grads.profile, strict=True))
        weight = self.weight_std**2 * self.fan_out / math.prod(self.kernel) * rows.mean * columns.mean
        table = np.zeros((2, *field.space.shape))
        lags = np.ix_((0, 1), *(axis.input_lags for axis in axes))
        table[lags] = grads.table
        return Gradient(
            weight * np.multiply.outer(rows.shares, columns.shares) * table, (rows.profile, columns.profile)
        )

    def weight_grad_square(self, grads: Gradient, field: Field, stats: InputStats) -> float:
        """Mean square of the weight gradient, summed over the samples and pixels that share the weight.

        The sum over pairs of (sample, pixel) of E[delta delta'] E[a a']; the activation covariance between
        samples is written as ``same - apart`` so that a batch whose errors cancel leaves what the samples'
        differences are worth.
        """
        axes, others = self._axes(field), stats.batch - 1
        near = np.ix_(*(axis.input_lags for axis in axes))
        counts, s_counts = (
            [axis.overlap(g, p) for axis, g, p in zip(axes, grads.profile, profile, strict=True)]
            for profile in (field.profile, field.sample_profile)
        )
        within, between = grads.table
        same = (within + others * between) * field.same[near] - others * between * field.length[near]
        apart = others * between * (1 - field.unequal) * field.sample[near]
        return max(stats.batch * float(counts[0] @ same @ counts[1] - s_counts[0] @ apart @ s_counts[1]), 0.0)


def _quotient(value: float, of: float) -> float:
    return value / of if of > 0 else 1.0


@dataclass(frozen=True)
class Flatten:
    def forward(self, field: Field, stats: InputStats) -> Field:
        """A map as a vector: a linear layer's weights are independent between pixels, so only lag 0 is
        left.
        """
        one = np.ones((1, 1))
        flat = Field(
            field.square, field.mean, field.unequal, 0 * one, field.sample[:1, :1], one, reach=field.reach
        )
        size = max(stats.shape[-2:]) if len(stats.shape) > 1 else 1
        flat = replace(flat, reach=max(field.reach, (size**2 - 1) / 12))
        unequal = field.unequal * _quotient(stats.unequal_at(flat.scale), stats.unequal_at(field.scale))
        return flat.with_apart(field.apart[:1, :1], unequal)

    def backward(self, grads: Gradient, field: Field, stats: InputStats) -> Gradient:
        """Pixels of one map reach the linear layer through independent weights: their gradients are
        uncorrelated.
        """
        table = np.zeros((2, *field.space.shape))
        table[:, 0, 0] = grads.table[:, 0, 0]
        return Gradient(table, tuple(np.ones(size) for size in field.space.shape))


@dataclass(frozen=True)
class Activation:
    name: str
    slope: float | None = None
    """Negative slope, where the activation has one."""

    def _kernel(self, field: Field) -> kernels.Kernel:
        return kernels.kernel(self.name, field.variance, field.mean, self.slope)

    def forward(self, field: Field, stats: InputStats) -> Field:
        """Equation 2 of ``kernels`` for every lag, within and between samples."""
        kernel = self._kernel(field)
        space = kernel.transfer(np.zeros_like(field.space), field.space)
        result = replace(field, square=kernel.square, mean=kernel.mean, space=space)
        if kernel.homogeneous:
            return replace(result, sample=kernel.transfer(field.space, field.sample))
        one, two = (
            kernels.kernel(self.name, field.variance * (1 + sign * field.ratio), field.mean).square
            for sign in (1, -1)
        )
        unequal = unequal_of(_quotient(one - two, one + two))
        return result.with_apart(kernel.transfer(field.space, field.apart), unequal)

    def backward(self, grads: Gradient, field: Field, stats: InputStats) -> Gradient:
        kernel = self._kernel(field)
        return grads.scaled(np.stack([kernel.gate(field.space), kernel.gate(field.space + field.sample)]))


@dataclass(frozen=True)
class Pool:
    """The largest (``maximum``) or the mean of a window of correlated Gaussians.

    For the largest, the pixels of a window are taken as exchangeable: z_i = common + private_i with the
    window's mean covariance as the variance of ``common``. Then max z = common + max private, whose first two
    moments are those of the maximum of independent normals (order statistics); the sum is treated as Gaussian
    again. Between two samples the private parts are correlated, and ``kernels.max_difference`` says how far
    their maxima are apart.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    maximum: bool = True

    def _axes(self, field: Field) -> list[geometry.Windows]:
        sides = zip(field.space.shape, self.kernel, self.stride, self.padding, strict=True)
        return [geometry.Windows(*side) for side in sides]

    def forward(self, field: Field, stats: InputStats) -> Field:
        axes = self._axes(field)
        space, sample, coherence = (
            axes[0].average @ table @ axes[1].average.T
            for table in (field.space, field.apart, field.coherence)
        )
        first, count = space[0, 0], math.prod(axis.kernel for axis in axes)
        result = replace(
            field,
            coherence=coherence / coherence[0, 0] if coherence[0, 0] > 0 else np.ones_like(coherence),
            profile=tuple(axis.pool(p) for axis, p in zip(axes, field.profile, strict=True)),
            sample_profile=tuple(axis.pool(p) for axis, p in zip(axes, field.sample_profile, strict=True)),
            reach=field.reach + field.jump**2 * (math.prod(self.kernel) - 1) / 12,
            jump=field.jump * math.sqrt(math.prod(self.stride)),
        )
        widened = _quotient(stats.unequal_at(result.scale), stats.unequal_at(field.scale))
        unequal = field.unequal * widened
        if not self.maximum or count == 1:
            return replace(
                result, square=field.square - first, space=np.maximum(space - first, 0.0)
            ).with_apart(sample, unequal)
        private, other, unlike = self._private(field, count, first, sample[0, 0])
        mean_max, var_max = kernels.max_moments(count)
        mean = field.mean + mean_max * math.sqrt(private)
        space = np.maximum(space - (1 - var_max) * private, 0.0)
        space[0, 0] = 0.0
        sample[0, 0] = max(other + private * kernels.max_difference(count, unlike), 0.0)
        square = field.variance - (1 - var_max) * private + mean**2
        return replace(result, square=square, mean=mean, space=space).with_apart(sample, unequal)

    def backward(self, grads: Gradient, field: Field, stats: InputStats) -> Gradient:
        """A window's gradient goes to its largest pixel: 1/count of it to each, never to two of the same
        sample.

        Winners of different windows are taken as independent; those of the same window in two samples agree
        with probability ``kernels.same_winner``. The mean spreads it over all pixels.
        """
        axes = self._axes(field)
        count = math.prod(axis.kernel for axis in axes)
        table = axes[0].spread @ grads.table @ axes[1].spread.T / count**2
        profile = tuple(axis.unpool(p) for axis, p in zip(axes, grads.profile, strict=True))
        if self.maximum and count > 1:
            first, mean_apart = (
                (axes[0].average @ values @ axes[1].average.T)[0, 0] for values in (field.space, field.apart)
            )
            agree = float(kernels.same_winner(count, self._private(field, count, first, mean_apart)[2]))
            one_window = np.multiply.outer(axes[0].spread[:, 0], axes[1].spread[:, 0])
            for pair, same in enumerate((1.0, agree)):
                chance = np.full_like(one_window, (1 - same) / (count * (count - 1)))
                chance[0, 0] = same / count
                table[pair] += one_window * (chance - 1 / count**2) * grads.table[pair, 0, 0]
        return Gradient(table, profile)

    @staticmethod
    def _private(
        field: Field, count: int, mean_space: float, mean_apart: float
    ) -> tuple[float, float, float]:
        """(variance of ``private``, ``apart`` between different pixels, 1 - correlation of ``private``
        between samples).

        ``mean_space`` and ``mean_apart`` are means over all pairs of pixels of the window, a pixel with
        itself included.
        """
        private = min(mean_space * count / (count - 1), field.variance)
        here = float(field.apart[0, 0])
        other = (count * mean_apart - here) / (count - 1)
        return private, other, min(max((here - other) / private, 0.0), 1.0) if private > 0 else 0.0


@dataclass(frozen=True)
class AdaptivePool:
    """The mean of as many equal windows as make a map of ``outputs`` pixels."""

    outputs: Pair

    def _pool(self, field: Field) -> Pool:
        if any(size % out for size, out in zip(field.space.shape, self.outputs, strict=True)):
            raise TheoryUnavailable(
                f"theory knows adaptive pooling to equal windows, not from {field.space.shape} to "
                f"{self.outputs}"
            )
        windows = tuple(size // out for size, out in zip(field.space.shape, self.outputs, strict=True))
        return Pool(windows, windows, maximum=False)

    def forward(self, field: Field, stats: InputStats) -> Field:
        return self._pool(field).forward(field, stats)

    def backward(self, grads: Gradient, field: Field, stats: InputStats) -> Gradient:
        return self._pool(field).backward(grads, field, stats)


@dataclass(frozen=True)
class Dropout:
    p: float

    def forward(self, field: Field, stats: InputStats) -> Field:
        """Units are kept with probability 1 - p and scaled by 1/(1 - p), anew for every pixel and sample."""
        extra = field.square * self.p / (1 - self.p)
        space, sample = field.space + extra, field.sample.copy()
        space[0, 0] = 0.0
        sample[0, 0] += extra
        return replace(field, square=field.square + extra, space=space, sample=sample)

    def backward(self, grads: Gradient, field: Field, stats: InputStats) -> Gradient:
        table = grads.table.copy()
        table[0, 0, 0] /= 1 - self.p
        return Gradient(table, grads.profile)


@dataclass(frozen=True)
class BatchNorm:
    """Training mode: each unit minus its mean over batch and pixels, over its standard deviation (Yang et al.
    2019).
    """

    epsilon: float = 1e-5

    def _moments(self, field: Field, stats: InputStats) -> tuple[float, float]:
        """(variance of a unit over batch and pixels, 1 / (variance + epsilon))."""
        variance = lag_mean(field.space) + (1 - 1 / stats.batch) * lag_mean(field.apart)
        return variance, 1 / (variance + self.epsilon)

    def forward(self, field: Field, stats: InputStats) -> Field:
        variance, scale = self._moments(field, stats)
        result = replace(field, square=variance * scale, mean=0.0, space=field.space * scale)
        return result.with_apart(field.apart * scale, 0.0)

    def backward(self, grads: Gradient, field: Field, stats: InputStats) -> Gradient:
        """Taking out the mean takes the gradient's mean out; the projection on the unit itself is left out
        (of order 1/batch).
        """
        within, between = grads.table
        mean = (lag_mean(within) + (stats.batch - 1) * lag_mean(between)) / stats.batch
        return Gradient(self._moments(field, stats)[1] * (grads.table - mean), grads.profile)


Layer = Weighted | Activation | Pool | AdaptivePool | Flatten | Dropout | BatchNorm
