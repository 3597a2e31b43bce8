"""The loss symptom: what the loss curve says, against guessing where guessing has a known price.

The price of guessing is ln K for cross-entropy over K classes and ln 2 for one yes-or-no output. It is claimed only where
the loss is known to be one of these (from autograd's operations above the last layer, from the project's own trainer, or
from a first loss within a quarter of ln K). A regression has no known price: its first losses take the place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.diagnosis.thresholds import Thresholds
from core.diagnosis.vitals import Vitals
from core.outcome import MIN_STEPS, SKILL
from core.schema import Outcome

WELL = 0.8
"""Share of the price of guessing that is gone in a run that has learned well."""
ABOVE = 0.1
"""A loss this share above guessing is above it, not at it."""
NEAR = 0.25
"""How near (relative) a first loss must be to ln K for an unknown loss to pass as cross-entropy."""
SHORT = 8
"""Fewer recorded losses than this show nothing."""


@dataclass(frozen=True)
class Curve:
    """The loss curve in numbers. Losses in the units they were recorded in.

    ``progress`` is the share of ``reference`` (guessing's loss, or the first losses) that is gone over the last fifth; ``falling``
    whether the loss falls significantly (t > 4) over the last two thirds; ``fall`` by which share of the reference.
    """

    count: int
    first: float
    late: float
    highest: float
    reference: float
    chance: float | None
    classes: int | None
    summed: bool
    progress: float
    falling: bool
    fall: float
    nonfinite_step: int | None
    above_share: float
    min_progress: float
    spike: float | None

    @property
    def nonfinite(self) -> bool:
        return self.nonfinite_step is not None

    @property
    def learning(self) -> bool:
        """The loss has left guessing (or its beginning) behind."""
        return not self.nonfinite and self.count > 1 and self.progress >= self.min_progress

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
        return not self.nonfinite and self.count >= SHORT and not self.learning

    @property
    def at_chance(self) -> bool:
        """Stuck at the loss of guessing."""
        return self.stuck and self.chance is not None and self.progress > -ABOVE

    @property
    def above_chance(self) -> bool:
        """Stuck above the loss of guessing (or above where it began)."""
        return self.stuck and self.progress <= -ABOVE

    @property
    def worsened(self) -> bool:
        """The loss ended clearly above both guessing and where it began."""
        return self.stuck and self.late > (1 + ABOVE) * max(self.first, self.reference)

    @property
    def spiked(self) -> bool:
        """Some later loss was far above the first and above guessing."""
        return self.spike is not None and self.highest > self.spike * max(self.first, self.reference)

    @property
    def settled(self) -> bool:
        """Enough steps to judge, and no longer falling."""
        return self.count >= MIN_STEPS * 0.8 and not self.falling


def read_curve(vitals: Vitals, thresholds: Thresholds) -> Curve:
    """The symptom of a run's recorded losses."""
    loss = vitals.loss
    finite = np.isfinite(loss)
    broken = np.flatnonzero(~finite)
    y = loss[: broken[0]] if len(broken) else loss
    first = float(y[0]) if len(y) else math.nan
    classes, chance, summed = price_of_guessing(vitals, first)
    tail = y[-max(3, len(y) // 5) :]
    late = float(np.median(tail)) if len(y) else math.nan
    start = float(np.median(y[: max(1, min(5, len(y) // 10))])) if len(y) else math.nan
    # A run that begins below guessing (pretrained, or imbalanced classes) is measured against guessing all the same.
    reference = chance if chance is not None else abs(start)
    progress = (reference - late) / reference if reference else 0.0
    fall, significance = trend(y[len(y) // 3 :])
    half = y[len(y) // 2 :]
    margin = 1.2 if chance is not None else 1.5
    return Curve(
        count=len(loss),
        first=first,
        late=late,
        highest=float(np.max(y[1:])) if len(y) > 1 else first,
        reference=reference,
        chance=chance,
        classes=classes,
        summed=summed,
        progress=progress if math.isfinite(progress) else 0.0,
        falling=significance < -4 and fall < 0,
        fall=-fall / reference if reference else 0.0,
        nonfinite_step=int(vitals.loss_steps[broken[0]]) if len(broken) else None,
        above_share=float((half > margin * reference).mean()) if len(half) else 0.0,
        min_progress=thresholds.progress if thresholds.progress is not None else 0.0,
        spike=thresholds.spike,
    )


def trend(y: np.ndarray) -> tuple[float, float]:
    """(change of the least-squares line over ``y``, its t statistic); (0, 0) for fewer than eight values."""
    if len(y) < 8:
        return 0.0, 0.0
    x = np.linspace(-0.5, 0.5, len(y))
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    error = math.sqrt(float((rest**2).sum()) / (len(y) - 2) / float((x * x).sum()))
    return slope, slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0


def price_of_guessing(vitals: Vitals, first: float) -> tuple[int | None, float | None, bool]:
    """(K, the loss of guessing, whether the loss is a sum over the batch); None where they are not known."""
    chain = vitals.chain
    outputs = vitals.facts.get("outputs")
    classes = (vitals.facts.get("loss") or {}).get("classes") or outputs or vitals.state.get("num_classes")
    if chain:
        if any(name.startswith("BinaryCrossEntropy") for name in chain):
            return None, (math.log(2) if (outputs or 1) == 1 else None), False
        if not any(name.startswith("NllLoss") or "Softmax" in name for name in chain) or any(name.startswith("MseLoss") for name in chain):
            return None, None, False
    if not classes or classes < 2:
        return None, None, False
    chance = math.log(classes)
    batch = vitals.batch_size or 1
    if batch >= 4 and abs(first / (batch * chance) - 1) < NEAR and not _loud(vitals):
        return int(classes), batch * chance, True
    known = bool(chain) or "num_classes" in vitals.state
    if not known and not abs(first / chance - 1) < NEAR:
        return None, None, False
    return int(classes), chance, False


def _loud(vitals: Vitals) -> bool:
    """Whether the logits are large enough to explain a large loss by themselves."""
    if not len(vitals.executed):
        return False
    return not vitals.rms[0, vitals.executed[-1]] < 5


def outcome_of(curve: Curve, recorded: str | None) -> Outcome:
    """The outcome: the recorded one where it is decided, else by the losses.

    The trainer decides by validation accuracy (``core.outcome``). A loop of somebody's own has none, so: **diverged** if a loss
    was not finite; **undecided** below ``MIN_STEPS`` recorded steps; **converged** if a third of the loss of guessing (or of the first
    losses) is gone over the last fifth of the run; **not_converged** if less than the threshold ``progress`` (5 %) is gone;
    otherwise undecided.
    """
    if recorded in (Outcome.CONVERGED, Outcome.NOT_CONVERGED, Outcome.DIVERGED):
        return Outcome(recorded)
    if curve.nonfinite:
        return Outcome.DIVERGED
    if curve.count < MIN_STEPS:
        return Outcome.UNDECIDED
    if curve.learned:
        return Outcome.CONVERGED
    return Outcome.UNDECIDED if curve.learning else Outcome.NOT_CONVERGED
