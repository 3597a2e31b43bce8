"""``dead_fraction``: rectified units that output zero for every sample of the batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from initscope.recording.calls import LayerCall
from initscope.recording.quantities.of_outputs import OutputQuantity
from initscope.recording.reductions import Number, on_cpu


class DeadUnits(OutputQuantity):
    """Share of the units behind a layer's rectifier that are off in all calls of a step; of calls that differ
    in shape each counts by itself.
    """

    def at_the_end(self, calls: Sequence[LayerCall]) -> dict[Any, Number]:
        """How many units are off, in parts, and out of how many. The masks are as large as an output's units:
        they do not wait with the numbers.
        """
        off = [call.off for call in calls if call.off is not None]
        for call in calls:
            call.off = call.below = None
        if len(off) > 1 and all(mask.shape == off[0].shape for mask in off):
            off = [functools.reduce(torch.logical_and, off)]
        counts: dict[Any, Number] = {
            ("off", k): int(mask.sum()) if on_cpu(mask) else mask.sum() for k, mask in enumerate(off)
        }
        return counts | {"units": sum(mask.numel() for mask in off)}

    def columns(self, calls: Sequence[LayerCall], values: dict[Any, float]) -> dict[str, float]:
        if not values.get("units"):
            return {}
        off = sum(count for key, count in values.items() if key != "units")
        return {"dead_fraction": off / values["units"]}
