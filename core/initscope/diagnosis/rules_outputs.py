"""The rule about what stands between the last layer and the loss: a softmax too many, a sign, the wrong
dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from initscope.diagnosis.chance_loss import NEAR
from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding, start_of
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.wording import percent, sig3

Misuse = tuple[str, str, float | None, float | None]
"""(finding id, sentence, value, threshold)"""
SQUASHERS = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "Relu": "ReLU",
    "Tanh": "tanh",
    "Softplus": "softplus",
}
_SHAPE_OPERATIONS = ("View", "Squeeze", "Select", "Reshape", "UnsafeView", "Permute", "Transpose")


FLAT = 0.2
"""Of the outputs' size, the share that differs between samples, from which on they are one answer for all."""
FLATTENED = 0.5
"""And of what that share was at first: training has brought it about."""


def outputs_flat(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Training has made the outputs one answer for all inputs, under a loss whose price for that is not
    known. Where it is known the loss is compared with it instead.
    """
    share = v.output_share
    if c.chance is not None or c.unjudged or (v.batch_size or 1) < 4 or len(share) < 10:
        return None
    end = float(np.median(share[-max(1, len(share) // 10) :]))
    if not (end < FLAT and end < FLATTENED * share[0]):
        return None
    name = v.rows.names[v.executed[-1]]
    text = (
        f"At the end {percent(end)} of the outputs of {v.called(name)} depend on the input, at the first "
        f"step it was {percent(float(share[0]))}: nearly the same answer for every sample lowers this loss "
        "too."
    )
    source = "standard deviation across samples over RMS"
    return Finding("outputs_flat", (name,), end, FLAT, source, text, int(v.rows.steps[-1]), False)


def outputs_misused(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """What stands between the last layer and the loss does not belong there: from autograd's operations, else
    from the numbers.
    """
    problem = _misuse_by_chain(v, c) if v.chain else _misuse_by_numbers(v, c)
    if problem is None:
        return None
    kind, text, value, threshold = problem
    return Finding(kind, (), value, threshold, "definition of the loss", text, start_of(v))


def _misuse_by_chain(v: RunSignals, c: Curve) -> Misuse | None:
    chain, loss = v.chain, v.facts.get("loss") or {}
    if loss.get("broadcast"):
        return (
            "targets_broadcast",
            "Outputs and targets differ in shape, so every output is compared with every target.",
            None,
            None,
        )
    if loss.get("indexed_across"):
        return (
            "outputs_indexed_across",
            "Every row of the outputs is indexed with the columns of all samples (outputs[:, index]), not "
            "with its own (outputs.gather(1, index.unsqueeze(1))), so every sample is compared with every "
            "target.",
            None,
            None,
        )
    if loss.get("classes") == 1:
        return (
            "softmax_of_one",
            "A softmax runs over a single output: it is always one, whatever the network says.",
            None,
            None,
        )
    if _is_divergence(v, c):
        return (
            "divergence_of_probabilities",
            f"The loss is a sum of targets times a softmax's outputs, taken from a constant, and falls to "
            f"{sig3(float(np.nanmin(v.loss)))}, which no divergence can: KLDivLoss was given probabilities "
            "where it needs their logarithms (log_softmax).",
            c.late,
            0.0,
        )
    nll = next((i for i, name in enumerate(chain) if name.startswith("NllLoss")), None)
    if nll is not None:
        if "Neg" in chain[:nll]:
            return (
                "loss_negated",
                "The loss is the negative of a cross-entropy: training makes it worse.",
                c.late,
                0.0,
            )
        if loss.get("across_batch"):
            return (
                "softmax_across_batch",
                "The softmax runs over the samples of the batch instead of the classes.",
                None,
                None,
            )
        below = chain[nll + 1 :]
        if "LogSoftmax" in below:
            return _squashed(c, _squasher(below[below.index("LogSoftmax") + 1 :]))
        cheap = c.first < 0.5 * math.log(c.guess.classes or 2) or np.nanmin(v.loss) < 0
        if (
            not any(name.startswith("Log") for name in below)
            and not v.facts.get("outputs_log_probabilities")
            and cheap
        ):
            what = _squasher(below)
            given = f"a {what}'s outputs" if what else "raw outputs"
            return (
                "loss_of_raw_outputs",
                f"NLLLoss was given {given} where it needs log-probabilities (log_softmax).",
                c.late,
                0.0,
            )
    elif any(name.startswith("LogSoftmax") for name in chain) and _is_likelihood(c):
        return (
            "loss_negated",
            "The loss is a log-likelihood without its minus sign: training makes the true class less likely.",
            c.late,
            0.0,
        )
    logits = next(
        (i for i, name in enumerate(chain) if name.startswith("BinaryCrossEntropyWithLogits")), None
    )
    return _squashed(c, _squasher(chain[logits + 1 :])) if logits is not None else None


def _is_divergence(v: RunSignals, c: Curve) -> bool:
    """KLDivLoss of plain probabilities: constant - target * softmax for each class, averaged or summed, and
    below zero.
    """
    inner = [name for name in v.chain if not name.startswith(("Div", "Mean", "Sum", *_SHAPE_OPERATIONS))]
    return inner[:3] == ["Sub", "Mul", "Softmax"] and c.late < 0


def _is_likelihood(c: Curve) -> bool:
    """A loss that begins at minus the price of guessing and falls from there."""
    price = math.log(c.guess.classes) if c.guess.classes else math.nan
    return abs(c.first / -price - 1) < NEAR and c.late < (1 + NEAR) * c.first


def _squasher(below: Sequence[str]) -> str | None:
    """The squashing function right below; None if the first operation that is more than a reshaping is
    another. A second LogSoftmax changes nothing, a scaled tanh or a pooled ReLU may be meant.
    """
    first = next((name for name in below if not name.startswith(_SHAPE_OPERATIONS)), "")
    return SQUASHERS.get(first)


def _squashed(c: Curve, what: str | None) -> Misuse | None:
    if what is None:
        return None
    kind = "outputs_rectified" if what in ("ReLU", "softplus") else "outputs_are_probabilities"
    floor = (
        f" The loss cannot fall below {sig3(softmax_floor(c.guess.classes))} however sure the network is."
        if what == "softmax" and c.guess.classes
        else ""
    )
    return (
        kind,
        f"A {what} stands between the last layer and a loss that expects raw outputs.{floor}",
        None,
        None,
    )


def softmax_floor(classes: int) -> float:
    """Smallest cross-entropy of a softmax's outputs taken as logits: ln(e + K - 1) - 1, 1.46 for ten
    classes.
    """
    return math.log(math.e + classes - 1) - 1


def _misuse_by_numbers(v: RunSignals, c: Curve) -> Misuse | None:
    """The loss came as a plain number: judge by its sign and floor, and by the outputs' range."""
    lowest = float(np.nanmin(v.loss)) if np.isfinite(v.loss).any() else math.nan
    if lowest < 0 and c.guess.classes and "num_classes" not in v.state:
        return (
            "loss_below_zero",
            f"The loss falls below zero ({sig3(lowest)}), which a cross-entropy cannot.",
            lowest,
            0.0,
        )
    low, high = v.facts.get("output_range") or (math.nan, math.nan)
    unit = v.facts.get("outputs_sum_to_one") or (isinstance(low, float) and low >= 0 and high <= 1)
    # The floor is what tells a softmax too many from the log of one softmax.
    if (
        unit
        and c.chance is not None
        and c.guess.kind == "classes"
        and c.guess.classes is not None
        and c.guess.classes > 2
        and lowest >= 0.98 * softmax_floor(c.guess.classes)
    ):
        return _squashed(c, "softmax" if v.facts.get("outputs_sum_to_one") else "sigmoid")
    return None
