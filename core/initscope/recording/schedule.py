"""Which steps are measured layer by layer, and of which the loss alone is kept.

Initialization shows in the first steps, so each of these is measured. Later a measurement says little that
the one before did not: layers are then measured ever more rarely, sixty-four times while the number of steps
doubles, and at once again where the loss jumps or the learning rate is changed. A run of a million steps has
about 1,200 measured ones.
"""

from __future__ import annotations

import math

DENSE = 512
"""So many steps at the beginning are all measured."""
PER_DOUBLING = 64
"""Measured steps while the number of steps doubles, after that."""
AFTER_EVENT = 32
"""Steps that are measured once something has happened."""
QUIET = 8
"""No other event counts for so many gaps between measured steps: many jumps cost a bounded share."""
ALL_LOSSES = 131_072
"""So many losses are all kept, then as many while the number of steps doubles."""
THOROUGHLY = 100
"""Of so many measured steps one is measured with the costly quantities too."""

MEMORY = 16
"""Losses over which their mean and spread are taken."""
JUMP = 10.0
"""A loss so many mean deviations from the mean has jumped: eight standard deviations of normal noise."""
RATE_CHANGE = 1.5
"""A learning rate so many times the step before's, or its inverse, was changed; decay is slower."""


class Schedule:
    """Decides step by step; ``every`` takes each ``every``-th step, events or not. ``start`` is the first
    step, of a loop that goes on from a checkpoint.
    """

    def __init__(self, every: int | None = None, start: int = 0):
        self.every = every
        self._dense_until = max(DENSE, start + AFTER_EVENT)
        self._quiet_until = 0
        self._losses = 0
        self._mean = self._deviation = 0.0
        self._rate = math.nan

    def measures(self, step: int) -> bool:
        """Whether the layers of ``step`` are measured."""
        return step % (self.every or self._gap(step)) == 0

    def thoroughly(self, step: int) -> bool:
        """Whether they are measured with the costly quantities too: by the step's number alone."""
        return step % (THOROUGHLY * (self.every or _spacing(step, DENSE, PER_DOUBLING))) == 0

    def keeps_loss(self, step: int) -> bool:
        """Whether the loss of ``step`` is written."""
        return step % (self.every or _spacing(step, ALL_LOSSES, ALL_LOSSES)) == 0

    def _gap(self, step: int) -> int:
        return 1 if step < self._dense_until else _spacing(step, DENSE, PER_DOUBLING)

    # -- events

    def saw_loss(self, step: int, loss: float) -> None:
        """A loss has arrived when ``step`` was under way."""
        distance = abs(loss - self._mean)
        if self._losses >= MEMORY and not distance <= JUMP * self._deviation:
            self._happened(step)
        if math.isfinite(loss):
            self._losses += 1
            share = 1 / min(self._losses, MEMORY)
            self._mean += share * (loss - self._mean)
            if self._losses > 1:
                self._deviation += share * (distance - self._deviation)

    def saw_rate(self, step: int, rate: float) -> None:
        """The learning rate of ``step``."""
        before, self._rate = self._rate, rate
        if before > 0 and rate > 0 and not 1 / RATE_CHANGE < rate / before < RATE_CHANGE:
            self._happened(step)

    def _happened(self, now: int) -> None:
        if now >= self._quiet_until:
            self._dense_until = max(self._dense_until, now + 1 + AFTER_EVENT)
            self._quiet_until = self._dense_until + QUIET * _spacing(now, DENSE, PER_DOUBLING)


def _spacing(step: int, dense: int, per_doubling: int) -> int:
    """Steps from one to the next: a power of two, so that the steps of a long run are among those of a
    short one.
    """
    return 1 if step < dense else 1 << max(0, (step // per_doubling).bit_length() - 1)
