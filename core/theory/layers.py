"""The layers theory knows: each maps a ``Field`` forward and a table of gradient covariances back.

A gradient table has shape (2, height, width): the covariance of the loss gradient at two pixels a lag apart, [0] within
a sample and [1] between two samples. Back-propagated errors are taken to be independent of the forward pass
(Schoenholz et al. 2017, section 3). ``fan`` is exact: taps of a kernel that fall on zero padding add nothing, so that
a 3x3 kernel on a 1x1 map sums over one ninth of its fan_in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.theory import kernels
from core.theory.fields import Array, Field, flatten, from_apart

Pair = tuple[int, int]


@dataclass(frozen=True)
class Flatten:
    def forward(self, field: Field, batch: int) -> Field:
        return flatten(field)

    def backward(self, grads: Array, field: Field, batch: int) -> Array:
        """Pixels of one map reach a linear layer through independent weights: their gradients are uncorrelated."""
        result = np.zeros((2, *field.space.shape))
        result[:, 0, 0] = grads[:, 0, 0]
        return result


@dataclass(frozen=True)
class Weighted:
    """A convolution or linear layer with independent weights N(0, weight_std^2) and biases N(0, bias_std^2)."""

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

    def forward(self, field: Field, batch: int) -> Field:
        """K_out = bias_std^2 + weight_std^2 fan_in K_in (Poole et al. 2016, equation 3; Xiao et al. 2018, equation 2.5).

        With zero padding the share of taps that both pixels of a pair have in common multiplies K_in. The bias is the
        same for every pixel and sample: it drops out of all differences.
        """
        shares = self._shares(field)
        share = np.multiply.outer(*shares)
        taken = np.ix_(*(np.arange(len(s)) * step for s, step in zip(shares, self.stride, strict=True)))
        weight, bias = self.weight_std**2 * self.fan_in, self.bias_std**2
        space, sample, same = field.space[taken], field.sample[taken], field.same[taken]
        square = bias + weight * share[0, 0] * field.square
        out_space = weight * ((share[0, 0] - share) * field.square + share * space)
        if bias == 0 or square == 0:
            return Field(square, 0.0, field.unequal, out_space, weight * share * sample)
        unequal = _unequal_after_bias(field, weight * share[0, 0] * field.square / square)
        apart = weight * share * (field.unequal * same + (1 - field.unequal) * sample)
        return from_apart(square, 0.0, unequal, out_space, apart)

    def backward(self, grads: Array, field: Field, batch: int) -> Array:
        """The covariance of d loss / d input: weight_std^2 fan_out times that of d loss / d output (He et al. 2015, equation 13)."""
        area = math.prod(self.kernel)
        spread = [
            _spread(size, len(share), step, share, taps)
            for size, share, step, taps in zip(field.space.shape, self._shares(field), self.stride, self.kernel, strict=True)
        ]
        return self.weight_std**2 * self.fan_out / area * (spread[0] @ grads @ spread[1].T)

    def weight_grad_square(self, grads: Array, field: Field, batch: int) -> float:
        """Mean square of the weight gradient, summed over the samples and pixels that share the weight.

        sum over pairs of (sample, pixel) of E[delta delta'] E[a a']; the activation covariance between samples is
        written as ``same - apart`` so that a batch whose errors cancel leaves what the samples' differences are worth.
        """
        shares = self._shares(field)
        counts = [np.where(np.arange(len(s)) == 0, 1, 2) * np.arange(len(s), 0, -1) * s for s in shares]
        taken = np.ix_(*(np.arange(len(s)) * step for s, step in zip(shares, self.stride, strict=True)))
        same, apart = field.same[taken], field.apart[taken]
        terms = (grads[0] + (batch - 1) * grads[1]) * same - (batch - 1) * grads[1] * apart
        return max(batch * float(counts[0] @ terms @ counts[1]), 0.0)

    def _shares(self, field: Field) -> list[Array]:
        return [
            tap_share(size, *geometry)
            for size, geometry in zip(
                field.space.shape, zip(self.kernel, self.stride, self.padding, self.dilation, strict=True), strict=True
            )
        ]


def _unequal_after_bias(field: Field, kept: float) -> float:
    """The bias adds the same to every sample's mean square: of a length ratio only the share ``kept`` is left."""
    ratio = field.ratio * kept
    return ratio**2 / (1 + math.sqrt(max(1 - ratio**2, 0.0)))


def tap_share(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Array:
    """Share of a kernel's taps (one axis) that fall inside the input for both of two outputs a lag apart.

    Shape (outputs,), averaged over positions; index = lag. Three taps on 4 pixels: 10/12 at lag 0.
    """
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    position = np.arange(outputs)[:, None] * stride - padding + np.arange(kernel)[None, :] * dilation
    inside = ((position >= 0) & (position < size)).astype(float)
    pairs = sum(np.correlate(column, column, "full")[outputs - 1 :] for column in inside.T)
    return pairs / (np.arange(outputs, 0, -1) * kernel)


def _spread(size: int, outputs: int, stride: int, share: Array, taps: int) -> Array:
    """Matrix (size, outputs): gradient covariance by output lag to that by input lag, one axis, averaged over pixels."""
    result = np.zeros((size, outputs))
    for lag in range(outputs):
        if lag * stride < size:
            result[lag * stride, lag] = taps * share[lag] * (outputs - lag) / (size - lag * stride)
    return result


@dataclass(frozen=True)
class Activation:
    name: str
    slope: float | None = None
    """Negative slope, where the activation has one."""

    def _kernel(self, field: Field) -> kernels.Kernel:
        return kernels.kernel(self.name, field.variance, field.mean, self.slope)

    def forward(self, field: Field, batch: int) -> Field:
        """Equation 2 of ``kernels`` for every lag and for both kinds of pairs."""
        kernel = self._kernel(field)
        zero = np.zeros_like(field.space)
        space = kernel.transfer(zero, field.space)
        if kernel.homogeneous:
            sample = kernel.transfer(field.space, field.sample)
            return Field(kernel.square, kernel.mean, field.unequal, space, sample)
        apart = kernel.transfer(field.space, field.apart)
        one, two = (kernels.kernel(self.name, field.variance * (1 + sign * field.ratio), field.mean).square for sign in (1, -1))
        ratio = (one - two) / (one + two) if one + two else 0.0
        unequal = ratio**2 / (1 + math.sqrt(max(1 - ratio**2, 0.0)))
        return from_apart(kernel.square, kernel.mean, unequal, space, apart)

    def backward(self, grads: Array, field: Field, batch: int) -> Array:
        kernel = self._kernel(field)
        return grads * np.stack([kernel.gate(field.space), kernel.gate(field.space + field.sample)])


@dataclass(frozen=True)
class MaxPool:
    """The largest of ``count`` correlated Gaussians.

    The pixels of a window are taken as exchangeable: z_i = common + private_i with the window's mean covariance as
    the variance of ``common``. Then max z = common + max private, whose first two moments are those of the maximum
    of ``count`` independent normals (order statistics); the sum is treated as Gaussian again. Between two samples the
    private parts are correlated, and ``kernels.max_difference`` says how far their maxima are apart.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def forward(self, field: Field, batch: int) -> Field:
        count, average, private = self._window(field)
        if count == 1:
            return AvgPool(self.kernel, self.stride, self.padding).forward(field, batch)
        mean_max, var_max = kernels.max_moments(count)
        common = field.variance - private
        mean = field.mean + mean_max * math.sqrt(private)
        variance = common + var_max * private
        space = np.maximum(average(field.space) - (1 - var_max) * private, 0.0)
        space[0, 0] = 0.0
        sample = average(field.sample)
        other, unlike = self._unlike(field, count, private, sample[0, 0])
        sample[0, 0] = max(other + private * kernels.max_difference(count, unlike), 0.0)
        return Field(variance + mean**2, mean, field.unequal, space, sample)

    def backward(self, grads: Array, field: Field, batch: int) -> Array:
        """A window's gradient goes to its largest pixel: 1/count of it to each, never to two of the same sample.

        Winners of different windows are taken as independent; those of the same window in two samples agree with
        probability ``kernels.same_winner``.
        """
        count, average, private = self._window(field)
        spread = [_window_spread(*axis) for axis in zip(field.space.shape, grads.shape[1:], self.kernel, self.stride, strict=True)]
        result = spread[0] @ grads @ spread[1].T / count**2
        if count == 1:
            return result
        one_window = np.multiply.outer(spread[0][:, 0], spread[1][:, 0])
        agree = float(kernels.same_winner(count, self._unlike(field, count, private, average(field.sample)[0, 0])[1]))
        for pair, same in enumerate((1.0, agree)):
            chance = np.full_like(one_window, (1 - same) / (count * (count - 1)))
            chance[0, 0] = same / count
            result[pair] += one_window * (chance - 1 / count**2) * grads[pair, 0, 0]
        return result

    def _window(self, field: Field):
        """(pixels of a window, function from a table of lags to its mean over pairs of windows, variance of ``private``)."""
        kernel = [min(k, size + 2 * p) for k, size, p in zip(self.kernel, field.space.shape, self.padding, strict=True)]
        count = math.prod(kernel)
        rows, columns = (
            _window_average(*axis) for axis in zip(field.space.shape, kernel, self.stride, self.padding, strict=True)
        )
        mean_space = (rows @ field.space @ columns.T)[0, 0]
        private = min(mean_space * count / max(count - 1, 1), field.variance)
        return count, lambda table: rows @ table @ columns.T, private

    @staticmethod
    def _unlike(field: Field, count: int, private: float, mean_sample: float) -> tuple[float, float]:
        """(``sample`` between different pixels of the window, 1 - correlation of the private parts of two samples)."""
        here = float(field.sample[0, 0])
        other = (count * mean_sample - here) / (count - 1)
        return other, min(max((here - other) / private, 0.0), 1.0) if private > 0 else 0.0


@dataclass(frozen=True)
class AvgPool:
    """The mean of a window: linear, so covariances are averaged over all pairs of pixels of the two windows."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def forward(self, field: Field, batch: int) -> Field:
        rows, columns = (
            _window_average(*axis) for axis in zip(field.space.shape, self.kernel, self.stride, self.padding, strict=True)
        )
        space, sample = rows @ field.space @ columns.T, rows @ field.sample @ columns.T
        return Field(field.square - space[0, 0], field.mean, field.unequal, np.maximum(space - space[0, 0], 0.0), sample)

    def backward(self, grads: Array, field: Field, batch: int) -> Array:
        rows, columns = (
            _window_spread(*axis) for axis in zip(field.space.shape, grads.shape[1:], self.kernel, self.stride, strict=True)
        )
        return rows @ grads @ columns.T / math.prod(self.kernel) ** 2


def _window_average(size: int, kernel: int, stride: int, padding: int) -> Array:
    """Matrix (outputs, size): a table by pixel lag to its mean over pairs of pixels of two windows a lag apart, one axis."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    result = np.zeros((outputs, size))
    for lag in range(outputs):
        for shift in range(1 - kernel, kernel):
            result[lag, min(abs(lag * stride + shift), size - 1)] += (kernel - abs(shift)) / kernel**2
    return result


def _window_spread(size: int, outputs: int, kernel: int, stride: int) -> Array:
    """Matrix (size, outputs): how many pairs of pixels a lag apart lie in windows a lag apart, per pair of pixels, one axis."""
    result = np.zeros((size, outputs))
    for lag in range(1 - outputs, outputs):
        for shift in range(1 - kernel, kernel):
            apart = lag * stride + shift
            if 0 <= apart < size:
                result[apart, abs(lag)] += (kernel - abs(shift)) * (outputs - abs(lag)) / (size - apart)
    return result


@dataclass(frozen=True)
class Dropout:
    p: float

    def forward(self, field: Field, batch: int) -> Field:
        """Units are kept with probability 1 - p and scaled by 1/(1 - p), anew for every pixel and sample."""
        extra = field.square * self.p / (1 - self.p)
        space, sample = field.space + extra, field.sample.copy()
        space[0, 0] = 0.0
        sample[0, 0] += extra
        return Field(field.square + extra, field.mean, field.unequal, space, sample)

    def backward(self, grads: Array, field: Field, batch: int) -> Array:
        result = grads.copy()
        result[0, 0, 0] /= 1 - self.p
        return result


@dataclass(frozen=True)
class BatchNorm:
    """Training mode: each unit minus its mean over batch and pixels, over its standard deviation (Yang et al. 2019)."""

    epsilon: float = 1e-5

    def forward(self, field: Field, batch: int) -> Field:
        scale, centred = self._scale(field, batch)
        return from_apart(centred * scale, 0.0, 0.0, field.space * scale, field.apart * scale)

    def backward(self, grads: Array, field: Field, batch: int) -> Array:
        """Taking out the mean takes the gradient's mean out; the projection on the unit itself is left out (of order 1/batch)."""
        mean = (_lag_mean(grads[0]) + (batch - 1) * _lag_mean(grads[1])) / batch
        return self._scale(field, batch)[0] * (grads - mean)

    def _scale(self, field: Field, batch: int) -> tuple[float, float]:
        """(1 / (variance + epsilon), variance) of a unit over batch and pixels."""
        centred = _lag_mean(field.space) + (1 - 1 / batch) * _lag_mean(field.apart)
        return 1 / (centred + self.epsilon), centred


def _lag_mean(table: Array) -> float:
    """Mean of a table of lags over all ordered pairs of pixels."""
    weights = [np.where(np.arange(n) == 0, 1, 2) * np.arange(n, 0, -1) / n**2 for n in table.shape]
    return float(weights[0] @ table @ weights[1])


Layer = Weighted | Activation | MaxPool | AvgPool | Flatten | Dropout | BatchNorm
