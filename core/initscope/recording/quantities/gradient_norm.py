"""``grad_norm`` and ``grad_rms``: the gradient of the loss for a weight, before clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from initscope.recording.quantities.of_weights import Weight, WeightQuantity
from initscope.recording.reductions import Number, norm, norms
from initscope.recording.tensors import dense, local


class GradientNorm(WeightQuantity):
    """``|g|`` and ``|g| / sqrt(n)`` of a weight of ``n`` numbers, without the factor of a ``GradScaler``.

    Read when the pass has ended, because only then it has been averaged over processes. A loop that frees
    gradients during the pass is found out in the first one; of such weights it is read on arrival.
    """

    def gradient_arrives(self, weight: Weight) -> None:
        if weight.freed is not False and weight.parameter.grad is not None:
            weight.on_arrival = norm(dense(local(weight.parameter.grad)))

    def gradients_ready(self, weights: Sequence[Weight]) -> None:
        there = [weight for weight in weights if weight.parameter.grad is not None]
        gradients = [weight.parameter.grad for weight in there]
        lengths = norms([dense(local(gradient)) for gradient in gradients if gradient is not None])
        for weight, length in zip(there, lengths, strict=True):
            weight.gradient, weight.freed = unscaled(length, weight.scale), False
        for weight in weights:
            if weight.parameter.grad is None and weight.on_arrival is not None:
                weight.gradient, weight.freed = unscaled(weight.on_arrival, weight.scale), True
            weight.on_arrival = None

    def after_update(self, weights: Sequence[Weight]) -> None:
        for weight in weights:
            if weight.gradient is not None:
                weight.values["gradient"] = weight.gradient

    def at_the_end(self, weights: Sequence[Weight], updated: bool) -> None:
        # Once an optimizer has stepped, a gradient that no optimizer saw is none of this step's.
        for weight in () if updated else weights:
            if weight.gradient is not None:
                weight.values.setdefault("gradient", weight.gradient)

    def columns(self, values: dict[str, float], size: int) -> dict[str, float]:
        if "gradient" not in values:
            return {}
        length = values["gradient"]
        return {"grad_norm": length, "grad_rms": length / math.sqrt(max(1, size))}


def unscaled(length: Number, scale: Tensor | None) -> Number:
    """A gradient's norm without the factor of the loss."""
    if scale is None:
        return length
    return length / scale.to(length.device) if isinstance(length, Tensor) else length / scale.item()
