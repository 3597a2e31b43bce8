"""The moments of a tensor: what is carried along the graph, forward for values and backward for gradients.

For x[s, p, c] (samples, positions, channels) the second moments are kept, averaged over everything that is
not named:

    within[k] = E x[s, p, c] x[s, p', c] p and p' in ring k of distances (``axes.ring_counts``); within[0] is
    the mean square between[k] = E x[s, p, c] x[s', p', c] the same for two samples; kept as apart = within -
    between, which may be tiny cross = E x[s, p, c] x[s, p, c'] two channels; far the same at two positions
    mean = E x

With many channels these are the kernel of a Gaussian process (Poole et al. 2016; Xiao et al. 2018 for maps).
A dimension of size 1 counts as constant along it: its covariance is the mean square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from initscope.moments import axes as ax
from initscope.moments.axes import CHANNEL, POSITION, RINGS, SAMPLE, Axes, Axis

Array = np.ndarray
RULE, SAMPLED, UNKNOWN = "rule", "sampled", "unknown"
_WORSE = {RULE: 0, SAMPLED: 1, UNKNOWN: 2}


def worst(*made: str) -> str:
    """How a result was made of parts that were made so."""
    return max(made, key=_WORSE.__getitem__, default=RULE)


@dataclass(frozen=True)
class Field:
    axes: Axes
    within: Array
    apart: Array
    mean: float = 0.0
    cross: float = 0.0
    far: float | None = None
    """The mean's square where nothing else is known."""
    spread: float = 0.0
    """Variance of log(mean square) from one draw of the weights to the next (Hanin 2018)."""
    along: tuple[Array, Array] | None = None
    """Of a gradient: (within, between) of E g z g' z', z the standardized value that it is the gradient for;
    None: independent of it.
    """

    def __post_init__(self) -> None:
        if self.far is None:
            object.__setattr__(self, "far", self.mean**2 if self.axes and any(self.axes) else self.cross)

    @property
    def square(self) -> float:
        return float(self.within[0])

    @property
    def between(self) -> Array:
        return self.within - self.apart

    @property
    def variance(self) -> float:
        return max(self.square - self.mean**2, 0.0)

    @property
    def positions(self) -> int:
        return ax.count(self.axes, POSITION)

    @property
    def samples(self) -> int:
        return ax.count(self.axes, SAMPLE)

    def others(self, rings: Array) -> float:
        """Mean of a covariance over pairs of different positions; with a single position, ring 0."""
        counts = ax.ring_counts(ax.positions(self.axes))[1:]
        total = counts.sum()
        return float(counts @ rings[1:] / total) if total > 0 else float(rings[0])

    def everywhere(self, rings: Array) -> float:
        """Mean of a covariance over all pairs of positions, equal ones included."""
        counts = ax.ring_counts(ax.positions(self.axes))
        return float(counts @ rings / counts.sum())

    def coherence(self) -> float:
        """Mean square of the correlation of two entries of a channel: 1 where all samples and positions move
        together.

        By it the mean square over samples and positions fluctuates less, from one draw of the weights to the
        next, than one entry's.
        """
        if self.square <= 0:
            return 1.0
        samples = max(self.samples, 1)
        same, other = (
            self.everywhere(np.clip(rings / self.square, -1, 1) ** 2) for rings in (self.within, self.between)
        )
        return min((same + (samples - 1) * other) / samples, 1.0)

    def scaled(self, factor: float) -> Field:
        """x times sqrt(factor), without its sign."""
        return replace(
            self,
            within=self.within * factor,
            apart=self.apart * factor,
            cross=self.cross * factor,
            far=self.far * factor,
            mean=self.mean * math.sqrt(factor),
            along=None,
        )

    def with_axes(self, axes: Axes) -> Field:
        """Views: the same numbers, in other dimensions. Fields must keep saying that a missing position is
        constant.
        """
        return replace(self, axes=axes)

    def swapped(self) -> Field:
        """Positions taken for channels and channels for positions, as where a mixer transposes them."""
        other = {POSITION: CHANNEL, CHANNEL: POSITION, SAMPLE: SAMPLE}
        axes = tuple(tuple(atom._replace(role=other[atom.role]) for atom in part) for part in self.axes)
        within, apart = np.full(RINGS, self.cross), np.zeros(RINGS)
        within[0], apart[0] = self.within[0], self.apart[0]
        return replace(
            self, axes=axes, within=within, apart=apart, cross=self.others(self.within), along=None
        )

    def like(self, axes: Axes) -> Field:
        """With the roles that ``axes`` (of the same rank) give to dimensions."""
        mine, theirs = (ax.atoms(one, CHANNEL) for one in (self.axes, axes))
        if len(axes) != len(self.axes) or not mine or not theirs:
            return self
        turned = sum(
            ax.main_role(a) == CHANNEL and ax.main_role(b) == POSITION
            for a, b in zip(self.axes, axes, strict=True)
            if a and b
        )
        return self.swapped() if turned else self


def constant(axes: Axes, square: float, mean: float) -> Field:
    """The same for every sample and position."""
    return Field(axes, np.full(RINGS, square), np.zeros(RINGS), mean, mean**2)


def independent(axes: Axes, square: float, mean: float = 0.0) -> Field:
    """Every entry drawn anew."""
    within = np.full(RINGS, mean**2)
    within[0] = square
    apart = np.zeros(RINGS)
    apart[0] = square - mean**2 if ax.count(axes, SAMPLE) > 1 else 0.0
    if not ax.positions(axes):
        within[:], apart[:] = square, apart[0]
    return Field(axes, within, apart, mean, mean**2 if ax.count(axes, CHANNEL) > 1 else square)


def pair_sum(one: Field, other: Field, axes: Axes, shift: float = 0.0) -> float:
    """Mean square of sum over samples and positions of one x other, independent of each other: a weight's
    gradient.

    ``axes``: over which the sum runs. ``shift``: rings by which a pair is further apart in ``other``.
    """
    positions, samples = ax.positions(axes), ax.count(axes, SAMPLE)
    counts = ax.ring_counts(positions)
    inner, outer = moved(other.within, shift), moved(other.between, shift)
    same = float(counts @ (one.within * inner))
    different = float(counts @ (one.between * outer))
    return max(samples * ax.size(positions) * (same + (samples - 1) * different), 0.0)


def moved(rings: Array, shift: float) -> Array:
    """Ring k of a map whose step is 2**shift positions of the old one: ring k + shift of the old,
    interpolated; ring 0 stays.
    """
    if shift == 0:
        return rings
    at = np.arange(RINGS) + shift
    result = np.interp(at, np.arange(RINGS), rings)
    result[0] = rings[0]
    return result


def averaged(field_: Field, over: Axis) -> tuple[Array, Array, float, float]:
    """(within, apart, cross, far) of the mean over the atoms ``over``.

    Pairs of the averaged entries are the same, at another position, of another sample or of another channel.
    """
    n_channel = ax.size(a for a in over if a.role == CHANNEL)
    n_sample = ax.size(a for a in over if a.role == SAMPLE)
    window = tuple(a for a in over if a.role == POSITION)
    counts = ax.ring_counts(window)
    counts = counts / counts.sum()
    left = any(a.role == POSITION for a in _without(field_.axes, over))

    def average(rings: Array) -> Array:
        result = rings.copy() if left else np.full(RINGS, counts @ rings)
        result[0] = counts @ rings
        return result

    far = field_.far
    cross = far + counts[0] * (field_.cross - far)
    within, apart = average(field_.within), average(field_.apart)
    if n_channel > 1:
        shared = np.where(np.arange(RINGS) == 0, cross, far if left else cross)
        within = shared + (within - shared) / n_channel
        apart = apart / n_channel
    if n_sample > 1:
        within = within - apart * (1 - 1 / n_sample)
        apart = np.zeros(RINGS) if n_sample == field_.samples else apart / n_sample
    if n_channel == ax.count(field_.axes, CHANNEL):
        cross, far = float(within[0]), float(within[1])
    return within, apart, cross, far


def _without(axes: Axes, over: Axis) -> Axis:
    left = list(ax.atoms(axes))
    for atom in over:
        if atom in left:
            left.remove(atom)
    return tuple(left)
