"""What the calls of a layer have shown in one training step, and the columns they make together."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from torch import Tensor

from initscope.recording.reductions import Number
from initscope.recording.tensors import last_before
from initscope.torch_internals import sequence_number


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
            self._calls[sequence_number(output.grad_fn)] = self._newest

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
            and (made := sequence_number(output.grad_fn)) not in self._calls
        ):
            self._found[made] = number
        return None if number is None else self._calls.get(number)

    def clear(self) -> None:
        """A new pass begins."""
        self._calls.clear()
        self._found.clear()
        self._newest = None
