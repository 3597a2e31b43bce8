"""``update_ratio``: how far one optimizer step moves a weight, relative to its size."""

from __future__ import annotations

from collections.abc import Sequence

from initscope.recording.quantities.of_weights import Weight, WeightQuantity
from initscope.recording.reductions import change_norms, ratio
from initscope.recording.tensors import alike


class UpdateRatio(WeightQuantity):
    """``|w_after - w_before| / |w_before|``; about 1e-3 is usual (Karpathy, CS231n notes, "Ratio of
    weights:updates"). Weight decay and momentum are in it: it is what the step did, not the learning rate
    times a gradient. Of a weight that no optimizer holds it is what the loop did until the step was over:
    where the optimizer moves copies (in float32, of a model in float16) the loop writes them back.
    """

    def after_update(self, weights: Sequence[Weight]) -> None:
        _subtract([weight for weight in weights if weight.held])

    def at_the_end(self, weights: Sequence[Weight], updated: bool) -> None:
        if updated:
            _subtract([weight for weight in weights if not weight.held and "weight" in weight.values])

    def columns(self, values: dict[str, float], size: int) -> dict[str, float]:
        if "moved" not in values or "weight" not in values or ("unheard" in values and not values["moved"]):
            return {}
        return {"update_ratio": ratio(values["moved"], values["weight"])}


def _subtract(weights: Sequence[Weight]) -> None:
    pairs = [(w, w.before, w.numbers) for w in weights if w.before is not None]
    pairs = [(w, before, now) for w, before, now in pairs if alike(before, now)]
    lengths = change_norms([before for _, before, _ in pairs], [now for *_, now in pairs])
    for (weight, *_), moved in zip(pairs, lengths, strict=True):
        weight.values["moved"] = moved
