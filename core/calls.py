"""What the calls of a layer have shown in one training step, and the columns they make together."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.reductions import Number, root


@dataclass(eq=False)
class Call:
    """One call of a layer: what was measured, over ``count`` numbers."""

    count: int
    values: dict[str, Number]
    place: tuple[int, int]
    """Where the output lies, and in which version: by this a rectifier's input is recognized as this output."""
    below: Tensor | None = None
    """For each unit, whether it is not above zero for any sample; only of layers that went straight into a rectifier before."""
    gradients: list[Number] = field(default_factory=list)
    """L2 norms of the loss gradient for the output, one a backward pass: of two passes through one call the sum is not known."""
    off: Tensor | None = None
    """For each unit after the layer's rectifier, whether it is zero for all samples."""


@dataclass(eq=False)
class Calls:
    """The calls of a layer in a step. Those that a gradient reached count; if none was reached, the newest one."""

    reached: list[Call] = field(default_factory=list)
    newest: Call | None = None
    over: bool = False
    """The step has been collected: what arrives later is not its own."""

    def chosen(self) -> list[Call]:
        return self.reached or ([self.newest] if self.newest is not None else [])


def pooled(calls: Sequence[Call]) -> dict[str, Number]:
    """The columns of a layer over all its calls in a step, each number of an output counting alike.

    ``signal_std`` is the spread across the samples of a call. A unit is dead if it is zero in all calls; where calls differ in shape,
    their shares are averaged.
    """
    if not calls:
        return {}
    count = sum(call.count for call in calls)
    result = dict(calls[0].values) if len(calls) == 1 else _pooled_forward(calls, count)
    if all(len(call.gradients) == 1 for call in calls):
        result["activation_grad_rms"] = _length([call.gradients[0] for call in calls]) / math.sqrt(count)
    off = [call.off for call in calls if call.off is not None]
    if len(off) > 1 and all(mask.shape == off[0].shape for mask in off):
        off = [functools.reduce(torch.logical_and, off)]
    if off:
        result["dead_fraction"] = sum(map(_count, off)) / sum(mask.numel() for mask in off)
    return result


def _length(parts: Sequence[Number]) -> Number:
    """The norm of a vector of whose parts the norms are known."""
    return parts[0] if len(parts) == 1 else root(sum(part * part for part in parts))


def _count(mask: Tensor) -> Number:
    return int(mask.sum()) if mask.device.type == "cpu" else mask.sum()


def _pooled_forward(calls: Sequence[Call], count: int) -> dict[str, Number]:
    shares = [call.count / count for call in calls]
    mean = sum(share * call.values["activation_mean"] for share, call in zip(shares, calls, strict=True))
    total, signal = 0.0, 0.0
    for share, call in zip(shares, calls, strict=True):
        off_mean, std, spread = call.values["activation_mean"] - mean, call.values["activation_std"], call.values.get("signal_std")
        total += share * (std * std + off_mean * off_mean)
        signal = None if signal is None or spread is None else signal + share * (spread * spread)
    result = {"activation_mean": mean, "activation_std": root(total)}
    return result if signal is None else {**result, "signal_std": root(signal)}
