"""Any function of one number, applied to correlated Gaussians: its moments by quadrature of the function
itself.

For x, y ~ N(m, v) with correlation r:

    F(r) = E f(x) f(y) the covariance that comes out (Poole et al. 2016, equation 3) D(r) = E (f(x) - f(y))**2
    / 2 = F(1) - F(r) computed as such, because F(1) and F(r) may agree in ten digits G(r) = E f'(x) f'(y) the
    factor of the gradient's covariance (Schoenholz et al. 2017, equation 13)

The grids are uniform (trapezoid): for smooth functions as exact as Gauss-Hermite, and better at kinks and
jumps. Squares come from a fine grid of one dimension; two dimensions give only the differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

_NODES = torch.linspace(-7, 7, 1200, dtype=torch.float64)
"""An even number of nodes: none falls on a kink in the middle, and both sides weigh the same."""
_WEIGHTS = torch.exp(-_NODES.square() / 2)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_COARSE = torch.linspace(-6, 6, 60, dtype=torch.float64)
_COARSE_WEIGHTS = torch.exp(-_COARSE.square() / 2)
_COARSE_WEIGHTS = _COARSE_WEIGHTS / _COARSE_WEIGHTS.sum()


class Kernel:
    """Moments of ``function`` of N(mean, variance)."""

    def __init__(self, function: Function, mean: float, variance: float) -> None:
        self.mean, self.std = mean, math.sqrt(max(variance, 0.0))
        center = function(torch.full((1,), mean, dtype=torch.float64))
        center = torch.where(center.isfinite(), center, torch.zeros_like(center)).detach()

        def finite(grid: Tensor) -> Tensor:
            """Where a Gaussian reaches but the tensor does not (a mean of squares is not negative), the value
            at the mean.
            """
            value = function(grid)
            return torch.where(value.isfinite(), value, center)

        self.function = finite
        x = self.mean + self.std * _NODES
        value = self.function(x)
        self.out_mean = float(value @ _WEIGHTS)
        self.square = float(value.square() @ _WEIGHTS)

    @property
    def kurtosis(self) -> float:
        """Var f(x)^2 / (E f(x)^2)^2: 2 for a linear function, 5 for ReLU."""
        value = self.function(self.mean + self.std * _NODES).square()
        return float(value.square() @ _WEIGHTS) / self.square**2 - 1 if self.square > 0 else 0.0

    @property
    def elasticity(self) -> float:
        """d log E f(x)^2 / d log v: 1 for ReLU, 0 for a function that saturates."""
        more = self.function(self.mean * 1.01 + 1.01 * self.std * _NODES).square() @ _WEIGHTS
        return (
            math.log(float(more) / self.square) / math.log(1.01**2) if self.square > 0 and more > 0 else 1.0
        )

    @property
    def gate_kurtosis(self) -> float:
        """The same as ``kurtosis`` for f'(x) times an independent Gaussian."""
        slope = derivative(self.function, self.mean + self.std * _NODES).square()
        square = float(slope @ _WEIGHTS)
        return 3 * float(slope.square() @ _WEIGHTS) / square**2 - 1 if square > 0 else 0.0

    @property
    def monotone(self) -> bool:
        """Whether the function rises, or stays, over all that the Gaussian reaches."""
        value = self.function(self.mean + self.std * _NODES)
        return bool((value.diff() >= 0).all())

    def _pairs(self, correlation: np.ndarray) -> tuple[Tensor, Tensor]:
        r = torch.as_tensor(np.clip(correlation, -1.0, 1.0)).reshape(-1, 1, 1)
        common = ((1 + r) / 2).sqrt() * _COARSE.reshape(1, -1, 1)
        private = ((1 - r) / 2).sqrt() * _COARSE.reshape(1, 1, -1)
        return self.mean + self.std * (common + private), self.mean + self.std * (common - private)

    def differences(self, correlation: np.ndarray) -> np.ndarray:
        """D at each correlation."""
        if self.std == 0:
            return np.zeros_like(correlation)
        unique, at = np.unique(correlation, return_inverse=True)
        x, y = self._pairs(unique)
        return _mean((self.function(x) - self.function(y)).square() / 2)[at]

    def gates(self, correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """G at each correlation, and E z f'(x) z' f'(y) with the standardized z = (x - m) / sqrt(v)."""
        unique, at = np.unique(np.round(correlation, 12), return_inverse=True)
        x, y = self._pairs(unique)
        one, two = derivative(self.function, x), derivative(self.function, y)
        if self.std == 0:
            return _mean(one * two)[at], np.zeros_like(at, dtype=float)
        z_one, z_two = one * (x - self.mean) / self.std, two * (y - self.mean) / self.std
        joint = self.slope_moment(1) - _mean((z_one - z_two).square() / 2)
        return (self.slope_moment(0) - _mean((one - two).square() / 2))[at], joint[at]

    def slope_moment(self, power: int) -> float:
        """E (z**power f'(x))**2."""
        return float(
            (derivative(self.function, self.mean + self.std * _NODES) * _NODES**power).square() @ _WEIGHTS
        )


def _mean(values: Tensor) -> np.ndarray:
    return torch.einsum("rij,i,j->r", values, _COARSE_WEIGHTS, _COARSE_WEIGHTS).numpy()


def derivative(function: Function, x: Tensor) -> Tensor:
    """f'(x) by autograd, number by number; zero where the function does not depend on x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        if not value.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(value.sum(), x)[0].detach().nan_to_num(0.0, 0.0, 0.0)
