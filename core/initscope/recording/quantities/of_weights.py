"""What a step shows of one weight, and the moments at which a quantity is told of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from initscope.recording.reductions import Number
from initscope.recording.tensors import is_dense, local
from initscope.torch_internals import version


@dataclass(eq=False)
class Weight:
    """One parameter, the rows that show it (several if layers share it), and what was measured of it in this
    step.
    """

    parameter: nn.Parameter
    rows: list[int]
    readable: bool
    """Whether the numbers can be looked at; those of quantized weights cannot."""
    optimizer: int = 0
    held: bool = True
    """Whether an optimizer holds the parameter; if none does, the loop itself may copy into it what an
    optimizer has moved elsewhere.
    """
    scale: Tensor | None = None
    """The factor of the loss (``GradScaler``) in the newest backward pass."""
    gradient: Number | None = None
    """Norm after the newest backward pass; an optimizer's step makes it the row's."""
    freed: bool | None = None
    """Whether gradients are gone by the end of a pass; None if no pass has shown it yet."""
    on_arrival: Number | None = None
    """Norm of the gradient when it arrived, taken unless it is known to stay."""
    used: tuple[Any, int, int] | None = None
    """The gradient that the newest optimizer step left behind: what holds its memory (weakly), the tensor's
    id, and how often it had been written to.
    """
    before: Tensor | None = None
    """The numbers before the optimizer's step."""
    values: dict[str, Number] = field(default_factory=dict)
    """Raw numbers of this step, by names that the quantities choose."""

    @property
    def has_new_gradient(self) -> bool:
        """Whether there is a gradient that nobody has used: the one left behind is none while nobody has
        touched it.
        """
        gradient = self.parameter.grad
        if gradient is None or self.used is None:
            return gradient is not None
        memory, *left = self.used
        # By its id alone a new tensor that lies where the old one lay would be the old one.
        if memory is not None and memory() is not gradient.untyped_storage():
            return True
        return left != [id(gradient), version(gradient)]

    def use_gradient(self) -> None:
        """An optimizer has stepped with the gradient that there is."""
        gradient = self.parameter.grad
        if gradient is None:
            self.used = None
            return
        # Weakly by the memory: tensors that somebody refers to weakly cannot be converted in place.
        memory = weakref.ref(gradient.untyped_storage()) if is_dense(gradient) else None
        self.used = memory, id(gradient), version(gradient)

    @property
    def numbers(self) -> Tensor:
        """The parameter, or this process's part of it."""
        return local(self.parameter)


class WeightQuantity:
    """Base of the quantities of a weight; one object serves all weights of a meter.

    The first four run in the training loop, under ``no_grad``: they may leave numbers in ``Weight.values``,
    scalars of a device too, and must wait for no device. ``columns`` runs later, over plain floats.
    """

    costly = False
    """Whether it looks at a weight only in steps that the meter measures ``thoroughly``."""

    def gradient_arrives(self, weight: Weight) -> None:
        """A gradient of ``weight`` is whole for this process; the backward pass goes on."""

    def gradients_ready(self, weights: Sequence[Weight]) -> None:
        """The pass has ended: ``.grad`` is what the optimizer will see, before clipping."""

    def before_update(self, weights: Sequence[Weight]) -> None:
        """An optimizer is about to step."""

    def after_update(self, weights: Sequence[Weight]) -> None:
        """It has stepped."""

    def at_the_end(self, weights: Sequence[Weight], updated: bool) -> None:
        """The step is over; ``updated`` says whether an optimizer has stepped in it."""

    def columns(self, values: dict[str, float], size: int) -> dict[str, float]:
        """The cells of a row, from this step's raw ``values`` of a weight of ``size`` numbers."""
        raise NotImplementedError
