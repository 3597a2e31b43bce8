"""Rules about layers: the signal on its way forward, the gradient on its way back, dead and saturated units,
the size of updates.
"""

from __future__ import annotations

import numpy as np

from initscope.diagnosis.curve import Curve
from initscope.diagnosis.finding import Finding, moment, names_of, plural, since, source_of, start_of
from initscope.diagnosis.run_signals import RunSignals
from initscope.diagnosis.thresholds import Thresholds
from initscope.wording import percent, sig3

LOST_LATER = 0.1
"""A signal that was faint from the start has been lost in training only if it fell to less than this share of
its first value.
"""
NORM_ONLY = 0.01
"""Of a small update, the share by which the weight's norm changes at least."""
GROWN_LATER = 10.0
"""Trained networks answer louder than fresh ones: later growth counts from this many times the threshold."""

# ---------------------------------------------------------------- signals


def signal_collapse(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if t.signal_kept is None or not len(v.signal_retained):
        return None
    faint = v.signal_retained < t.signal_kept
    at = 0 if faint[0] else since(faint & ~(v.signal_retained >= LOST_LATER * v.signal_retained[0]))
    if at is None:
        return None
    hidden = np.isin(np.arange(len(v.rows.names)), v.hidden)
    names, kept = names_of(v, (v.kept_by_layer[at] < t.signal_kept) & hidden), float(v.signal_retained[at])
    text = (
        f"{moment(v, at)} {percent(kept)} of the input's signal is left at {v.called(names[-1])}: the output "
        "hardly depends on the input."
    )
    return Finding(
        "signal_collapse",
        names,
        kept,
        t.signal_kept,
        source_of("signal_kept", t),
        text,
        int(v.rows.steps[at]),
        at == 0,
    )


def signal_explosion(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if t.signal_grown is None or not v.grown_by_layer.size:
        return None
    grown = np.nan_to_num(v.grown_by_layer, nan=0.0, posinf=np.inf)
    at = 0 if (grown[0] > t.signal_grown).any() else since((grown > GROWN_LATER * t.signal_grown).any(1))
    if at is None:
        return None
    names, value = names_of(v, grown[at] > t.signal_grown), float(grown[at].max())
    raw = v.rows.values["activation_std"][at][np.isin(v.rows.names, names)]
    size = (
        f"reach {sig3(value)} times the size of the inputs"
        if np.isfinite(value)
        else "are not numbers"
        if np.isnan(raw).any()
        else "are infinite"
    )
    text = f"{moment(v, at)} pre-activations {size}, at {v.called(names[-1])}."
    return Finding(
        "signal_explosion",
        names,
        value,
        t.signal_grown,
        source_of("signal_grown", t),
        text,
        int(v.rows.steps[at]),
        at == 0,
    )


def vanishing_gradient(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    layers = v.executed
    if len(layers) < 3:
        return None
    norm, rms = v.rows.first("grad_norm")[layers], v.rows.first("grad_rms")[layers]
    first, last = v.rows.names[layers[0]], v.rows.names[layers[-1]]
    ratio = norm[0] / norm[-1] if norm[-1] > 0 else np.nan
    if (
        t.vanishing_ratio is not None
        and t.vanishing_norm is not None
        and ratio < t.vanishing_ratio
        and norm[0] < t.vanishing_norm
    ):
        names = tuple(v.rows.names[i] for i, n in zip(layers, norm, strict=True) if n < t.vanishing_norm)
        text = (
            f"The gradient at {v.called(first)} is {sig3(ratio)} of the one at {v.called(last)} "
            f"({sig3(norm[0])} against {sig3(norm[-1])})."
        )
        return Finding(
            "vanishing_gradient",
            names,
            float(ratio),
            t.vanishing_ratio,
            source_of("vanishing_ratio", t),
            text,
            start_of(v),
        )
    highest = float(np.nanmax(rms[:-1], initial=0.0))
    if t.vanishing_rms is not None and highest < t.vanishing_rms and not np.isnan(rms[:-1]).all():
        text = f"No hidden layer's gradient is above {sig3(highest)} a weight."
        names = tuple(v.rows.names[i] for i in v.hidden)
        return Finding(
            "vanishing_gradient",
            names,
            highest,
            t.vanishing_rms,
            source_of("vanishing_rms", t),
            text,
            start_of(v),
        )
    return None


def exploding_gradient(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    layers = v.executed
    if not len(layers) or not len(v.rows.steps):
        return None
    norm, broken = v.rows.values["grad_norm"][:, layers], v.rows.values["nonfinite"][:, layers] > 0
    norm = np.nan_to_num(np.where(np.isnan(norm) & broken, np.inf, norm), nan=0.0, posinf=np.inf)
    if t.exploding_norm is not None:
        at = since(np.any(norm > t.exploding_norm, axis=1))
        if at is not None:
            names, value = (
                tuple(v.rows.names[i] for i in layers[norm[at] > t.exploding_norm]),
                float(norm[at].max()),
            )
            nan = np.isnan(v.rows.values["grad_norm"][at, layers][norm[at] > t.exploding_norm]).any()
            size = (
                "is not a number" if nan else "is infinite" if np.isinf(value) else f"reaches {sig3(value)}"
            )
            text = f"{moment(v, at)} the gradient {size} at {plural(v, names)}."
            return Finding(
                "exploding_gradient",
                names,
                value,
                t.exploding_norm,
                source_of("exploding_norm", t),
                text,
                int(v.rows.steps[at]),
                at == 0,
            )
    first, last = norm[0, 0], norm[0, -1]
    if t.exploding_ratio is not None and 0 < last < np.inf and first / last > t.exploding_ratio:
        name, ratio = v.rows.names[layers[0]], float(first / last)
        end = v.called(v.rows.names[layers[-1]])
        text = f"The gradient at {v.called(name)} is {sig3(ratio)} times the one at {end}."
        return Finding(
            "exploding_gradient",
            (name,),
            ratio,
            t.exploding_ratio,
            source_of("exploding_ratio", t),
            text,
            start_of(v),
        )
    return None


# ---------------------------------------------------------------- units


def dead_units(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if t.dead_share is None or not v.dead.size:
        return None
    dead = np.nan_to_num(v.dead, nan=0.0)
    at = since((dead >= t.dead_share).any(1))
    if at is None:
        return None
    names, value = names_of(v, dead[at] >= t.dead_share), float(dead[at].max())
    text = (
        f"{moment(v, at)} {percent(value)} of the rectified units after {plural(v, names)} are off for the "
        "whole batch: no gradient passes them."
    )
    return Finding(
        "dead_units",
        names,
        value,
        t.dead_share,
        source_of("dead_share", t),
        text,
        int(v.rows.steps[at]),
        at == 0,
    )


def saturated_units(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if t.saturated_share is None or t.saturated_input is None or not len(v.rows.steps):
        return None
    share = np.nan_to_num(v.saturated(t.saturated_input), nan=0.0)
    at = since((share >= t.saturated_share).any(1))
    if at is None:
        return None
    names, value = names_of(v, share[at] >= t.saturated_share), float(share[at].max())
    text = (
        f"{moment(v, at)} about {percent(value)} of the units after {plural(v, names)} sit where their "
        "nonlinearity is flat: little gradient passes."
    )
    return Finding(
        "saturated_units",
        names,
        value,
        t.saturated_share,
        source_of("saturated_share", t),
        text,
        int(v.rows.steps[at]),
        at == 0,
    )


# ---------------------------------------------------------------- updates


def update_too_large(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if t.update_high is None or np.isnan(v.update_total).all():
        return None
    total = np.nan_to_num(v.update_total, nan=0.0, posinf=np.inf)
    value, at = float(total.max()), int(total.argmax())
    if value <= t.update_high:
        return None
    text = (
        f"At step {int(v.rows.steps[at])} one update changes the weights by {sig3(value)} of their size; "
        "about 0.001 is usual."
    )
    return Finding(
        "update_too_large",
        (),
        value,
        t.update_high,
        source_of("update_high", t),
        text,
        int(v.rows.steps[at]),
        at == 0,
    )


def update_too_small(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    if t.update_low is None:
        return None
    limit = t.update_low * (1.0 if v.updates_measured else NORM_ONLY)
    if not v.update_fastest < limit or v.frozen_mask.all():
        return None
    text = (
        f"Even the fastest layer usually changes by {sig3(v.update_fastest)} of its size a step; about "
        "0.001 is usual."
    )
    return Finding("update_too_small", (), v.update_fastest, limit, source_of("update_low", t), text)


def weights_shrunk(v: RunSignals, c: Curve, t: Thresholds) -> Finding | None:
    length = v.rows.values["weight_norm"]
    begun = v.rows.first("weight_norm") > 0
    if t.shrunk is None or len(length) < 2 or not begun.any():
        return None
    left = length[-1, begun] / length[0, begun]
    value = float(np.median(left))
    if not value < t.shrunk:
        return None
    names = tuple(name for name, share in zip(names_of(v, begun), left, strict=True) if share < t.shrunk)
    text = (
        f"The weights have shrunk to {percent(value)} of their initial size: weight decay pulls harder than "
        "the loss does."
    )
    return Finding(
        "weights_shrunk", names, value, t.shrunk, source_of("shrunk", t), text, int(v.rows.steps[-1]), False
    )
