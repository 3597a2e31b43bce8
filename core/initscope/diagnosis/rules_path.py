"""Rules about what stands between: between two layers, where a signal ends at once, and between the optimizer
and the weights, where a step is taken back.
"""

from __future__ import annotations

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding, start_of
from initscope.diagnosis.run_signals import USUAL_GAIN, RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.wording import percent, sig3

NOTHING = 1e-5
"""Of the input's signal, a share that rounding leaves where there is none."""
ARRIVES = 0.1
"""Of the input's signal, the share that must have come as far as the layer before."""
CLEAR_UPDATE = 3e-3
"""Smaller updates change a weight's norm by what float32 rounds away."""
STANDS_STILL = 0.1
"""Of half the squared update, which any step adds to a norm that it does not shorten on purpose, the share
below which the norm has stood still.
"""
LEAST_PAIRS = 10
BETWEEN = 3.0
"""A layer's outputs are so many times what its weights make of the largest outputs before it."""


def signal_cut(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """From one layer to the next nothing is left of a signal, up to the output, before any update: neither
    the size of the weights nor rectified or saturated units can do that at once.
    """
    kept, order = v.kept_by_layer, v.executed
    if t.signal_kept is None or not len(kept) or len(order) < 2 or (v.batch_size or 1) < 2:
        return None
    left = kept[0, order]
    gone = np.flatnonzero(~(left < NOTHING))  # NaN: not known
    at = int(gone[-1]) + 1 if len(gone) else 0
    if at >= len(order):
        return None
    layer, before = order[at], order[at - 1] if at else None
    came = left[at - 1] if at else 1.0 if v.input_signal > 0 else 0.0
    gain = v.gains[layer]
    weights_fine = np.isnan(gain) or gain > USUAL_GAIN[0]
    if not came >= ARRIVES or not weights_fine or not v.rows.first("weight_norm")[layer] > 0:
        return None
    if before is not None and _off(v, t, before):
        return None
    where = v.called(v.rows.names[layer])
    since = v.called(v.rows.names[before]) if before is not None else "the input"
    text = (
        f"Before any update nothing of the signal arrives at the output of {where}, while {percent(came)} of "
        f"it was there after {since}: what is done in between gives every sample the same (a normalization "
        "over a single value, a mask the wrong way round, a recurrence that has read only padding since)."
    )
    source = "standard deviation across samples over RMS"
    return Finding("signal_cut", (v.rows.names[layer],), float(left[at]), NOTHING, source, text, start_of(v))


def loud_between(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """The first layer with huge pre-activations has weights of a usual size and is given more than any layer
    before it has made: it is not the weights that are loud.
    """
    if t.signal_grown is None or not v.grown_by_layer.size:
        return None
    order, sizes = v.executed, v.rms[0, v.executed]
    loud = np.flatnonzero(np.nan_to_num(v.grown_by_layer[0, order], nan=0.0) > t.signal_grown)
    if not len(loud) or not loud[0]:
        return None
    at = int(loud[0])
    gain, before = v.gains[order[at]], np.nanmax(np.append(sizes[:at], np.nan_to_num(v.input_rms)))
    if not (np.isfinite(sizes[at]) and sizes[at] > BETWEEN * gain * before):  # an unknown gain is no evidence
        return None
    where = v.called(v.rows.names[order[at]])
    text = (
        f"Before any update the outputs of {where} are {sig3(float(sizes[at]))} in size, with weights of "
        f"gain {sig3(float(gain))}, and no layer before it makes more than {sig3(float(before))}: what is "
        "done in between makes it larger, such as a sum over many positions where a mean was meant."
    )
    times = float(sizes[at] / (gain * before))
    return Finding("loud_between", (v.rows.names[order[at]],), times, BETWEEN, "gain", text, start_of(v))


def _off(v: RunSignals, t: Thresholds, layer: int) -> bool:
    """Whether the units after the layer are off or saturated at the first step, which cuts a signal too."""
    dead = np.nan_to_num(v.dead[0, layer], nan=0.0) >= (t.dead_share or np.inf)
    share = v.saturated(t.saturated_input or np.inf)[0, layer]
    return bool(dead or np.nan_to_num(share, nan=0.0) >= (t.saturated_share or np.inf))


def updates_undone(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    """The optimizer's steps are measured, and the weights' norms are still what they were before: something
    else writes the weights back.

    A step of relative length r changes a norm by r cos + r^2 / 2. Weights that somebody keeps at one length
    on purpose look the same, so this accuses nobody.
    """
    ratio, length, steps = v.rows.values["update_ratio"], v.rows.values["weight_norm"], v.rows.steps
    if len(steps) <= LEAST_PAIRS or not v.updates_measured or c.learning:
        return None
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        change = np.abs(np.diff(length, axis=0)) / length[:-1]
        share = np.where(ratio[:-1] >= CLEAR_UPDATE, change / (ratio[:-1] ** 2 / 2), np.nan)
    known = share[np.isfinite(share)]
    if len(known) < LEAST_PAIRS or not np.median(known) < STANDS_STILL:
        return None
    usual = float(np.nanmedian(ratio[:-1][np.isfinite(share)]))
    text = (
        f"The optimizer's steps change weights by {sig3(usual)} of their size, and before the next step they "
        "have the size they had: something puts them back (averaged weights copied into the model, "
        "load_state_dict in the loop), or keeps them at one length on purpose."
    )
    return Finding(
        "updates_undone", (), float(np.median(known)), STANDS_STILL, "length of a vector after a step", text
    )
