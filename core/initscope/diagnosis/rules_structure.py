"""Rules about how the network is put together and run: who holds its weights, who clears its gradients, what
its modes and samples do to each other, and which number was the first that is none. Most of it was seen
directly (``initscope.recording.inspection``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding, names_of, plural, start_of
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.wording import percent, sig3

LEAST_UNHELD = 0.1
"""Of the weights that run, a share that must be missing to matter."""
MIXED = 1e-2
"""A sample's output moves by this share of the changed sample's: more than rounding can do."""
APART, DISAGREE, LAG_DISAGREE = 0.5, 0.8, 0.95
"""Outputs in the two modes further apart than this share of their spread, and fewer samples than this with
the same answer; the last where the averages cannot have caught up anyway.
"""
LOOKS = 3
"""Looks at the two modes that are averaged."""
SETTLED_GAP = 16
"""Steps before which running averages cannot have caught up."""
CAUGHT_UP = 3.0
"""Momentum times steps after which a running average has forgotten all but 5 % of its first value."""
HIGH_DROPOUT = 0.9
STRAIGHT = 1e-4
"""Share of the outputs' spread by which rounding bends a linear network."""
SEEN = "seen directly"
"""The source of a finding that compares with no number."""

# ---------------------------------------------------------------- who holds the weights, who clears the
# gradients


def gradients_kept(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if v.facts.get("gradients_kept") is not True:
        return None
    text = (
        "When a backward pass begins after an update, .grad still holds the gradient of the steps before: "
        "it is never cleared, so every "
        "update repeats all earlier gradients."
    )
    return Finding("gradients_kept", (), None, None, SEEN, text, start_of(v))


def layers_unregistered(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    found = v.facts.get("unregistered") or {}
    share = found.get("share") or 0.0
    if share < LEAST_UNHELD:
        return None
    names = tuple(found.get("names") or ())
    more = f" and {found['count'] - len(names)} more" if found.get("count", 0) > len(names) else ""
    why = (
        "they are new tensors in every forward pass, so nothing that is learned stays"
        if found.get("anew", 0) >= found.get("count", 1)
        else "no parameters() and no optimizer holds them, so they keep their first values"
    )
    text = (
        f"{percent(share)} of the weights that the loss depends on are not trained "
        f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}{more}): {why}."
    )
    return Finding("layers_unregistered", names, share, LEAST_UNHELD, SEEN, text, start_of(v))


def layers_not_optimized(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Some layers, not all, get gradients and are in no optimizer."""
    unheld = set(v.facts.get("unoptimized") or ()) - set(v.facts.get("frozen") or ())
    gradient = v.rows.values["grad_norm"]
    mask = (
        v.frozen_mask & np.isin(v.rows.names, sorted(unheld)) & (np.nan_to_num(gradient, nan=0.0) > 0).any(0)
    )
    if not mask.any() or mask.all():
        return None
    share = float(v.weight_counts[mask].sum() / v.weight_counts.sum())
    if share < LEAST_UNHELD:
        return None
    names = names_of(v, mask)
    text = (
        f"{plural(v, names)} get gradients and never move ({percent(share)} of the weights): the optimizer "
        "does not hold them."
    )
    return Finding("layers_not_optimized", names, share, LEAST_UNHELD, SEEN, text, start_of(v))


# ---------------------------------------------------------------- what samples and modes do to each other


def samples_mixed(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    leak = v.fact("mixing", "leak")
    if leak is None or leak <= MIXED:
        return None
    text = (
        "When one sample of a batch is replaced by another, the outputs of other samples change, by up to "
        f"{percent(leak)} of the largest change: "
        "a layer takes the batch for another dimension."
    )
    return Finding("samples_mixed", (), leak, MIXED, SEEN, text, start_of(v))


def modes_disagree(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Batch normalization's running averages do not stand for the batches: at the last look, and not only
    early.
    """
    gap = last_gap(v)
    if gap is None or not apart(v) or gap["step"] < SETTLED_GAP:
        return None
    agreement = agreement_lately(v)
    same = "" if agreement is None else f", and {percent(agreement)} of the samples get the same answer"
    if averages_lag(v):
        same += (
            f"; with momentum {sig3(gap['momentum'])} the averages need about "
            f"{CAUGHT_UP / gap['momentum']:.0f} steps"
            if gap["momentum"]
            else "; momentum is 0"
        )
    when = "At the end of an epoch, after step" if gap.get("epoch") else "At step"
    text = (
        f"{when} {gap['step']}, a training batch's outputs with batch normalization's running averages "
        "differ from those with the batch's own "
        f"statistics by {sig3(gap['distance'])} of their spread{same}: evaluation mode answers otherwise "
        "than training mode."
    )
    return Finding("modes_disagree", (), float(gap["distance"]), APART, SEEN, text, int(gap["step"]), False)


def last_gap(v: RunSignals) -> Mapping[str, Any] | None:
    """The newest comparison of the two modes; None if there was none."""
    gaps = mode_gaps(v)
    return gaps[-1] if gaps else None


def mode_gaps(v: RunSignals) -> Sequence[Mapping[str, Any]]:
    """Comparisons of the two modes: those at the ends of epochs if there are any, since a validation used the
    averages as they were then; else those at steps in between.
    """
    gaps = v.facts.get("mode_gap") or ()
    return [gap for gap in gaps if gap.get("epoch")] or gaps


def averages_lag(v: RunSignals) -> bool:
    """Whether the running averages cannot have caught up in this run: momentum times steps is below
    ``CAUGHT_UP``.
    """
    gap = last_gap(v)
    momentum = None if gap is None else gap.get("momentum")
    return momentum is not None and momentum * v.steps_taken < CAUGHT_UP


def apart(v: RunSignals) -> bool:
    """Whether the two modes answered differently at the last looks (the mean of three: a look sees one
    batch).
    """
    gaps = mode_gaps(v)[-LOOKS:]
    if not gaps or gaps[-1].get("distance") is None or not gaps[-1]["distance"] > APART:
        return False
    agreement = agreement_lately(v)
    return agreement is None or agreement < (LAG_DISAGREE if averages_lag(v) else DISAGREE)


def agreement_lately(v: RunSignals) -> float | None:
    """Mean share of samples with the same answer in both modes, over the last looks; None for a single
    output.
    """
    known = [gap["agreement"] for gap in mode_gaps(v)[-LOOKS:] if gap.get("agreement") is not None]
    return sum(known) / len(known) if known else None


def network_linear(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Several layers that together are a linear function of the input, as one alone would be."""
    bent, layers = v.fact("bend"), int((~np.isnan(v.gains[v.executed])).sum())
    if bent is None or not bent < STRAIGHT or layers < 2:
        return None
    text = (
        f"The {layers} layers together are a linear function of the input (the output for the mean of two "
        f"samples is the mean of their outputs, up to {sig3(bent)} of the spread): no nonlinear activation "
        "stands between them, and what is not linear in the input cannot be learned."
    )
    return Finding("network_linear", (), bent, STRAIGHT, SEEN, text, start_of(v))


def dropout_high(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    rate = v.fact("dropout", "largest")
    if rate is None or rate < HIGH_DROPOUT:
        return None
    where = (v.facts.get("dropout") or {}).get("where")
    text = (
        f"Dropout at {where} sets {percent(rate)} of the units to zero: a step trains the few that are "
        "left; 0.1 to 0.5 is usual."
    )
    return Finding(
        "dropout_high",
        (where,) if where else (),
        rate,
        HIGH_DROPOUT,
        "Srivastava et al. 2014",
        text,
        start_of(v),
    )


# ---------------------------------------------------------------- the first number that is none


def first_nonfinite(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    found = v.nonfinite_origin
    if found is None:
        return None
    step, where = int(found["step"]), tuple(found.get("where") or ())
    kind = "NaN" if found.get("nan") else "an infinite number"
    text = f"At step {step} {kind} appears first in {_place(found, where)}{_before(found)}."
    return Finding("first_nonfinite", where, None, None, "IEEE 754", text, step, step == start_of(v))


def _place(found: Mapping[str, Any], where: tuple[str, ...]) -> str:
    what, names = found["what"], ", ".join(where[:3]) + (", ..." if len(where) > 3 else "")
    if what == "input":
        return "the inputs"
    if what == "loss":
        return "the loss"
    if what == "update":
        return f"{names or 'the weights'} as the optimizer's step left it"
    return f"the {what} of {names}" + (", before its update" if what == "weight" else "")


def _before(found: Mapping[str, Any]) -> str:
    """What was finite until then, and what is known of the number type."""
    sizes = [
        f"{name} {sig3(value)}"
        for name, value in (found.get("from") or {}).items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    said = ""
    if found["what"] == "gradient":
        said = (
            "; the outputs and the loss of this step are finite, so a function's slope is not (a root or a "
            "logarithm at zero, a division by zero)"
        )
    elif found["what"] == "loss":
        said = "; the network's outputs are finite"
    elif found["what"] == "update":
        said = "; its gradient is finite"
        if found.get("epsilon") == 0:
            said += f", and {found.get('optimizer')}'s epsilon is zero in {found.get('type')}"
    elif found["what"] == "output":
        said = "; inputs and weights are finite"
    if found.get("type") == "float16" and found["what"] in ("output", "gradient"):
        said += "; float16 ends at 65504"
    return said + (f" (before: {', '.join(sizes)})" if sizes else "")
