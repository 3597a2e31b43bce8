"""The price of guessing: what a loss is when the output does not depend on the input.

It is ln K for cross-entropy over K balanced classes (their entropy where the observed batches show them to be
unbalanced), the entropy of yes and no for binary cross-entropy, and the targets' variance for a mean squared
error. It is claimed only where the loss is known to be one of these: from autograd's operations above the
last layer, from the project's own trainer, or from a first loss that fits ln K. Where the loss is scaled (a
sum, or divided for accumulation) so is guessing's; where the scale is not known the first loss stands for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from initscope.diagnosis.run_signals import RunSignals

NEAR = 0.25
"""How near (relative) a first loss must be to ln K for an unknown loss to pass as cross-entropy."""
LEAST_BATCH = 16
"""A first batch smaller than this says too little about the targets."""
UNBALANCED = 0.85
"""An entropy of the first batch's classes below this share of ln K is taken for imbalance, not chance."""
BALANCED = 0.97
"""A measured price that is not clearly below this share of ln K is ln K."""
COVERED = 0.8
"""With less of the classes' weight seen, an entropy is no price yet."""
SCALED = 0.1
"""A loss this far (relative) from the mean cross-entropy of its own outputs is a multiple of it."""
QUIET, LOUD = 0.7, 5.0
"""Outputs of a smaller RMS cost about ln K whatever they are; larger ones cost about their own size."""


@dataclass(frozen=True)
class Guess:
    """The loss of guessing. ``kind``: classes, binary, mean (a regression's targets) or unknown; ``doubt``:
    its relative standard error; ``noise``: relative scatter of the loss from batch to batch; ``floor``: what
    perfect outputs would cost (soft labels); ``equal``: what the same chance for every class costs, where
    they are unequal; ``scaled``: the loss is a multiple of what it seems to be, so that its first value
    stands for guessing; ``unjudged``: how low it is says nothing by itself.
    """

    kind: str = "unknown"
    loss: float | None = None
    classes: int | None = None
    doubt: float = 0.0
    scaled: bool = False
    noise: float = 0.0
    floor: float = 0.0
    equal: float | None = None
    unjudged: bool = False

    @property
    def at_start(self) -> float | None:
        """What a fresh network costs, which gives every class the same chance."""
        return self.equal if self.equal is not None else self.loss


def guessing(v: RunSignals, first: float) -> Guess:
    """The price of guessing for this run's loss, as far as it is known; ``first`` is the first loss."""
    if v.facts.get("discriminator"):
        return Guess(unjudged=True)
    if (v.facts.get("loss") or {}).get("other_network") and not ((v.facts["loss"].get("classes") or 0) > 1):
        return Guess(unjudged=True)
    if (measured := _measured(v)) is not None:
        return measured
    constant, error, batch = (
        v.fact("loss", "constant_answer"),
        v.fact("loss", "constant_answer_error") or 0.0,
        v.batch_size or 1,
    )
    seen = (
        (constant, error / constant)
        if constant is not None and constant > 0 and batch >= LEAST_BATCH
        else None
    )
    outputs = v.facts.get("outputs")
    if _in_chain(v, "BinaryCrossEntropy"):
        return (
            Guess("binary", seen[0], doubt=seen[1])
            if seen
            else Guess("binary", math.log(2) if (outputs or 1) == 1 else None)
        )
    if _in_chain(v, "MseLoss"):
        noise = scatter(v.loss)
        return Guess("mean", seen[0], doubt=max(seen[1], noise)) if seen else Guess("mean", doubt=noise)
    classes = (v.facts.get("loss") or {}).get("classes") or outputs or v.state.get("num_classes")
    if not classes or classes < 2:
        return Guess()
    likelihood = _in_chain(v, "NllLoss", "LogSoftmax") and _in_chain(v, "Log")
    if (v.chain and not likelihood) or not first > 0:
        return Guess(classes=int(classes))
    return _of_classes(v, first, int(classes), seen)


def _measured(v: RunSignals) -> Guess | None:
    """The price as it was measured from the targets that the loss's gradient gives away; None where they did
    not, or the loss is no plain one.
    """
    price, error, samples = (v.fact("targets", name) for name in ("price", "price_error", "samples"))
    kind = {"classes": "classes", "binary": "binary", "numbers": "mean"}.get(
        str((v.facts.get("targets") or {}).get("kind"))
    )
    if kind is None or price is None or error is None or (samples or 0) < LEAST_BATCH:
        return None
    scale, penalty = v.fact("targets", "scale"), 0.0
    if scale is None:  # it changes: a penalty stands beside the outputs' own loss, or it is another loss
        late, first = v.fact("targets", "late", "penalty"), v.fact("targets", "first", "penalty")
        begun = v.loss[0] if len(v.loss) else math.nan
        if late is None or first is None or min(late, first) < 0 or first > begun:
            return None
        scale, penalty = 1.0, late
    classes = int(v.fact("targets", "classes") or 0) or None
    lone = v.fact("targets", "true_classes") == 1
    floor = (v.fact("targets", "floor") or 0.0) * scale + penalty
    if kind == "mean":
        if not price > 0:
            return None
        return Guess("mean", scale * price + penalty, doubt=error / price, noise=scatter(v.loss), floor=floor)
    ceiling = math.log(classes or 2)
    covered = kind == "binary" or (v.fact("targets", "coverage") or 0.0) >= COVERED
    if lone or not covered or price + 3 * error > BALANCED * ceiling:
        price, error = ceiling, 0.0
    names = classes if kind == "classes" else None
    equal = scale * ceiling + penalty
    return Guess(
        kind,
        scale * price + penalty,
        names,
        doubt=error / price if price > 0 else 0.0,
        floor=floor,
        equal=equal,
    )


def _in_chain(v: RunSignals, *words: str) -> bool:
    return any(name.startswith(words) for name in v.chain)


def _of_classes(v: RunSignals, first: float, classes: int, seen: tuple[float, float] | None) -> Guess:
    """Guessing among ``classes``: ln K, or the entropy ``seen`` (with its relative error) where that is
    clearly lower.
    """
    price, doubt = math.log(classes), 0.0
    scale = v.fact("loss", "scale")
    if scale is not None and abs(scale - 1) > SCALED:
        if seen is not None and seen[0] < UNBALANCED * price:
            price, doubt = seen
        return Guess("classes", scale * price, classes, doubt)
    size = v.fact("targets", "first", "output_std")
    size = size if size is not None else float(v.rms[0, v.executed[-1]]) if len(v.executed) else math.nan
    told = bool(v.chain) or "num_classes" in v.state
    # Independent outputs of variance s^2 cost ln K + s^2/2 to second order.
    quiet = price + size**2 / 2
    if told and size < QUIET and abs(first / quiet - 1) > NEAR + (v.batch_size or 1) ** -0.5:
        return Guess("classes", first * price / quiet, classes, scaled=True)
    if not (told or abs(first / price - 1) < NEAR or (size > LOUD and 0.3 < first / size < 3)):
        return Guess(classes=classes)
    if seen is not None and seen[0] < UNBALANCED * price:
        price, doubt = seen
    return Guess("classes", price, classes, doubt)


def scatter(loss: np.ndarray) -> float:
    """Relative scatter of a loss from batch to batch: the median step's |change| / sqrt 2 over the median
    loss, as a standard deviation.
    """
    finite = loss[np.isfinite(loss)]
    middle = float(np.median(np.abs(finite))) if len(finite) else 0.0
    return (
        min(1.0, 1.05 * float(np.median(np.abs(np.diff(finite)))) / middle)
        if len(finite) > 8 and middle > 0
        else 0.0
    )
