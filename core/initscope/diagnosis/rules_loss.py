"""Rules about the loss itself: not finite, at the price of guessing, not falling, jumping, wrong from the
first step.
"""

from __future__ import annotations

import math

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding, source_of, start_of
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.wording import percent, sig3

ROUNDING = 1e-5
"""A loss, and a gradient as a share of its weight, below this are sums of rounding errors."""
GONE_FAR = 0.1
"""Layers that have changed by this much (sum of update ratios) and a loss that hardly has."""


def loss_nonfinite(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if c.nonfinite_step is None:
        return None
    began = f" (it began at {sig3(c.first)})" if math.isfinite(c.first) else ""
    text = f"The loss is not finite from step {c.nonfinite_step} on{began}."
    return Finding(
        "loss_nonfinite",
        (),
        float(c.nonfinite_step),
        None,
        "IEEE 754",
        text,
        c.nonfinite_step,
        c.nonfinite_step == start_of(v),
    )


def loss_zero(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """A loss of nothing but rounding, with gradients of the same kind."""
    finite = v.loss[np.isfinite(v.loss)]
    if len(finite) < 10 or c.nonfinite or c.chance is not None:
        return None
    size = float(np.quantile(np.abs(finite), 0.9))
    if not (size < ROUNDING and v.grad_to_weight_ratio < ROUNDING):
        return None
    text = (
        f"The loss is zero up to rounding from the first step on (below {sig3(size)}), and so are the "
        "gradients: its parts cancel out, and there is nothing in it to learn from."
    )
    return Finding("loss_zero", (), size, ROUNDING, "precision of float32", text, start_of(v))


def loss_plateau_at_chance(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if c.chance is None or not c.at_chance or c.guess.kind == "mean":
        return None
    what = (
        "its scale at the start"
        if c.guess.scaled
        else f"guessing among {c.guess.classes} classes"
        if c.guess.classes
        else "guessing yes or no"
    )
    text = f"After {c.steps} steps the loss is {sig3(c.late)}; {what} costs {sig3(c.chance)}."
    if c.falling and v.total_relative_update >= GONE_FAR:
        text += " It creeps down from there, as it does where labels are learned by heart: validate to tell."
    elif v.total_relative_update >= GONE_FAR:
        text += (
            " The layers have moved and found nothing: either the labels have nothing to do with the inputs, "
            "or what they depend on does not get through the network. A network that cannot learn one small "
            "batch by heart is at fault itself."
        )
    return Finding(
        "loss_plateau_at_chance", (), c.late, c.chance * (1 - c.min_progress), source_of("progress", t), text
    )


def loss_not_decreasing(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.stuck or (c.at_chance and c.guess.kind != "mean"):
        return None
    base = {"classes": "guessing", "binary": "guessing", "mean": "always answering the targets' mean"}.get(
        c.guess.kind, "its beginning"
    )
    text = (
        f"The loss is {'above' if c.above_chance else 'no lower than'} that of {base}: {sig3(c.late)} over "
        f"the last steps against {sig3(c.reference)}."
    )
    return Finding("loss_not_decreasing", (), c.progress, c.min_progress, source_of("progress", t), text)


def loss_oscillates(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    # A loss that is above guessing all the time does not jump.
    if t.oscillation is None or c.count < 10 or not t.oscillation <= c.above_share <= 0.95 or c.nonfinite:
        return None
    text = (
        f"In the second half of the run {percent(c.above_share)} of the losses lie well above both the "
        "first and guessing's: the loss jumps."
    )
    return Finding("loss_oscillates", (), c.above_share, t.oscillation, source_of("oscillation", t), text)


def loss_spike(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if not c.spiked:
        return None
    base = max(c.first, c.reference)
    later = np.where(np.isfinite(v.loss[1:]), v.loss[1:], -np.inf)
    step = int(v.loss_steps[1:][later.argmax()])
    text = f"The loss rose to {sig3(c.highest)} at step {step}, from {sig3(c.first)} at the start."
    return Finding("loss_spike", (), c.highest / base, t.spike, source_of("spike", t), text, step, False)


def initial_loss_off(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    price = c.guess.at_start
    if (
        t.initial_loss is None
        or price is None
        or c.guess.kind == "mean"
        or not c.first > t.initial_loss * price
    ):
        return None
    ratio = c.first / price
    text = (
        f"The first loss is {sig3(c.first)}, {sig3(ratio)} times that of guessing ({sig3(price)}): "
        "confident and wrong before any step."
    )
    return Finding(
        "initial_loss_off", (), ratio, t.initial_loss, source_of("initial_loss", t), text, start_of(v)
    )
