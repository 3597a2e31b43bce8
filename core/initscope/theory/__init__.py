"""What mean-field theory predicts for every layer, before a single tensor of the network is touched.

From the variances of the initialization, exact fans and a handful of numbers about the batch: how large the
pre-activations are, how much of the input is left in them, and how large the gradients will be. The recursion
is that of Poole et al. 2016 and Schoenholz et al. 2017 (variance and correlation), for ReLU with the
arc-cosine kernel of Cho and Saul 2009, for convolutions as in Xiao et al. 2018; its special cases without
biases are Glorot and Bengio 2010 and He et al. 2015. Zero padding, max pooling, the number of samples and
their labels are accounted for. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from initscope.theory import kernels
from initscope.theory.default_input import typical_stats
from initscope.theory.fields import Field, InputStats, input_stats
from initscope.theory.layers import Activation, Gradient, Layer, Pool, Weighted
from initscope.theory.networks import (
    TheoryUnavailable,
    bias_std,
    has_formula,
    module_layers,
    vgg_layers,
    weight_std,
)

__all__ = [
    "METRICS",
    "InputStats",
    "TheoryUnavailable",
    "bias_std",
    "has_formula",
    "input_stats",
    "module_layers",
    "predict",
    "typical_stats",
    "vgg_layers",
    "weight_std",
]

METRICS = ("activation_rms", "signal_std", "correlation", "activation_grad_rms", "grad_rms")
"""The five quantities a layer, in the order of the signal's way there and the error's way back:

- ``activation_rms``: root mean square of the layer's pre-activations over samples and units.
- ``signal_std``: standard deviation of a unit across the samples of the batch (divided by the batch size, not
  one less), root-mean-squared over units.
- ``correlation``: mean cosine between the pre-activation vectors (all units and pixels, not centred) of two
  samples.
- ``activation_grad_rms``: root mean square of the gradient of the mean cross-entropy for the pre-activations.
- ``grad_rms``: root mean square of the gradient of the mean cross-entropy for the layer's weight.
"""


def predict(layers: Sequence[Layer], stats: InputStats) -> list[dict[str, float | str | int | None]]:
    """One row a convolution or linear layer, in order: ``layer``, ``depth`` (0 = nearest the input),
    ``kind``, ``fan_in``, ``weight_rms`` (root mean square of the weight) and METRICS.

    The last weighted layer's outputs are taken as the logits of a softmax cross-entropy over its units.
    ``signal_std`` and ``correlation`` are None for a batch of one.
    """
    layers = _pool_first(layers)
    fields = [stats.field()]
    for layer in layers:
        fields.append(layer.forward(fields[-1], stats))
    grads = _error(fields[-1], _classes(layers), stats)
    rows = []
    for layer, inputs, outputs in reversed(list(zip(layers, fields[:-1], fields[1:], strict=True))):
        if isinstance(layer, Weighted):
            square = layer.weight_grad_square(grads, inputs, stats)
            row = {
                "layer": layer.name,
                "kind": layer.kind,
                "fan_in": layer.fan_in,
                "weight_rms": layer.weight_std,
            }
            rows.append(row | _row(outputs, grads, square, stats))
        grads = layer.backward(grads, inputs, stats)
    return [{"layer": row.pop("layer"), "depth": depth, **row} for depth, row in enumerate(reversed(rows))]


def _pool_first(layers: Sequence[Layer]) -> list[Layer]:
    """Max pooling before the activation: the same for an increasing function, and the maximum is then of
    Gaussians.
    """
    result = list(layers)
    for i in range(len(result) - 1):
        if isinstance(result[i], Activation) and isinstance(result[i + 1], Pool) and result[i + 1].maximum:
            result[i], result[i + 1] = result[i + 1], result[i]
    return result


def _classes(layers: Sequence[Layer]) -> int:
    last = next(layer for layer in reversed(layers) if isinstance(layer, Weighted))
    return last.fan_out // math.prod(last.kernel)


def _error(logits: Field, classes: int, stats: InputStats) -> Gradient:
    """Covariance of (softmax - one-hot) / batch within and between samples; labels independent of the logits.

    E |p - y|^2 = E sum p^2 - 2 / classes + 1 within a sample; between two, E sum p p' - 2 / classes + P(same
    class).
    """
    within, between = kernels.softmax_overlap(logits.square, float(logits.apart[0, 0]), classes)
    squares = np.array([within + 1, between + stats.same_label]) - 2 / classes
    return Gradient((squares / classes / stats.batch**2).reshape(2, 1, 1))


def _row(
    outputs: Field, grads: Gradient, weight_grad_square: float, stats: InputStats
) -> dict[str, float | None]:
    apart = max(float(outputs.apart[0, 0]), 0.0)
    several = stats.batch > 1
    return {
        "activation_rms": math.sqrt(outputs.square),
        "signal_std": math.sqrt(apart * (1 - 1 / stats.batch)) if several else None,
        "correlation": float(_cosine(outputs, apart, stats)) if several and outputs.square > 0 else None,
        "activation_grad_rms": math.sqrt(max(float(grads.table[0, 0, 0]), 0.0)),
        "grad_rms": math.sqrt(weight_grad_square),
    }


def _cosine(outputs: Field, apart: float, stats: InputStats) -> float:
    """(q - apart) / sqrt(q1 q2), with the lengths of whole vectors: ``Field.unequal`` is that of what one
    unit sees.
    """
    local = stats.unequal_at(outputs.scale)
    unequal = outputs.unequal * stats.unequal[-1] / local if local > 0 else 0.0
    return 1 - max(apart / outputs.square - unequal, 0.0) / (1 - unequal)
