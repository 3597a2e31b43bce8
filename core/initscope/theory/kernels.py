"""What one nonlinearity does to pairs of Gaussian pre-activations: the kernels of mean-field theory.

Everything follows from one function of the *difference variance* x = v - cov, where v is the variance of two
jointly Gaussian pre-activations y1, y2 and cov their covariance (x is half their mean squared difference):

    gate(x) = E[f'(y1) f'(y2)] (1)

By Price's theorem d E[f(y1) f(y2)] / d cov = E[f'(y1) f'(y2)], hence the difference variance of the outputs
is

    E[f(y1)^2] - E[f(y1) f(y2)] = integral of gate from 0 to x (2)

This is chi of Poole et al. 2016 (equation 5) and Schoenholz et al. 2017 (equation 5) away from correlation
one. Equation 2 never subtracts nearly equal numbers, so differences 1e-30 of the variance keep all their
digits. The same gate weighs gradients on their way back (Schoenholz et al. 2017, equation 10). numpy and
scipy only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_ndtr, ndtr

Array = np.ndarray

_ANGLES = np.linspace(0.0, math.pi, 257)
_NODES, _WEIGHTS = (lambda x, w: ((x + 1) / 2, w / 2))(*np.polynomial.legendre.leggauss(10))


def _sech2(y: Array) -> Array:
    return 1 - np.tanh(y) ** 2


SMOOTH: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (np.tanh, _sech2),
    "sigmoid": (expit, lambda y: expit(y) * expit(-y)),
    "gelu": (lambda y: y * ndtr(y), lambda y: ndtr(y) + y * np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)),
    "silu": (lambda y: y * expit(y), lambda y: expit(y) * (1 + y * expit(-y))),
    "elu": (lambda y: np.where(y > 0, y, np.expm1(np.minimum(y, 0))), lambda y: np.exp(np.minimum(y, 0))),
    "softplus": (lambda y: np.logaddexp(0, y), expit),
}
"""Activations that are integrated numerically: (function, derivative)."""

PIECEWISE = {"relu": 0.0, "leaky_relu": 0.01, "identity": 1.0}
"""Piecewise-linear activations and their slope below zero (the usual one, where the layer does not say)."""

ACTIVATIONS = (*PIECEWISE, *SMOOTH)


@dataclass(frozen=True)
class Kernel:
    """One activation at one pre-activation variance.

    ``mean`` = E[f], ``square`` = E[f^2], and ``gates``: equation 1 at the angles ``_ANGLES`` between y1 and
    y2, where x = variance (1 - cos angle). ``homogeneous``: f(a y) = a f(y) for a > 0, so that the length of
    a sample's activation vector and its direction travel separately.
    """

    variance: float
    mean: float
    square: float
    gates: Array
    homogeneous: bool

    def gate(self, x: Array) -> Array:
        """E[f'(y1) f'(y2)] at difference variance ``x``."""
        if self.variance <= 0:
            return np.full_like(x, self.gates[0])
        half = np.sqrt(np.clip(x / (2 * self.variance), 0.0, 1.0))
        return np.interp(2 * np.arcsin(half), _ANGLES, self.gates)

    def transfer(self, start: Array, step: Array) -> Array:
        """The integral of ``gate`` from ``start`` to ``start + step``: how far outputs are apart, equation 2.

        Gauss-Legendre after x = start + step t^2, because ReLU's gate falls like the square root of x near 0.
        """
        total = np.zeros_like(step)
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            total += weight * 2 * node * self.gate(start + step * node**2)
        return step * total


def kernel(name: str, variance: float, mean: float = 0.0, slope: float | None = None) -> Kernel:
    """The kernel of activation ``name`` for pre-activations N(mean, variance).

    ``slope`` overrides the negative slope of a piecewise-linear activation. Raises KeyError for an unknown
    name.
    """
    if name in PIECEWISE:
        return _piecewise(PIECEWISE[name] if slope is None else slope, variance, mean)
    return _smooth(*SMOOTH[name], variance, mean)


def _piecewise(slope: float, variance: float, mean: float) -> Kernel:
    """f(y) = max(y, 0) + slope min(y, 0), in closed form.

    With h = mean / std and t the angle between the two samples, P(y1 > 0, y2 > 0) is Phi(h) - 1/(2 pi) *
    integral over 0..t of exp(-h^2 / (1 + cos s)) ds (Plackett's identity; Sheppard's formula at h = 0). For h
    = 0 this is the arc-cosine kernel of degree 0, (pi - t) / (2 pi), and equation 2 then gives the kernel of
    degree 1 (Cho and Saul 2009, equations 4 to 6). E[max(y, 0)^2] = v ((1 + h^2) Phi(h) + h phi(h)).
    """
    if variance <= 0:
        on = 1.0 if mean > 0 else slope
        return Kernel(0.0, on * mean, (on * mean) ** 2, np.full(_ANGLES.shape, on**2), True)
    std = math.sqrt(variance)
    h = mean / std
    density = math.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)
    above, below = float(ndtr(h)), float(ndtr(-h))
    with np.errstate(divide="ignore"):
        integrand = np.exp(-(h**2) / (1 + np.cos(_ANGLES))) if h else np.ones_like(_ANGLES)
    both_on = above - _cumulative(integrand) / (2 * math.pi)
    gates = slope**2 + 2 * slope * (1 - slope) * above + (1 - slope) ** 2 * np.maximum(both_on, 0.0)
    positive = variance * max((1 + h**2) * above + h * density, 0.0)
    negative = variance * max((1 + h**2) * below - h * density, 0.0)
    first = std * ((h * above + density) + slope * (h * below - density))
    return Kernel(variance, first, positive + slope**2 * negative, gates, True)


def _cumulative(values: Array) -> Array:
    """Trapezoid integral over ``_ANGLES`` from 0."""
    steps = (values[1:] + values[:-1]) / 2 * np.diff(_ANGLES)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _smooth(
    f: Callable[[Array], Array], slope: Callable[[Array], Array], variance: float, mean: float
) -> Kernel:
    """Numeric expectations on a grid of +-6 standard deviations.

    y1, y2 = mean + std (cos(t/2) m +- sin(t/2) s) with independent standard normal m, s has correlation cos
    t.
    """
    grid = np.linspace(-6.0, 6.0, 121)
    weight = np.exp(-(grid**2) / 2)
    weight /= weight.sum()
    std = math.sqrt(max(variance, 0.0))
    values = f(mean + std * grid)
    coarse = _ANGLES[::8]
    gates = np.empty_like(coarse)
    pair_weight = weight[:, None] * weight[None, :]
    for i, angle in enumerate(coarse):
        common = mean + std * math.cos(angle / 2) * grid[:, None]
        apart = std * math.sin(angle / 2) * grid[None, :]
        gates[i] = (pair_weight * slope(common + apart) * slope(common - apart)).sum()
    gates = np.interp(_ANGLES, coarse, gates)
    return Kernel(variance, float(weight @ values), float(weight @ values**2), gates, False)


@functools.lru_cache
def max_moments(count: int) -> tuple[float, float]:
    """Mean and variance of the maximum of ``count`` independent standard normals (1.029 and 0.492 for
    four).
    """
    grid = np.linspace(-9.0, 9.0, 4001)
    density = count * np.exp((count - 1) * log_ndtr(grid) - grid**2 / 2) / math.sqrt(2 * math.pi)
    density /= density.sum()
    mean = float(density @ grid)
    return mean, float(density @ (grid - mean) ** 2)


@functools.lru_cache
def _agreement(count: int) -> tuple[Array, Array]:
    """(angles, probabilities) of ``same_winner``, tabulated by quadrature.

    count * integral of phi2(a, b; r) Phi2(a, b; r)^(count - 1), with a, b = sqrt((1+r)/2) u +- sqrt((1-r)/2)
    w for standard normal u, w, and Phi2 by Plackett's identity from r = 0.
    """
    angles = np.linspace(0.0, math.pi / 2, 33)
    grid = np.linspace(-6.0, 6.0, 61)
    weight = np.exp(-(grid**2) / 2)
    weight /= weight.sum()
    result = np.ones_like(angles)
    for i, angle in enumerate(angles[1:], start=1):
        r = math.cos(angle)
        u, w = math.sqrt((1 + r) / 2) * grid[:, None], math.sqrt((1 - r) / 2) * grid[None, :]
        a, b = u + w, u - w
        both = ndtr(a) * ndtr(b)
        top = math.asin(r)
        for node, node_weight in zip(_NODES, _WEIGHTS, strict=True):
            t = top * node
            both += (
                top
                * node_weight
                / (2 * math.pi)
                * np.exp(-(a**2 + b**2 - 2 * a * b * math.sin(t)) / (2 * math.cos(t) ** 2))
            )
        result[i] = count * float(
            (weight[:, None] * weight[None, :] * np.clip(both, 0, 1) ** (count - 1)).sum()
        )
    return angles, result


def same_winner(count: int, x: Array | float) -> Array:
    """P(argmax a = argmax b) for ``count`` independent pairs of standard normals whose correlation is 1 - x.

    1 at x = 0, 1/count at x = 1 (and beyond: only correlations from 0 to 1 occur). For two it is
    1 - arccos(1 - x) / pi (Sheppard); for more a table.
    """
    angles, table = _agreement(count)
    return np.interp(2 * np.arcsin(np.sqrt(np.clip(x, 0.0, 1.0) / 2)), angles, table)


def max_difference(count: int, x: float) -> float:
    """Difference variance of the maxima of those two sets: the integral of ``same_winner`` from 0 to x.

    Equation 2 with f = max: its derivative for one argument is 1 where that argument wins.
    """
    x = min(max(x, 0.0), 1.0)
    return x * sum(
        w * 2 * t * float(same_winner(count, x * t**2)) for t, w in zip(_NODES, _WEIGHTS, strict=True)
    )


def softmax_overlap(variance: float, difference: float, classes: int) -> tuple[float, float]:
    """(E sum p^2, E sum p p') of the softmax of Gaussian logits of two samples.

    ``variance`` is that of a logit, ``difference`` the difference variance of one logit between the samples.
    Averaged over a fixed set of normal draws, symmetrized: exact (1/classes) as the variance goes to 0.
    """
    draws = np.random.default_rng(0).standard_normal((max(64, 40_000 // classes), 3, classes))
    common = math.sqrt(max(variance - difference, 0.0)) * draws[:, 0]
    apart = math.sqrt(min(difference, variance))
    p, other = _softmax(common + apart * draws[:, 1]), _softmax(common + apart * draws[:, 2])
    return float((p**2).sum(1).mean()), float((p * other).sum(1).mean())


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
