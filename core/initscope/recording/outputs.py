"""Outputs of the network, kept with the loss's gradient for them until the loss is told: together they say
what the targets are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from initscope.recording.grad_scaler import LossScale
from initscope.recording.model_facts import FIRST_STEPS, main_output
from initscope.recording.targets import TargetLog, is_discriminator, observe

LOOK_AGAIN = 16
"""After the first steps outputs are compared with targets again whenever 1 / LOOK_AGAIN more steps have been
taken: some twelve times a doubling.
"""


class OutputLog:
    """Keeps the outputs of steps that are ``due`` and gives ``note`` the facts ``targets`` and
    ``discriminator``. ``first`` is the run's first step: of one that goes on nothing is looked at, because
    its targets are known.
    """

    def __init__(
        self,
        first: int,
        scale: LossScale,
        note: Callable[[dict[str, Any]], None],
    ):
        self.node: Any = None
        """What made the output of step 0, in autograd's graph; the caller lets go of it."""
        self._scale, self._note = scale, note
        self._looking, self._next = first == 0, first
        self._passes: list[list[Tensor]] = []
        self._targets = TargetLog()

    def due(self, step: int) -> bool:
        """Whether outputs of ``step`` are to be kept."""
        return self._looking and step >= self._next

    def keep(self, step: int, output: Any) -> None:
        """Keep what a pass has returned and, once it comes, the loss's gradient for it."""
        logits = main_output(output)
        if logits is None or not logits.requires_grad:
            return
        if step == 0:
            self.node = logits.grad_fn
        pair = [logits.detach()]
        self._passes = [*self._passes[-1:], pair]  # two passes are enough to know a discriminator by
        scale = self._scale
        logits.register_hook(
            lambda gradient: pair.append(
                gradient.detach() / (1.0 if scale.current is None else scale.current)
            )
        )

    def compare(self, step: int, loss: Any, chain: Sequence[str]) -> None:
        """What the kept outputs and the loss's gradient for them say about the targets; ``chain`` are
        autograd's operations from the loss down.
        """
        passes, self._passes = self._passes, []
        if not passes:
            return
        self._next = step + max(1, step // LOOK_AGAIN if step >= FIRST_STEPS else 1)
        passes = [each[:2] for each in passes if len(each) > 1]
        value = float(torch.as_tensor(loss).detach())
        if len(passes) > 1 and is_discriminator(value, passes):
            self._note({"discriminator": True})
            return
        seen = observe(chain, value, *passes[-1]) if passes else None
        if seen is not None:
            self._targets.add(seen)
            self._note({"targets": {**self._targets.facts(), "late_step": step}})
