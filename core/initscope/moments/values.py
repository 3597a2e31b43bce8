"""What the engine holds for each tensor: its field, and where it is a function of another tensor, number by
number, that function.

``x * sigmoid(x)`` written out, GELU's tanh formula, an RMS norm in five operations: the parts depend on each
other through x, so they are kept as one function of x until something else than a pointwise operation asks
for their moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from initscope.moments import axes as ax
from initscope.moments.axes import Axes
from initscope.moments.field import Field
from initscope.moments.kernels import Function, Kernel

Pull = Callable[[Field], Iterator[tuple[int, Field]]]
"""From the gradient of a node's output to those of its inputs, by the number of the tensor."""


@dataclass(eq=False)
class Value:
    id: int
    field: Field
    function: Function | None = None

    @property
    def root(self) -> Value:
        return self


class Pointwise(Value):
    """``function`` of ``root``; its field is computed when something asks for it."""

    def __init__(self, id: int, root: Value, function: Function) -> None:
        self.id, self._root, self.function = id, root, function

    @property
    def root(self) -> Value:
        return self._root

    @property
    def axes(self) -> Axes:
        return self._root.field.axes

    @cached_property
    def kernel(self) -> Kernel:
        return Kernel(self.function, self._root.field.mean, self._root.field.variance)

    @cached_property
    def field(self) -> Field:  # type: ignore[override]
        return apply(self.kernel, self._root.field)


def apply(kernel: Kernel, x: Field) -> Field:
    """The field of ``kernel.function(x)``."""
    variance = x.variance
    if variance <= 1e-300 or not math.isfinite(variance):
        same = np.full_like(x.within, kernel.square)
        return replace(
            x,
            within=same,
            apart=np.zeros_like(same),
            mean=kernel.out_mean,
            cross=kernel.square,
            far=kernel.square,
        )
    within, apart = 1 - (x.square - x.within) / variance, x.apart / variance
    # Correlations as 1 - distance: distances between samples may be a millionth.
    distance = np.concatenate(
        [1 - within, 1 - within + apart, [(x.square - x.cross) / variance, (x.square - x.far) / variance]]
    )
    lost = kernel.differences(1 - np.clip(distance, 0.0, 2.0))
    n = len(x.within)
    inside, outside = lost[:n], lost[n : 2 * n]
    square = kernel.square
    noise = x.coherence() / max(ax.count(x.axes, ax.CHANNEL), 1)
    spread = (
        kernel.elasticity**2 * max(x.spread - 2 * noise, 0.0) + kernel.kurtosis * noise
        if x.spread > 0
        else 0.0
    )
    return replace(
        x,
        spread=min(spread, 20.0),
        within=square - inside,
        apart=outside - inside,
        mean=kernel.out_mean,
        cross=float(square - lost[-2]),
        far=float(square - lost[-1]),
    )


def gate(kernel: Kernel, x: Field, grad: Field) -> Field:
    """The gradient through ``kernel.function`` at x."""
    variance = x.variance
    if variance > 1e-300 and math.isfinite(variance):
        within, between = 1 - (x.square - x.within) / variance, 1 - (x.square - x.within + x.apart) / variance
        cross = [1 - (x.square - x.cross) / variance, 1 - (x.square - x.far) / variance]
    else:
        within = between = np.ones_like(x.within)
        cross = [1.0, 1.0]
    gates, joint = kernel.gates(np.concatenate([within, between, cross]))
    n = len(x.within)
    out_within, out_between = grad.within * gates[:n], grad.between * gates[n : 2 * n]
    spread = grad.spread + max(kernel.gate_kurtosis - 2, 0.0) * grad.coherence() / max(
        ax.count(x.axes, ax.CHANNEL), 1
    )
    along = (grad.within * joint[:n], grad.between * joint[n : 2 * n])
    cross, far = float(grad.cross * gates[-2]), float(grad.far * gates[-1])
    return replace(
        grad,
        within=out_within,
        apart=out_within - out_between,
        cross=cross,
        far=far,
        mean=0.0,
        along=along,
        spread=spread,
    )


def add(one: Field, other: Field, axes: Axes, *, weights: tuple[float, float] = (1.0, 1.0)) -> Field:
    """The field of a one + b other, independent but for their means."""
    a, b = weights
    other = other.like(one.axes) if len(other.axes) == len(one.axes) else other
    shared = 2 * a * b * one.mean * other.mean
    within = a * a * one.within + b * b * other.within + shared
    share = a * a * one.square / within[0] if within[0] > 0 else 0.0
    return Field(
        axes,
        within,
        a * a * one.apart + b * b * other.apart,
        a * one.mean + b * other.mean,
        a * a * one.cross + b * b * other.cross + shared,
        a * a * one.far + b * b * other.far + shared,
        share**2 * one.spread + (1 - share) ** 2 * other.spread,
    )


def multiply(one: Field, other: Field, axes: Axes) -> Field:
    """The field of one x other, independent: second moments multiply."""
    other = other.like(one.axes) if len(other.axes) == len(one.axes) else other
    apart = one.apart * other.within + one.within * other.apart - one.apart * other.apart
    return Field(
        axes,
        one.within * other.within,
        apart,
        one.mean * other.mean,
        one.cross * other.cross,
        one.far * other.far,
        one.spread + other.spread,
    )


def _joined(one: Field, other: Field):
    """Gradients on different ways are independent of each other; one that knows nothing of the value counts
    as independent of it.
    """
    if one.along is None or other.along is None:
        return None
    return one.along[0] + other.along[0], one.along[1] + other.along[1]


def total(one: Field, other: Field) -> Field:
    """The sum of two gradients that reach a tensor on different ways."""
    other = other.like(one.axes)
    square = one.square + other.square
    share = one.square / square if square > 0 else 0.0
    return replace(
        one,
        within=one.within + other.within,
        apart=one.apart + other.apart,
        cross=one.cross + other.cross,
        far=one.far + other.far,
        along=_joined(one, other),
        spread=share**2 * one.spread + (1 - share) ** 2 * other.spread,
    )
