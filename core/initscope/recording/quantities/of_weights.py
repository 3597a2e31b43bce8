"""What a step shows of one weight, and the moments at which a quantity is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from initscope.recording.reductions import Number
from initscope.recording.tensors import local
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
    scale: Tensor | None = None
    """The factor of the loss (``GradScaler``) in the newest backward pass."""
    gradient: Number | None = None
    """Norm after the newest backward pass; an optimizer's step makes it the row's."""
    freed: bool | None = None
    """Whether gradients are gone by the end of a pass; None if no pass has shown it yet."""
    on_arrival: Number | None = None
    """Norm of the gradient when it arrived, taken unless it is known to stay."""
    used: tuple[int, int] | None = None
    """Which gradient the newest optimizer step left behind: it is no new one while nobody has touched it."""
    before: Tensor | None = None
    """The numbers before the optimizer's step."""
    values: dict[str, Number] = field(default_factory=dict)
    """Raw numbers of this step, by names that the quantities choose."""

    @property
    def gradient_version(self) -> tuple[int, int] | None:
        """Identity of the tensor in ``.grad`` and how often it was written to; None without one."""
        gradient = self.parameter.grad
        return None if gradient is None else (id(gradient), version(gradient))

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

    def at_the_end(self, weight: Weight, updated: bool) -> None:
        """The step is over; ``updated`` says whether an optimizer has stepped in it."""

    def columns(self, values: dict[str, float], size: int) -> dict[str, float]:
        """The cells of a row, from this step's raw ``values`` of a weight of ``size`` numbers."""
        raise NotImplementedError
