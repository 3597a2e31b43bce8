"""``activation_grad_rms``: what is left of the error on its way back, at a layer's output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from initscope.recording.calls import LayerCall
from initscope.recording.quantities.of_outputs import OutputQuantity


class ErrorSignal(OutputQuantity):
    """RMS of the loss gradient for the layer's output. Of a call that two backward passes reached, the
    gradient's sum is not known, and the row has none.
    """

    def columns(self, calls: Sequence[LayerCall], values: dict[Any, float]) -> dict[str, float]:
        """Over all ``calls`` of a layer in a step."""
        if any(len(call.gradients) != 1 for call in calls):
            return {}
        count = sum(call.count for call in calls)
        return {
            "activation_grad_rms": _length([float(call.gradients[0]) for call in calls]) / math.sqrt(count)
        }


def _length(parts: Sequence[float]) -> float:
    """The norm of a vector of whose parts the norms are known."""
    return parts[0] if len(parts) == 1 else math.sqrt(sum(part * part for part in parts))
