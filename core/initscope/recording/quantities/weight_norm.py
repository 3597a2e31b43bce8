"""``weight_norm``: the L2 norm of a weight before the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from initscope.recording.quantities.of_weights import Weight, WeightQuantity
from initscope.recording.reductions import copy_norms, norms
from initscope.recording.tensors import alike


class WeightNorm(WeightQuantity):
    """``|w|``. The copy that ``UpdateRatio`` subtracts is made with the same look at the memory."""

    def before_update(self, weights: Sequence[Weight]) -> None:
        numbers = [weight.numbers for weight in weights]
        for weight, now in zip(weights, numbers, strict=True):
            if weight.before is None or not alike(weight.before, now):
                weight.before = torch.empty_like(now)
        for weight, length in zip(
            weights, copy_norms([w.before for w in weights if w.before is not None], numbers), strict=True
        ):
            weight.values = {"weight": length}

    def at_the_end(self, weights: Sequence[Weight], updated: bool) -> None:
        missing = [weight for weight in weights if "weight" not in weight.values and weight.readable]
        for weight, length in zip(missing, norms([w.numbers for w in missing]), strict=True):
            weight.values["weight"] = length

    def columns(self, values: dict[str, float], size: int) -> dict[str, float]:
        return {"weight_norm": values["weight"]} if "weight" in values else {}
