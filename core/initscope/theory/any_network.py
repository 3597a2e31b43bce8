"""What theory expects of a network that is no chain: the moments over its graph (``initscope.moments``), with
the cross-entropy's gradient at its logits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from initscope import moments
from initscope.errors import TheoryUnavailable
from initscope.moments.field import UNKNOWN, Field
from initscope.networks.outputs import AUXILIARY_WEIGHT, answers
from initscope.theory import METRICS, kernels

_FORWARD = ("activation_rms", "signal_std", "correlation")
Rows = dict[str, dict[str, Any]]


def predict(model: nn.Module, inputs: Tensor, labels: Tensor, why_no_chain: str) -> tuple[Rows, str | None]:
    """(by layer METRICS, ``made`` and ``band``; what is to be said about them), in train mode.

    A number that came through an operation which nobody could follow is None and not a guess; so are the
    values of a layer that runs several times, of which a probe measures the first run and moments are the
    mean.
    """
    same = same_label(labels)
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        found = moments.predict(
            model,
            inputs,
            output_grad=lambda number, field: cross_entropy_gradient(field, same).scaled(
                AUXILIARY_WEIGHT**2 if number else 1.0
            ),
            outputs=answers,
        )
    # The network's own code runs, and whatever an operation that nobody foresaw does to a rule: said, not
    # hidden.
    except Exception as error:
        return {}, f"{why_no_chain}; its graph could not be followed ({type(error).__name__}: {error})"
    finally:
        for module, mode in modes:
            module.training = mode
    said = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("run on Gaussian numbers for want of a rule", found.sampled),
            ("cannot be followed, and what comes through them is not predicted", found.unknown),
        )
        if names
    ]
    return {row.layer: _row(row) for row in found.layers}, "; ".join(said) or None


def _row(layer: moments.Layer) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in METRICS:
        how = layer.made if metric in _FORWARD else layer.made_back
        value = getattr(layer, metric)
        once = layer.uses == 1 or metric == "grad_rms"
        known = value is not None and math.isfinite(value) and how != UNKNOWN and once
        row[metric] = value if known else None
    return {**row, "made": layer.made_back, "band": layer.band}


def same_label(labels: Tensor) -> float:
    """Share of pairs of different samples that have the same label."""
    n = len(labels)
    counts = labels.flatten().bincount().double()
    return float((counts * (counts - 1)).sum()) / (n * (n - 1)) if n > 1 else 0.0


def cross_entropy_gradient(outputs: Field, same: float) -> Field:
    """Moments of (softmax(outputs) - one-hot) / batch for Gaussian logits (batch, classes), labels
    independent of them.

    Within a sample E |p - y|^2 = E sum p^2 - 2 / classes + 1; between two E sum p p' - 2 / classes + ``same``
    (P(same label)); a sample's entries sum to zero, so two classes have the covariance -1 / (classes - 1).
    """
    if len(outputs.axes) != 2:
        raise TheoryUnavailable(f"logits are (samples, classes), not {len(outputs.axes)}-dimensional")
    classes, batch = max(math.prod(a.size for a in outputs.axes[1]), 1), max(outputs.samples, 1)
    variance = max(outputs.square - max(outputs.cross, 0.0), 0.0) if classes > 1 else outputs.square
    apart = min(max(float(outputs.apart[0]), 0.0), variance)
    own, other = kernels.softmax_overlap(variance, apart, classes)
    scale = classes * batch**2
    square = max(own + 1 - 2 / classes, 0.0) / scale
    between = (other + same - 2 / classes) / scale
    return Field(
        outputs.axes,
        np.full_like(outputs.within, square),
        np.full_like(outputs.within, square - between),
        0.0,
        -square / (classes - 1) if classes > 1 else square,
    )
