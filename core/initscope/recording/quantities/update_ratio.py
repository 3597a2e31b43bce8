"""``update_ratio``: how far one optimizer step moves a weight, relative to its size."""

from __future__ import annotations

from collections.abc import Sequence

from initscope.recording.quantities.of_weights import Weight, WeightQuantity
from initscope.recording.reductions import change_norms, ratio


class UpdateRatio(WeightQuantity):
    """``|w_after - w_before| / |w_before|``; about 1e-3 is usual (Karpathy, CS231n notes, "Ratio of
    weights:updates"). Weight decay and momentum are in it: it is what the step did, not the learning rate
    times a gradient.
    """

    def after_update(self, weights: Sequence[Weight]) -> None:
        lengths = change_norms(
            [w.before for w in weights if w.before is not None], [weight.numbers for weight in weights]
        )
        for weight, moved in zip(weights, lengths, strict=True):
            weight.values["moved"] = moved

    def columns(self, values: dict[str, float], size: int) -> dict[str, float]:
        if "moved" not in values or "weight" not in values:
            return {}
        return {"update_ratio": ratio(values["moved"], values["weight"])}
