"""Rules about targets and how outputs answer them: unequal classes, sorted batches, targets out of reach or
out of range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.store.files import number
from initscope.wording import percent, sig3

OUTSIDE = 0.05
"""How far outside of [0, 1] a deduced target of a binary cross-entropy lies before it is no rounding."""
LEAST_SAMPLES = 64
"""Fewer observed samples say nothing about classes."""
COLLAPSED = 0.98
"""Share of the predictions that fall on one class in a collapsed network."""
RECALLED = 0.02
"""Share of the other classes' samples that a collapsed network still finds."""
MISSED, BEATS = 1 / 3, 0.1
"""A network that finds less of the other classes and beats the majority by less of what is left answers
mostly with one class.
"""
LEAST_MINORITY = 8
"""Observed samples of the other classes, at least."""
MAJORITY, UNEQUAL = 0.3, 1.3
"""Classes are unequal if the largest holds this share of the samples, and this many times an equal share."""
SORTED = 0.5
"""Batches are sorted if two samples of one have the same label this much of the way from what shuffled
batches would show to always.
"""
SORTED_NUMBERS = 0.3
"""Of a regression: variance of the targets within batches over that of all."""
ONE_WAY = 0.9
"""Rank correlation of a batch's mean target with time, from which it is not told whether the order of the
samples or the targets themselves move it.
"""
FAR = 10.0
"""Targets of a larger RMS are far away for outputs that begin near zero."""
NEAR_ZERO = 1e-2
"""Targets of a smaller RMS are smaller than what fresh outputs are by chance."""
ONE_SIDE = 0.95
"""All outputs lie on the same side of their targets: they are still on their way."""
LOUD_OUTPUTS = 5.0
"""Standard deviation of fresh outputs from which a softmax is sure of itself."""

Facts = Mapping[str, Any]


def _targets(v: RunSignals) -> Facts:
    return v.facts.get("targets") or {}


def late_targets(v: RunSignals) -> Facts:
    """Outputs against targets at the end of the run; empty if they were last looked at long before."""
    found = _targets(v)
    last = v.loss_steps[-1] if len(v.loss_steps) else 0
    return found.get("late") or {} if (number(found.get("late_step")) or 0) >= 0.5 * last else {}


def loss_unjudged(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if v.facts.get("discriminator"):
        text = (
            "The loss is a discriminator's: real samples against another network's. Balance keeps it near 2 "
            "ln 2 = 1.39, so how low it is does not tell how well the two learn."
        )
    elif (v.facts.get("loss") or {}).get("other_network") and not c.guess.classes:
        text = (
            "The loss is computed by another network's weights, as a generator's is by its discriminator: "
            "how low it is says nothing by itself."
        )
    elif c.unjudged:
        text = "The loss has no known lower bound and falls below zero: how low it is says nothing by itself."
    else:
        return None
    return Finding("loss_unjudged", (), None, None, "Goodfellow et al. 2014", text)


def targets_outside(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    found = _targets(v)
    low, high = number(found.get("low")), number(found.get("high"))
    if (
        found.get("kind") != "binary"
        or low is None
        or high is None
        or (low > -OUTSIDE and high < 1 + OUTSIDE)
    ):
        return None
    text = (
        f"The targets run from {sig3(low)} to {sig3(high)}, but a binary cross-entropy expects 0 to 1: "
        "outside of that it has no lower bound."
    )
    return Finding(
        "targets_outside",
        (),
        high if high > 1 else low,
        1.0 if high > 1 else 0.0,
        "definition of the loss",
        text,
    )


def labels_constant(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    found = _targets(v)
    samples = number(found.get("samples")) or 0
    if (
        found.get("true_classes") != 1
        or targets_outside(v, c, t)
        or samples < LEAST_SAMPLES
        or (number(found.get("batches")) or 0) < 8
    ):
        return None
    text = (
        f"All {int(samples)} labels that were seen are class {int(found.get('largest_class') or 0)}: there "
        "is nothing to tell apart."
    )
    return Finding("labels_constant", (), 1.0, 1.0, "definition", text)


def labels_in_order(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    found = _targets(v)
    within, overall = number(found.get("same_label")), number(found.get("same_label_overall"))
    if (
        within is not None
        and overall is not None
        and overall < 0.98
        and within > overall + SORTED * (1 - overall)
    ):
        text = (
            f"Two samples of a batch have the same label {percent(within)} of the time; in shuffled batches "
            f"it would be {percent(overall)}."
        )
        return Finding(
            "labels_in_order", (), within, overall + SORTED * (1 - overall), "Simpson's index", text
        )
    inside, overall = number(found.get("variance_within")), number(found.get("price"))
    if inside is not None and overall and (v.batch_size or 0) >= 8 and inside < SORTED_NUMBERS * overall:
        text = (
            f"The targets' variance within batches is {percent(inside / overall)} of that over all of them: "
            "the batches are sorted by target."
        )
        if abs(v.fact("targets", "drift") or 0.0) >= ONE_WAY:
            first, late = (found.get("first") or {}).get("target_mean"), late_targets(v).get("target_mean")
            went = f", from {sig3(first)} to {sig3(late)}" if first is not None and late is not None else ""
            text = (
                f"The batches' mean target goes one way all the time{went}: either the batches are sorted by "
                "target, or the targets are made by a network that moves, such as values of the next state."
            )
            return Finding("targets_drift", (), inside / overall, SORTED_NUMBERS, "rank correlation", text)
        return Finding("labels_in_order", (), inside / overall, SORTED_NUMBERS, "analysis of variance", text)
    return None


def class_collapse(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    found, late = _targets(v), late_targets(v)
    judged, classes = number(late.get("judged")) or 0, number(found.get("classes")) or 0
    largest = number(found.get("largest")) or 0.0
    if targets_outside(v, c, t):
        return None
    if judged < LEAST_SAMPLES or classes < 2 or (number(late.get("minority")) or 0) < LEAST_MINORITY:
        return None
    one, recall = number(late.get("predicted_largest")) or 0.0, number(late.get("minority_recall"))
    right, majority = number(late.get("accuracy")), number(late.get("true_largest"))
    if recall is None or right is None or majority is None or largest < max(MAJORITY, UNEQUAL / classes):
        return None
    where = f"class {int(late['predicted_class'])}, which holds {percent(largest)} of the samples"
    if one >= COLLAPSED and recall <= RECALLED:
        text = (
            f"At the end {percent(one)} of the predictions are {where}; of the other classes' samples "
            f"{percent(recall)} are recognized."
        )
        return Finding(
            "class_collapse", (), one, COLLAPSED, "confusion matrix", text, int(found["late_step"]), False
        )
    # More of one class than there is, and no more right than by answering nothing else.
    if one > majority and recall < MISSED and right < majority + BEATS * (1 - majority) and not c.well:
        text = (
            f"At the end {percent(right)} of the answers are right, no more than by always answering the "
            f"largest class ({percent(majority)}); "
            f"{percent(one)} are {where}, and of the other classes' samples {percent(recall)} are recognized."
        )
        return Finding(
            "class_collapse",
            (),
            recall,
            MISSED,
            "accuracy against the largest class",
            text,
            int(found["late_step"]),
            False,
        )
    return None


def targets_far(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Outputs that have not even come to the targets' mean, because it is far away for steps of this size."""
    found, late = _targets(v), late_targets(v)
    first = found.get("first") or {}
    if found.get("kind") == "absolute":
        return _still_travelling(v, c, first, late)
    rms, mean, price = (number(found.get(name)) for name in ("rms", "mean", "price"))
    if rms is None or mean is None or price is None or not late:
        return None
    began, ended = number(first.get("output_mean")), number(late.get("output_mean"))
    if began is None or ended is None or not math.isfinite(ended):
        return None
    if rms < NEAR_ZERO and price > 0 and c.late > 3 * price:
        text = (
            f"The targets are tiny (RMS {sig3(rms)}): always answering their mean costs {sig3(price)}, and "
            f"the outputs are still {sig3(math.sqrt(c.late))} away."
        )
        return Finding(
            "targets_far", (), rms, NEAR_ZERO, "mean squared error against the targets' variance", text
        )
    if rms < FAR:
        return None
    if c.nonfinite or c.worsened or c.spiked:
        text = (
            f"The targets have an RMS of {sig3(rms)}: gradients of a squared error grow with it, and the "
            "first updates threw the network far off."
        )
        return Finding("targets_far", (), rms, FAR, "gradient of the squared error", text)
    if not c.late > 1.3 * price:
        return None
    steps, speed = v.steps_taken, abs(ended - began) / max(1, v.steps_taken)
    distance, left = abs(mean - began), math.sqrt(max(0.0, c.late - price))
    more = (
        ""
        if speed <= 0
        else f"; at this pace it takes {sig3(left / speed)} more steps"
        if left > 0.5 * distance
        else ""
    )
    text = (
        f"The targets have an RMS of {sig3(rms)}; after {steps} steps the outputs are still "
        f"{sig3(math.sqrt(c.late))} away, and always answering the mean would be {sig3(math.sqrt(price))} "
        f"away{more}."
    )
    return Finding("targets_far", (), rms, FAR, "mean squared error against the targets' variance", text)


def _still_travelling(v: RunSignals, c: Curve, first: Facts, late: Facts) -> Finding | None:
    side = number(late.get("one_sided")) or 0.0
    began, ended = number(first.get("output_mean")), number(late.get("output_mean"))
    if side < ONE_SIDE or began is None or ended is None or not c.late > FAR:
        return None
    speed = abs(ended - began) / max(1, v.steps_taken)
    more = f"; at this pace it takes {sig3(c.late / speed)} more steps" if speed > 0 else ""
    text = (
        f"After {v.steps_taken} steps {percent(side)} of the outputs lie on the same side of their targets, "
        f"{sig3(c.late)} away on average{more}."
    )
    return Finding("targets_far", (), side, ONE_SIDE, "sign of the error", text)


def outputs_loud(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Fresh outputs so large that the first loss is many times the price of guessing, though no recorded
    layer is loud.
    """
    first = _targets(v).get("first") or {}
    size = number(first.get("output_std"))
    if t.initial_loss is None or size is None or c.chance is None or c.guess.kind == "mean":
        return None
    if size < LOUD_OUTPUTS or not c.first > t.initial_loss * (c.guess.at_start or c.chance):
        return None
    last = float(v.rms[0, v.executed[-1]]) if len(v.executed) and len(v.rms) else math.nan
    if np.isfinite(last) and size < 3 * last:
        return None  # the last recorded layer is as loud: rules about layers speak of it
    text = (
        f"The first outputs have a standard deviation of {sig3(size)}, while the last recorded layer's is "
        f"{sig3(last)}: the weights behind it, such as a shared embedding, are too large."
    )
    return Finding(
        "outputs_loud",
        (),
        size,
        LOUD_OUTPUTS,
        "softmax of large outputs",
        text,
        int(v.rows.steps[0]) if len(v.rows.steps) else None,
    )
