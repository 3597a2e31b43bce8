"""Whether gradients are cleared between two updates, seen directly: by what ``.grad`` holds when a new
gradient arrives.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle, unserializable_hook

from initscope.torch_internals import version

LOOKED_AT = 8
"""Updates after which the answer is clear."""
SMALL = 4096
"""Numbers of a parameter that is small."""
LEAST = 3
"""Updates in a row into which gradients of the one before went."""


class Clearing:
    """Watches a few parameters: the gradient of an update is left over if ``.grad`` was not empty at any
    backward pass since the one before.

    Several passes between two updates are accumulation and are let be, if the first of them, or any, began
    with an empty ``.grad``.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self._watched = [_Watched(parameter) for parameter in parameters]

    @property
    def kept(self) -> bool | None:
        """Whether gradients are kept from update to update; None as long as too few updates were seen."""
        if any(one.dirty_in_a_row >= LEAST for one in self._watched):
            return True
        return False if any(one.updates >= LEAST for one in self._watched) else None

    @property
    def done(self) -> bool:
        return not self._watched or all(one.updates >= LOOKED_AT for one in self._watched)

    def remove(self) -> None:
        """Take the hooks off."""
        for one in self._watched:
            one.handle.remove()


class _Watched:
    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter
        self.updates = 0
        self.dirty_in_a_row = 0
        self._version: int | None = None
        self._numbers: Tensor | None = None
        self._clean = True
        self.handle: RemovableHandle = parameter.register_hook(self._gradient_comes)

    # A copy or a file of the model does without the hook, and without a warning.
    @unserializable_hook  # type: ignore[untyped-decorator]
    def _gradient_comes(self, gradient: Tensor) -> None:
        """Before a backward pass adds ``gradient`` to ``.grad``."""
        if self.updates >= LOOKED_AT:
            return
        held = self.parameter.grad
        empty = held is None or not bool((held.coalesce().values() if held.is_sparse else held).any())
        if self._version is None or not self._updated():
            self._clean = self._clean or empty or self._version is None
        else:  # an update since the last pass: its interval is over
            self.updates += 1
            self.dirty_in_a_row = 0 if self._clean else self.dirty_in_a_row + 1
            self._clean = empty
        self._version = version(self.parameter)
        self._numbers = self.parameter.detach().clone() if self.parameter.numel() <= SMALL else None

    def _updated(self) -> bool:
        """Whether the parameter is another than at the last pass. Fused optimizers write without a new
        version: of small parameters the numbers are compared too.
        """
        if version(self.parameter) != self._version:
            return True
        return self._numbers is not None and not torch.equal(self._numbers, self.parameter.detach())


def watched_parameters(model: nn.Module, held: set[int] | None) -> Iterator[nn.Parameter]:
    """The last and the first of the small parameters that are trained (biases, mostly): looking at them costs
    next to nothing.
    """
    trained = [
        p
        for p in model.parameters()
        if p.requires_grad and p.is_leaf and not is_lazy(p) and (held is None or id(p) in held)
    ]
    small = sorted(trained, key=lambda p: p.numel() > SMALL)
    few = [p for p in small if p.numel() <= SMALL] or small
    yield from dict.fromkeys([*few[-1:], *few[:1]])
