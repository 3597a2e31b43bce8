"""Rules about the optimizer's settings as they were in force: weight decay, a learning rate that fell away,
clipping.
"""

from __future__ import annotations

import math

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding, start_of
from initscope.diagnosis.rules_targets import late_targets
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.store.files import number, optimizer_setting
from initscope.wording import percent, sig3

PULLS = 0.5
"""Weight decay that pulls at the weights with this share of the gradient, most of the time, decides where
they go.
"""
PENALTY = 0.3
"""Share of the first loss that a penalty makes up, from which it decides where the weights go."""
FELL = 0.01
"""A learning rate below this share of its highest has fallen away."""
CLIPPED = 0.3
"""A first step this much shorter than the gradient and the learning rate make it was clipped."""


def weight_decay(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    decay, pull = v.weight_decay, v.decay_pull
    if decay > 0 and pull >= PULLS:
        text = (
            f"The weight decay of {sig3(decay)} pulls at the weights {sig3(pull)} times as hard as the "
            "loss's gradient does; about 0.01 times is usual."
        )
        return Finding("weight_decay_strong", (), pull, PULLS, "decay times weight against gradient", text)
    first, late = (v.facts.get("targets") or {}).get("first") or {}, late_targets(v)
    begun, ended = number(first.get("penalty")), number(late.get("penalty"))
    if begun is None or ended is None or v.fact("targets", "scale") is not None or not c.first > 0:
        return None
    share = begun / c.first
    if share < PENALTY or share > 1 or ended < 0:  # no part is larger than the whole
        return None
    text = (
        f"{percent(share)} of the first loss ({sig3(begun)} of {sig3(c.first)}) is no error of the outputs: "
        "a penalty in the loss, such as on the weights' size."
    )
    return Finding("weight_decay_strong", (), share, PENALTY, "loss against the outputs' own", text)


def rate_fell(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """The learning rate fell to next to nothing well before the run's end, or never rose."""
    rate = v.learning_rate
    known = np.isfinite(rate)
    if known.sum() < 10 or not np.nanmax(rate) > 0:
        return None
    highest, steps = float(np.nanmax(rate)), v.loss_steps
    low = np.nan_to_num(rate, nan=highest) < FELL * highest
    if low[-1]:
        at = len(low) - int(np.argmin(low[::-1])) if not low.all() else 0
        if at < 0.75 * len(low):
            text = (
                f"The learning rate fell from {sig3(highest)} to {sig3(float(rate[-1]))}: below "
                f"{percent(FELL)} of its highest from step {int(steps[at])} of {v.steps_taken} on."
            )
            return Finding(
                "rate_fell",
                (),
                float(rate[-1]),
                FELL * highest,
                "the recorded schedule",
                text,
                int(steps[at]),
                False,
            )
    if low.mean() > 0.5 and low[: len(low) // 2].all():
        text = (
            f"The learning rate was still rising: {sig3(float(rate[0]))} at the first step, "
            f"{sig3(float(rate[-1]))} at the last of {v.steps_taken}."
        )
        return Finding(
            "rate_fell",
            (),
            float(rate[0]),
            FELL * highest,
            "the recorded schedule",
            text,
            int(steps[0]),
            True,
        )
    return None


def epsilon_large(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """Adam divides by the gradient's size plus epsilon; here epsilon is what counts."""
    epsilon, share = optimizer_setting(v.facts, "eps"), v.step_share
    size = np.nanmax(v.rows.first("grad_rms"), initial=0.0) if len(v.rows.steps) else 0.0
    if v.optimizer not in ("adam", "adamw") or not epsilon or not size > 0 or not share < CLIPPED:
        return None
    left = float(size / (size + epsilon))
    if not left < CLIPPED:
        return None
    text = (
        f"The optimizer's epsilon of {sig3(epsilon)} is {sig3(epsilon / size)} times a weight's gradient "
        f"(RMS {sig3(float(size))} in the layer where it is largest): of a step as long as the learning rate "
        f"{percent(share)} is left."
    )
    return Finding("epsilon_large", (), left, CLIPPED, "Kingma and Ba 2015", text, start_of(v))


def gradient_clipped(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """The first step was shorter than gradient and rate make it: between backward() and step() the gradient
    was made smaller.
    """
    share, norm = v.step_share, v.gradient_total
    if not (math.isfinite(share) and math.isfinite(norm)) or not 0 < share < CLIPPED or not norm > 0:
        return None
    if epsilon_large(v, c, t) is not None:
        return None
    if v.adaptive:
        text = (
            f"In no layer is the first update more than {percent(share)} of what the optimizer makes of a "
            f"gradient (norm {sig3(norm)}): either it was clipped or scaled to next to nothing, or few "
            "weights had one."
        )
    else:
        text = (
            f"Of the first gradient's norm, {sig3(norm)}, about {sig3(share * norm)} reached the optimizer: "
            "it was clipped or scaled between backward() and step()."
        )
    return Finding(
        "gradient_clipped",
        (),
        share,
        CLIPPED,
        "update against rate times gradient",
        text,
        int(v.rows.steps[0]),
    )
