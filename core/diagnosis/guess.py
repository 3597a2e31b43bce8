"""The price of guessing: what a loss is when the output does not depend on the input.

It is ln K for cross-entropy over K balanced classes (their entropy where the first batch shows them to be unbalanced), the entropy of yes and
no for binary cross-entropy, and the targets' variance for a mean squared error. It is claimed only where the loss is known to be one of
these: from autograd's operations above the last layer, from the project's own trainer, or from a first loss that fits ln K. Where the loss is
scaled (a sum, or divided for accumulation) its first value stands for guessing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.diagnosis.vitals import Vitals

NEAR = 0.25
"""How near (relative) a first loss must be to ln K for an unknown loss to pass as cross-entropy."""
LEAST_BATCH = 16
"""A first batch smaller than this says too little about the targets."""
UNBALANCED = 0.85
"""An entropy of the first batch's classes below this share of ln K is taken for imbalance, not chance."""
QUIET, LOUD = 0.7, 5.0
"""Outputs of a smaller RMS cost about ln K whatever they are; larger ones cost about their own size."""


@dataclass(frozen=True)
class Guess:
    """The loss of guessing. ``kind``: classes, binary, mean (a regression's targets) or unknown; ``doubt``: its relative standard
    error; ``scaled``: the loss is a multiple of what it seems to be, so that its first value stands for guessing."""

    kind: str = "unknown"
    loss: float | None = None
    classes: int | None = None
    doubt: float = 0.0
    scaled: bool = False


def guessing(v: Vitals, first: float) -> Guess:
    """The price of guessing for this run's loss, as far as it is known."""
    loss = v.facts.get("loss") or {}
    constant = v.fact("loss", "constant_answer")
    outputs, batch = v.facts.get("outputs"), v.batch_size or 1
    if any(name.startswith("BinaryCrossEntropy") for name in v.chain):
        price = constant if constant is not None else math.log(2) if (outputs or 1) == 1 else None
        return Guess("binary", price)
    if any(name.startswith("MseLoss") for name in v.chain):
        usable = constant is not None and constant > 0 and batch >= LEAST_BATCH
        return Guess("mean", constant, doubt=max(math.sqrt(2 / batch), scatter(v.loss))) if usable else Guess("mean", doubt=scatter(v.loss))
    softmax = any(name.startswith("NllLoss") or "Softmax" in name for name in v.chain)
    classes = loss.get("classes") or outputs or v.state.get("num_classes")
    if (v.chain and not softmax) or not classes or classes < 2 or not first > 0:
        return Guess(classes=int(classes) if classes and classes > 1 else None)
    if any(name.startswith("NllLoss") for name in v.chain) and not any("Log" in name for name in v.chain if not name.startswith("NllLoss")):
        return Guess(classes=int(classes))  # not a cross-entropy: it was given no logarithms
    classes, price = int(classes), math.log(classes)
    if constant is not None and batch >= LEAST_BATCH and constant < UNBALANCED * price:
        price = constant
    size = float(v.rms[0, v.executed[-1]]) if len(v.executed) else math.nan
    told = bool(v.chain) or "num_classes" in v.state
    if told and size < QUIET and abs(first / math.log(classes) - 1) > NEAR + batch**-0.5:
        return Guess("classes", first, classes, scaled=True)  # small outputs cost ln K, so the loss is scaled
    known = told or abs(first / price - 1) < NEAR or (size > LOUD and 0.3 < first / size < 3)
    return Guess("classes", price, classes) if known else Guess(classes=classes)


def scatter(loss: np.ndarray) -> float:
    """Relative scatter of a loss from batch to batch: the median step's |change| / sqrt 2 over the median loss, as a standard deviation."""
    finite = loss[np.isfinite(loss)]
    middle = float(np.median(np.abs(finite))) if len(finite) else 0.0
    return min(1.0, 1.05 * float(np.median(np.abs(np.diff(finite)))) / middle) if len(finite) > 8 and middle > 0 else 0.0
