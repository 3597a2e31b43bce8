"""The loss symptom: what the loss curve says, against the price of guessing where that is known
(``guess``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from initscope.diagnosis.chance_loss import NEAR, Guess, guessing
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.outcome import MIN_STEPS, SKILL, decide
from initscope.schema import Outcome

WELL = 0.8
"""Share of the price of guessing that is gone in a run that has learned well."""
DOUBTS = 2.0
"""Against an estimated price of guessing, progress within so many standard errors counts only if the loss
still falls.
"""
ABOVE = 0.1
"""A loss this share above guessing is above it, not at it."""
NOISE = 1.5
"""A batch's loss may be this many times another's by chance."""
SHORT = 8
"""Fewer recorded losses than this show nothing."""


@dataclass(frozen=True)
class Curve:
    """The loss curve in numbers. Losses in the units they were recorded in.

    ``progress`` is the share of ``reference`` (guessing's loss, or the first losses) that is gone over the
    last fifth, ``error`` the standard error of the last losses' median as such a share; ``falling``: the loss
    falls significantly (t > 4) over the last two thirds. ``memorising``: nothing was gained while every
    sample was new, so that what fell later was learned by heart. ``count`` is the number of recorded losses,
    ``steps`` of optimizer steps they span.
    """

    count: int
    steps: int
    first: float
    late: float
    highest: float
    reference: float
    guess: Guess
    progress: float
    error: float
    falling: bool
    nonfinite_step: int | None
    above_share: float
    memorising: bool
    min_progress: float
    spike: float | None
    unjudged: bool = False
    """Whether how low the loss is says nothing by itself: another network computes it, or it has no known
    bound.
    """

    @property
    def chance(self) -> float | None:
        """The loss of guessing; None where it is not known."""
        return self.guess.loss

    @property
    def nonfinite(self) -> bool:
        return self.nonfinite_step is not None

    @property
    def learning(self) -> bool:
        """The loss has left guessing (or its beginning) behind."""
        doubt = math.hypot(self.guess.doubt, self.error) if self.guess.doubt else 0.0
        clear = self.progress >= DOUBTS * doubt or self.falling
        return (
            not (self.nonfinite or self.unjudged)
            and self.count > 1
            and self.progress >= self.min_progress
            and clear
        )

    @property
    def learned(self) -> bool:
        """A third of the way is done, as ``outcome.SKILL``."""
        return self.learning and self.progress >= SKILL

    @property
    def well(self) -> bool:
        return self.learning and self.progress >= WELL

    @property
    def stuck(self) -> bool:
        """Finite, recorded long enough to see something, and not learning."""
        return not (self.nonfinite or self.unjudged) and self.count >= SHORT and not self.learning

    @property
    def at_chance(self) -> bool:
        """Stuck at the loss of guessing."""
        return self.stuck and self.chance is not None and self.progress > -self._margin

    @property
    def above_chance(self) -> bool:
        """Stuck above the loss of guessing (or above where it began)."""
        return self.stuck and self.progress <= -self._margin

    @property
    def worsened(self) -> bool:
        """The loss ended clearly above both guessing and where it began."""
        return self.stuck and self.late > (1 + self._margin) * max(self.first, self.reference)

    @property
    def _margin(self) -> float:
        """How far above the reference is above it, noise considered."""
        return (
            ABOVE
            + 3 * self.error
            + 2 * max(self.guess.doubt, self.guess.noise)
            + (NEAR if self.chance is None else 0.0)
        )

    @property
    def spiked(self) -> bool:
        """Some later loss was far above the first and above guessing."""
        doubt = max(self.guess.doubt, self.guess.noise)
        return (
            self.spike is not None
            and not self.unjudged
            and self.highest > self.spike * (1 + 2 * doubt) * max(self.first, self.reference)
        )

    @property
    def settled(self) -> bool:
        """Enough steps to judge, and no longer falling."""
        return self.steps >= MIN_STEPS * 0.8 and not self.falling


def read_curve(signals: RunSignals, thresholds: Thresholds) -> Curve:
    """The symptom of a run's recorded losses."""
    loss = signals.loss
    finite = np.isfinite(loss)
    broken = np.flatnonzero(~finite)
    y = loss[: broken[0]] if len(broken) else loss
    first = float(y[0]) if len(y) else math.nan
    guess = guessing(signals, first)
    tail = y[-max(3, len(y) // 5) :]
    # Of unequal classes most batches hold none of the rare ones: the median batch is cheaper than the mean,
    # which the price is.
    unequal = guess.equal is not None and guess.loss is not None and guess.loss < 0.9 * guess.equal
    late = float((np.mean if unequal else np.median)(tail)) if len(y) else math.nan
    start = float(np.median(y[: max(1, min(5, len(y) // 10))])) if len(y) else math.nan
    # First losses that blew up are no beginning; one below zero is compared with by its distance to it.
    beginning = start if first < 0 or start < NOISE * first else first
    reference = guess.loss if guess.loss is not None else abs(beginning)
    floor = min(guess.floor, 0.9 * reference) if guess.loss is not None else 0.0
    origin = guess.loss if guess.loss is not None else beginning
    progress = (origin - late) / (reference - floor) if reference else 0.0
    # Without a known price a loss below zero has no known bound: falling is all that can be seen of it.
    unbounded = guess.loss is None and guess.kind == "unknown" and len(y) > 0 and float(np.min(y)) < 0
    change, significance = trend(y[len(y) // 3 :])
    half, usual = y[len(y) // 2 :], float(np.median(y[: max(5, len(y) // 5)])) if len(y) else math.nan
    margin = 1.2 + 2 * max(guess.doubt, guess.noise) if guess.loss is not None else 1.5
    return Curve(
        count=len(loss),
        steps=signals.steps_taken,
        first=first,
        late=late,
        highest=float(np.max(y[1:])) if len(y) > 1 else first,
        reference=reference,
        guess=guess,
        progress=progress if math.isfinite(progress) else 0.0,
        error=1.25 * float(np.std(tail)) / math.sqrt(len(tail)) / reference
        if len(tail) and reference
        else 0.0,
        falling=significance < -4 and change < 0,
        nonfinite_step=int(signals.loss_steps[broken[0]]) if len(broken) else None,
        above_share=float((half > margin * max(first, reference, usual)).mean()) if len(half) else 0.0,
        memorising=_gained_nothing_new(y, signals.first_pass, reference),
        min_progress=thresholds.progress or 0.0,
        spike=thresholds.spike,
        unjudged=guess.unjudged or (unbounded and not (significance < -4 and change < 0)),
    )


def _gained_nothing_new(y: np.ndarray, first_pass: int | None, reference: float) -> bool:
    """Whether the loss over the second half of the first pass through the data lies at that of guessing or
    above, and no longer falls.

    On samples seen for the first time no network beats a constant answer if labels have nothing to do with
    inputs.
    """
    half = y[first_pass // 2 : first_pass] if first_pass else y[:0]
    if len(half) < SHORT or len(half) == len(y):
        return False
    error = float(np.std(half)) / math.sqrt(len(half))
    return float(np.mean(half)) > reference - 2 * error and trend(half)[1] > -2


def trend(y: np.ndarray) -> tuple[float, float]:
    """(change of the least-squares line over ``y``, its t statistic); (0, 0) for fewer than eight values."""
    if len(y) < 8:
        return 0.0, 0.0
    x = np.linspace(-0.5, 0.5, len(y))
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    error = math.sqrt(float((rest**2).sum()) / (len(y) - 2) / float((x * x).sum()))
    return slope, slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0


def outcome_of(signals: RunSignals, curve: Curve) -> Outcome:
    """The outcome, as every page and command has it (``initscope.outcome.decide``): the recorded one where
    the run has been judged.
    """
    recorded = signals.state.get("outcome")
    if recorded in (Outcome.CONVERGED, Outcome.NOT_CONVERGED, Outcome.DIVERGED) or (
        recorded and signals.state.get("outcome_because")
    ):
        return Outcome(recorded)
    if curve.unjudged and not curve.nonfinite:
        return Outcome.UNDECIDED
    epochs = signals.epochs
    val_losses, val_accuracies = (
        [] if not len(epochs) else epochs[name].to_numpy(dtype=float, na_value=np.nan)
        for name in ("val_loss", "val_accuracy")
    )
    state = (
        signals.state
        if "source" in signals.state or "num_classes" in signals.state
        else {**signals.state, "source": "recorder"}
    )
    return decide(
        signals.loss, steps=curve.steps, state=state, val_losses=val_losses, val_accuracies=val_accuracies
    ).outcome
