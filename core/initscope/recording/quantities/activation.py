"""``activation_mean``, ``activation_std`` and ``signal_std``: what a layer's output says, by one look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from initscope.recording.calls import LayerCall
from initscope.recording.quantities.of_outputs import OutputQuantity
from initscope.recording.reductions import finalize


class Activation(OutputQuantity):
    """Mean and standard deviation over samples and units, and the spread across the samples of a call,
    root-mean-squared over units. ``reductions.forward_statistics`` takes them.
    """

    def columns(self, calls: Sequence[LayerCall], values: dict[Any, float]) -> dict[str, float]:
        """Over all ``calls`` of a layer in a step, each number of an output counting alike."""
        found = [_of_call(call) for call in calls]
        if len(found) == 1:
            return found[0]
        count = sum(call.count for call in calls)
        shares = [call.count / count for call in calls]
        mean = sum(share * one["activation_mean"] for share, one in zip(shares, found, strict=True))
        total = 0.0
        signal: float | None = 0.0
        for share, one in zip(shares, found, strict=True):
            off_mean, std, spread = (
                one["activation_mean"] - mean,
                one["activation_std"],
                one.get("signal_std"),
            )
            total += share * (std * std + off_mean * off_mean)
            signal = None if signal is None or spread is None else signal + share * (spread * spread)
        result = {"activation_mean": mean, "activation_std": math.sqrt(total)}
        return result if signal is None else {**result, "signal_std": math.sqrt(signal)}


def _of_call(call: LayerCall) -> dict[str, float]:
    """Of one call, whose ``values`` are plain numbers by now."""
    columns = finalize(cast("dict[Any, float]", call.values))
    if not call.batched:
        del columns["signal_std"]
    return columns
