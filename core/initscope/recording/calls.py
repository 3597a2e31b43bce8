"""What the calls of a layer have shown in one training step, and the columns they make together."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from initscope.recording.reductions import Number, finalize, on_cpu
from initscope.recording.tensors import last_before


@dataclass(eq=False)
class LayerCall:
    """One call of a layer: what was measured, over ``count`` numbers."""

    count: int
    values: dict[str, Number]
    """What ``forward_statistics`` found."""
    place: tuple[int, int]
    """Where the output lies, and in which version: by this a rectifier's input is recognized as this
    output.
    """
    batched: bool = True
    """Whether the output has samples, across which a signal can be told."""
    evaluating: bool = False
    """Whether the model was in evaluation mode (``model.eval()``) though gradients were computed."""
    below: Tensor | None = None
    """For each unit, whether it is not above zero for any sample; only of layers that went straight into a
    rectifier before.
    """
    gradients: list[Number] = field(default_factory=list)
    """L2 norms of the loss gradient for the output, one a backward pass: of two passes through one call the
    sum is not known.
    """
    off: Tensor | None = None
    """For each unit after the layer's rectifier, whether it is zero for all samples."""

    def columns(self) -> dict[str, float]:
        """The columns of the forward pass; ``values`` are plain numbers by now."""
        columns = finalize(self.values)
        if not self.batched:
            del columns["signal_std"]
        return columns


@dataclass(eq=False)
class StepCalls:
    """The calls of a layer in a step. Those that a gradient reached count; if none was reached, the newest
    one.
    """

    reached: list[LayerCall] = field(default_factory=list)
    newest: LayerCall | None = None
    candidate: LayerCall | None = None
    """The newest call in evaluation mode: it counts if a backward pass shows that the model is trained so."""
    over: bool = False
    """The step has been collected: what arrives later is not its own."""

    def chosen(self) -> list[LayerCall]:
        return self.reached or ([self.newest] if self.newest is not None else [])


class ProducerIndex:
    """Maps an autograd sequence number to the layer call that produced the tensor, so that an activation
    finds its layer even if another branch ran in between. Without a graph (frozen layers) that is the newest
    call.
    """

    def __init__(self) -> None:
        self._calls: dict[int, tuple[int, LayerCall]] = {}
        self._found: dict[int, int | None] = {}
        """For outputs of activations and normalizations the number of their layer's: a search ends there,
        however long the network is.
        """
        self._newest: tuple[int, LayerCall] | None = None
        self._thread = 0

    def add(self, layer: int, call: LayerCall, output: Tensor) -> None:
        """Note that ``call`` of the layer of this index made ``output``."""
        self._newest = layer, call
        if (
            self._thread != threading.get_ident()
        ):  # each counts its operations by itself; checkpointing computes in the backward pass's thread
            self._calls.clear()
            self._found.clear()
            self._thread = threading.get_ident()
        if output.grad_fn is not None:
            self._calls[output.grad_fn._sequence_nr()] = self._newest

    def before(self, x: Tensor, output: Tensor | None = None) -> tuple[int, LayerCall] | None:
        """(index, call) of the newest layer that ``x`` was computed from, None if of no layer or of none
        near. ``output`` is what a module has just made of ``x``: later searches that meet it end there.
        """
        if self._newest is None or x.grad_fn is None:
            return self._newest
        number = last_before(x, self._calls, self._found)
        if (
            output is not None
            and output.grad_fn is not None
            and (made := output.grad_fn._sequence_nr()) not in self._calls
        ):
            self._found[made] = number
        return None if number is None else self._calls.get(number)

    def clear(self) -> None:
        """A new pass begins."""
        self._calls.clear()
        self._found.clear()
        self._newest = None


def off_counts(calls: Sequence[LayerCall]) -> tuple[list[Number], int]:
    """(how many units of a layer are off, in parts, out of how many). A unit is off if it is in all calls; of
    calls that differ in shape each counts by itself.
    """
    off = [call.off for call in calls if call.off is not None]
    if len(off) > 1 and all(mask.shape == off[0].shape for mask in off):
        off = [functools.reduce(torch.logical_and, off)]
    return [int(mask.sum()) if on_cpu(mask) else mask.sum() for mask in off], sum(
        mask.numel() for mask in off
    )


def pooled_columns(calls: Sequence[LayerCall], off: Sequence[float], units: int) -> dict[str, float]:
    """The columns of a layer over all its calls in a step, each number of an output counting alike; ``off``
    of ``units`` are dead.

    ``signal_std`` is the spread across the samples of a call.
    """
    if not calls:
        return {}
    count = sum(call.count for call in calls)
    columns = calls[0].columns() if len(calls) == 1 else _pooled_forward(calls, count)
    if all(len(call.gradients) == 1 for call in calls):
        columns["activation_grad_rms"] = _length([call.gradients[0] for call in calls]) / math.sqrt(count)
    if units:
        columns["dead_fraction"] = sum(off) / units
    return columns


def _length(parts: Sequence[float]) -> float:
    """The norm of a vector of whose parts the norms are known."""
    return parts[0] if len(parts) == 1 else math.sqrt(sum(part * part for part in parts))


def _pooled_forward(calls: Sequence[LayerCall], count: int) -> dict[str, float]:
    shares, columns = [call.count / count for call in calls], [call.columns() for call in calls]
    mean = sum(share * one["activation_mean"] for share, one in zip(shares, columns, strict=True))
    total, signal = 0.0, 0.0
    for share, one in zip(shares, columns, strict=True):
        off_mean, std, spread = one["activation_mean"] - mean, one["activation_std"], one.get("signal_std")
        total += share * (std * std + off_mean * off_mean)
        signal = None if signal is None or spread is None else signal + share * (spread * spread)
    result = {"activation_mean": mean, "activation_std": math.sqrt(total)}
    return result if signal is None else {**result, "signal_std": math.sqrt(signal)}
