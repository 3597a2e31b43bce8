"""What became of a training run: the definition, written down once, for our runs and for loops of somebody's
own.

With a validation accuracy acc over N samples of K classes (chance: the larger of 1/K and the share of the
most frequent class):

- **diverged**: a training loss was NaN or infinite.
- **undecided**: fewer than ``MIN_STEPS`` optimizer steps, or nothing to judge by.
- **not_converged**: acc is within the noise of guessing, acc <= chance + 3 sqrt(chance (1 - chance) / N).
- **converged**: acc closes at least a third of the way from chance to perfect, (acc - chance) / (1 - chance)
  >= 1/3, and is beyond that noise.
- otherwise **undecided**: it left chance behind and has not come far; train longer to know.

For ten balanced classes and 359 validation samples: at chance up to 14.8 %, converged from 40 %.

Without one, a loss L over the last fifth of the run (a validation loss where there is one) is judged against
the price C of the best answer that does not look at the input, where that is known (``price_of_guessing``),
else against the first losses: **converged** if (C - L) / C is at least a third, **not_converged** below
``MIN_PROGRESS``, else undecided. How it was decided is kept beside it (``Basis``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from initscope.schema import LIVE, Outcome, Status
from initscope.wording import percent3, sig3

MIN_STEPS = 50
"""Fewer steps than this decide nothing."""
NOISE_SIGMAS = 3.0
"""How many standard errors of guessing still count as guessing (p about 0.001)."""
SKILL = 1 / 3
"""Share of the way from chance to perfect from which a run has converged."""


def chance_ceiling(chance: float, samples: float) -> float:
    """The highest accuracy that guessing explains: chance + 3 standard errors of ``samples`` guesses."""
    return chance + NOISE_SIGMAS * math.sqrt(chance * (1 - chance) / samples)


def converged_floor(chance: float) -> float:
    """The accuracy from which a run counts as converged."""
    return chance + SKILL * (1 - chance)


def judge(*, loss_finite: bool, steps: int, accuracy: float | None, chance: float, samples: int) -> Outcome:
    """The outcome by the definition above.

    ``accuracy`` is the last validation accuracy in 0..1 (None: none yet), over ``samples`` samples; ``steps``
    the optimizer steps taken.
    """
    if not loss_finite:
        return Outcome.DIVERGED
    if accuracy is None or samples == 0 or steps < MIN_STEPS:
        return Outcome.UNDECIDED
    if accuracy <= chance_ceiling(chance, samples):
        return Outcome.NOT_CONVERGED
    return Outcome.CONVERGED if accuracy >= converged_floor(chance) else Outcome.UNDECIDED


CERTAIN_SKILL = 0.6
"""Share of the way from chance to perfect from which convergence is certain: nearly twice what ``converged``
asks for.
"""
CERTAIN_SIGNAL = 1e-4
"""Signal over size of the output below which the output does not depend on the input: 1/1000 of what bfloat16
resolves.
"""
CERTAIN_EPOCHS = 2
"""So many epochs in a row must have ended at chance."""
CERTAIN_SHARE = 0.5
"""Share of the planned steps that must be done. PyTorch's default weights do escape from chance now and then,
late and after a slow climb of the signal; one that shows nothing at half time has not been seen to
(tests/benchmarks/LOG.md).
"""


def certain(
    *, accuracies: list[float], steps: int, planned: int, chance: float, samples: int, relative_signal: float
) -> bool:
    """Whether training on would not change the outcome; for sweeps that want outcomes, not final accuracies.

    ``accuracies``: validation accuracy of every epoch so far; ``steps`` of ``planned`` are done;
    ``relative_signal``: the last layer's signal_std over the RMS of its pre-activation at the latest recorded
    step. Certain to have converged: the accuracy has come ``CERTAIN_SKILL`` of the way. Certain not to:
    ``CERTAIN_SHARE`` of the run is over, ``CERTAIN_EPOCHS`` epochs in a row ended at chance, and the output
    still does not depend on the input.
    """
    if not accuracies or steps < MIN_STEPS:
        return False
    if accuracies[-1] >= chance + CERTAIN_SKILL * (1 - chance):
        return True
    recent = accuracies[-CERTAIN_EPOCHS:]
    at_chance = len(recent) == CERTAIN_EPOCHS and max(recent) <= chance_ceiling(chance, samples)
    return at_chance and steps >= CERTAIN_SHARE * planned and relative_signal < CERTAIN_SIGNAL


# -- runs of any loop


MIN_PROGRESS = 0.05
"""Share of the price of guessing (or of the first loss) that must be gone before a loss has left it
behind.
"""
ASSUMED_SAMPLES = 400
"""Validation samples behind an accuracy whose number nobody told."""
DOUBTS = 2.0
"""Against an estimated price, progress within so many standard errors decides nothing."""
LEAST_TARGETS = 16
"""A price estimated from a smaller batch is not used."""
NEAR = 0.25
"""How near (relative) a first loss must be to ln K for a loss that is not known to pass as cross-entropy."""
BALANCED = 0.97
"""An entropy of the targets that is not clearly below this share of ln K is taken for ln K."""
COVERED = 0.8
"""With less of the classes' weight seen, an entropy is no price yet."""


class Basis(StrEnum):
    """By what an outcome was decided: ``outcome_by`` in ``status.json``."""

    VALIDATION = "validation"
    TRAINING_LOSS = "training loss"
    FIRST_LOSS = "share of first loss"


@dataclass(frozen=True)
class Decision:
    """An outcome, by what it was decided (None: nothing could be), and why in half a sentence."""

    outcome: Outcome
    by: Basis | None
    because: str


@dataclass(frozen=True)
class Price:
    """The loss of the best answer that does not look at the input. ``doubt``: its relative standard error;
    ``classes``: K, where the targets are classes; ``chance``: the largest share that the most frequent class
    can have; ``unjudged``: how low the loss is says nothing by itself.
    """

    loss: float | None = None
    doubt: float = 0.0
    classes: int | None = None
    chance: float | None = None
    unjudged: bool = False


def decide(
    losses: Sequence[float] | np.ndarray,
    *,
    steps: int,
    state: Mapping[str, Any],
    val_losses: Sequence[float | None] = (),
    val_accuracies: Sequence[float | None] = (),
) -> Decision:
    """The outcome of a run by what was recorded of it.

    ``losses``: recorded training losses in order; ``steps``: optimizer steps taken; ``state``:
    ``status.json`` (its facts say what the loss is); ``val_losses``, ``val_accuracies`` (0..1): one value an
    epoch, None or NaN where there was none.
    """
    y = np.asarray(losses, dtype=float)
    if len(y) and not np.isfinite(y).all():
        return Decision(Outcome.DIVERGED, Basis.TRAINING_LOSS, "the loss is no number any more")
    if steps < MIN_STEPS:
        return Decision(
            Outcome.UNDECIDED, None, f"{steps} of the {MIN_STEPS} steps from which anything can be told"
        )
    price = price_of_guessing(state, float(y[0]) if len(y) else math.nan)
    if (accuracy := _last(val_accuracies)) is not None and price.classes:
        known = _number(state.get("chance"))
        chance = known if known is not None else price.chance or 1 / price.classes
        samples = int(_number(state.get("validation_samples")) or ASSUMED_SAMPLES)
        found = judge(loss_finite=True, steps=steps, accuracy=accuracy, chance=chance, samples=samples)
        return Decision(
            found,
            Basis.VALIDATION,
            f"validation accuracy {percent3(accuracy)}, guessing gives {percent3(chance)}",
        )
    if price.unjudged or not len(y):
        return Decision(
            Outcome.UNDECIDED,
            None,
            "this loss says nothing by itself: call recorder.validate(accuracy=...) or "
            "recorder.validate(loss=...)",
        )
    measured = _last(val_losses)
    if measured is not None and not math.isfinite(measured):
        return Decision(Outcome.NOT_CONVERGED, Basis.VALIDATION, "the validation loss is no number")
    late, error = (measured, 0.0) if measured is not None else _late(y)
    if price.loss is not None:
        by = Basis.VALIDATION if measured is not None else Basis.TRAINING_LOSS
        what = f"of the price of guessing ({sig3(price.loss)})"
        return _by_loss(
            late, price.loss, math.hypot(price.doubt, error / price.loss), by, what, price.classes is not None
        )
    start = _beginning(y)
    if not start > 0 or late < 0:
        return Decision(
            Outcome.UNDECIDED,
            None,
            "nobody knows what this loss is without learning: call recorder.validate(accuracy=...), or "
            "validate(loss=...) from the start on",
        )
    return _by_loss(late, start, error / start, Basis.FIRST_LOSS, f"of the first loss ({sig3(start)})", False)


def _by_loss(
    late: float, reference: float, doubt: float, by: Basis, what: str, never_negative: bool
) -> Decision:
    """``judge`` for losses; ``doubt`` is the relative standard error of how much is gone."""
    if late < 0 and never_negative:
        return Decision(
            Outcome.UNDECIDED,
            None,
            f"a cross-entropy of {sig3(late)} cannot be: call recorder.validate(accuracy=...)",
        )
    gone = (reference - late) / reference
    because = (
        f"{percent3(gone)} {what} is gone"
        if gone > 0
        else f"the loss is {sig3(late)}, nothing {what} is gone"
    )
    if gone < MIN_PROGRESS and gone + DOUBTS * doubt < SKILL:
        return Decision(Outcome.NOT_CONVERGED, by, because)
    return Decision(
        Outcome.CONVERGED if gone >= SKILL and gone >= DOUBTS * doubt else Outcome.UNDECIDED, by, because
    )


def settled(decision: Decision, status: str) -> Decision:
    """The decision on a run that is in ``status``: one that was stopped or broke off has not shown that it
    would not have converged.
    """
    if (
        status in LIVE
        or status == Status.FINISHED
        or decision.outcome in (Outcome.CONVERGED, Outcome.DIVERGED)
    ):
        return decision
    return Decision(Outcome.UNDECIDED, None, f"it {_ENDED.get(status, 'ended')} before that could be told")


_ENDED: dict[str, str] = {Status.STOPPED: "was stopped", Status.FAILED: "failed", Status.CRASHED: "crashed"}


def price_of_guessing(state: Mapping[str, Any], first: float) -> Price:
    """What the best constant answer costs, from ``status.json`` and the ``first`` loss.

    ln K of a cross-entropy over K classes, or the targets' entropy where that is clearly lower; the entropy
    of yes and no of a binary one; the targets' variance of a mean squared error; scaled as the loss is. Known
    from autograd's operations above the last layer and from what the loss's gradient tells of the targets, or
    from a first loss near ln K. None where none of that fits.
    """
    facts = _mapping(state.get("facts"))
    loss = _mapping(facts.get("loss"))
    if facts.get("discriminator") or (loss.get("other_network") and (_number(loss.get("classes")) or 0) < 2):
        return Price(unjudged=True)
    if (measured := _from_targets(_mapping(facts.get("targets")))) is not None:
        return measured
    chain = [str(name) for name in loss["chain"]] if isinstance(loss.get("chain"), list) else []
    constant, error = _number(loss.get("constant_answer")), _number(loss.get("constant_answer_error")) or 0.0
    known = constant is not None and constant > 0 and (_number(facts.get("batch_size")) or 1) >= LEAST_TARGETS
    doubt = error / constant if known and constant else 0.0
    if _has(chain, "BinaryCrossEntropy"):
        return (
            Price(constant, doubt)
            if known
            else Price(math.log(2) if (_number(facts.get("outputs")) or 1) == 1 else None)
        )
    if _has(chain, "MseLoss"):
        return Price(constant, doubt) if known else Price()
    count = _number(loss.get("classes")) or _number(facts.get("outputs")) or _number(state.get("num_classes"))
    if not count or count < 2:
        return Price()
    classes, uniform = int(count), math.log(count)
    if chain and not (_has(chain, "NllLoss", "LogSoftmax") and _has(chain, "Log")):
        return Price()
    entropy = constant if known else None
    unequal = entropy is not None and entropy + 2 * error < BALANCED * uniform
    price, doubt = (entropy, doubt) if unequal and entropy is not None else (uniform, 0.0)
    chance = most_frequent(price + 2 * doubt * price, classes) if unequal else 1 / classes
    scale = _number(loss.get("scale"))
    if scale is not None and scale > 0:
        return Price(price * scale, doubt, classes, chance)
    if state.get("source") != "recorder" or abs(first / uniform - 1) < NEAR:
        return Price(price, doubt, classes, chance)
    return Price(None, 0.0, classes, chance)


def _from_targets(targets: Mapping[str, Any]) -> Price | None:
    """The price as it was measured from the targets themselves; None where they are not known, or the loss is
    no plain one of them.
    """
    price, error, samples = (_number(targets.get(name)) for name in ("price", "price_error", "samples"))
    kind = targets.get("kind")
    if (
        kind not in ("classes", "binary", "numbers")
        or price is None
        or error is None
        or (samples or 0) < LEAST_TARGETS
    ):
        return None
    scale, penalty = _number(targets.get("scale")), 0.0
    if scale is None:  # it changes: a penalty stands beside the outputs' own loss
        late, first = (_number(_mapping(targets.get(when)).get("penalty")) for when in ("late", "first"))
        if late is None or first is None or min(late, first) < 0:
            return None
        scale, penalty = 1.0, late
    if not scale > 0 or (kind == "numbers" and not price > 0):
        return None
    if kind == "numbers":
        return Price(scale * price + penalty, error / price)
    count = _number(targets.get("classes"))
    classes = int(count) if kind == "classes" and count and count >= 2 else None
    ceiling = math.log(classes or 2)
    covered = kind == "binary" or (_number(targets.get("coverage")) or 0.0) >= COVERED
    equal = targets.get("true_classes") == 1 or not covered or price + 3 * error > BALANCED * ceiling
    if equal:
        price, error = ceiling, 0.0
    if not price > 0:
        return None
    chance = None if classes is None else 1 / classes if equal else most_frequent(price + 2 * error, classes)
    return Price(scale * price + penalty, error / price, classes, chance)


def most_frequent(entropy: float, classes: int) -> float:
    """The largest share that one of ``classes`` can have at this ``entropy`` (nats): the p of -p ln p - (1 -
    p) ln((1 - p) / (K - 1)) = entropy above 1/K, where all others are equal (Fano).
    """
    low, high = 1 / classes, 1.0
    for _ in range(50):
        p = (low + high) / 2
        rest = 0.0 if p >= 1 else (1 - p) * math.log((1 - p) / (classes - 1))
        low, high = (p, high) if -p * math.log(p) - rest > entropy else (low, p)
    return (low + high) / 2


def _late(y: np.ndarray) -> tuple[float, float]:
    """(median over the last fifth, its standard error)."""
    tail = y[-max(3, len(y) // 5) :]
    return float(np.median(tail)), 1.25 * float(np.std(tail)) / math.sqrt(len(tail))


def _beginning(y: np.ndarray) -> float:
    """The first losses; where they blow up at once the very first one."""
    start = float(np.median(y[: max(1, min(5, len(y) // 10))]))
    return start if start < 1.5 * y[0] else float(y[0])


def _last(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None and value == value]  # noqa: PLR0124 (NaN: not told)
    return float(found[-1]) if found else None


def _has(chain: Sequence[str], *words: str) -> bool:
    return any(name.startswith(words) for name in chain)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )
