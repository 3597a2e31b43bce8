"""Which number was the first that is none (NaN or infinite), and what was finite before it: looked for once a
run, when it happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initscope.recording.tensors import dense, tensors_of
from initscope.schema import LAYER_METRICS, MISSING
from initscope.torch_internals import norm_all

MOST_NAMED = 6
"""Parameters that are named."""
MOST_NUMBERS = 2**16
"""Larger parameters that make no row are not looked at each step."""


def finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x.detach()).all())


class NonfiniteWatch:
    """Looks at each recorded step on the CPU, where looking waits for nothing: the loss, the weights'
    updates, and the parameters that make no row (biases, scales of normalizations), since one NaN among them
    ruins every later pass.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], measured: set[int]):
        self.model = model
        self.optimizers = optimizers
        self.measured = measured
        """Ids of the parameters that make rows."""
        self.done = False
        self._others: list[Tensor] | None = None
        self._last_step: int | None = None
        self._last_loss: float | None = None

    def _others_finite(self) -> bool:
        if self._others is None:
            self._others = [
                p.detach()
                for p in self.model.parameters()
                if id(p) not in self.measured and p.is_floating_point() and p.numel() <= MOST_NUMBERS
            ]
        return all(math.isfinite(length) for length in norm_all(self._others)) if self._others else True

    def look(
        self, step: int, loss: float, reading: Any, names: Sequence[str], inputs: Any
    ) -> dict[str, Any] | None:
        """Called after the update of a recorded step; the fact, when a number that is none is met for the
        first time.

        ``what``: "input", "output" (of a layer), "loss", "gradient" or "update" (of a parameter); ``where``:
        the layer's or parameters' names; ``step``; ``since``: the last step after which everything was
        finite, None if there was none; ``nan``: NaN, not an infinity; ``type``: the numbers' type; ``from``:
        the finite sizes that it came from.
        """
        if math.isfinite(loss) and reading.weights_finite and self._others_finite():
            self._last_step, self._last_loss = step, loss
            return None
        self.done = True
        found = self._origin(loss, reading, names, inputs)
        found |= {"step": step, "since": self._last_step}
        if self._last_loss is not None:
            found["from"]["loss"] = self._last_loss
        return found

    def _origin(self, loss: float, reading: Any, names: Sequence[str], inputs: Any) -> dict[str, Any]:
        bad = next((x for x in tensors_of(inputs) if x.is_floating_point() and not finite(x)), None)
        if bad is not None:
            return _described("input", [], bad, {})
        rows = dict(zip(LAYER_METRICS, reading.table(), strict=False))
        order = [names[i] for i in reading.order]
        unsound = ~np.isfinite(rows["weight_norm"])
        if unsound.any():  # before this step's update
            length = rows["weight_norm"][unsound][0]
            return {
                "what": "weight",
                "where": [name for name, bad in zip(order, unsound, strict=True) if bad][:MOST_NAMED],
                "nan": bool(np.isnan(length)),
                "type": "",
                "from": {},
            }
        sizes = np.hypot(rows["activation_mean"], rows["activation_std"])
        broken = ~np.isfinite(sizes) & (rows["activation_std"] != np.float32(MISSING))
        if broken.any():
            at = int(broken.argmax())
            before = {order[at - 1]: float(sizes[at - 1])} if at else {}
            kind = str(next(self.model.parameters()).dtype).removeprefix("torch.")
            return {
                "what": "output",
                "where": [order[at]],
                "nan": bool(np.isnan(sizes[at])),
                "type": kind,
                "from": before,
            }
        if not math.isfinite(loss):
            return {"what": "loss", "where": [], "nan": math.isnan(loss), "type": "", "from": {}}
        return self._parameter()

    def _parameter(self) -> dict[str, Any]:
        """A finite loss, and parameters that are not finite after the update: by their gradient, or by the
        update itself.
        """
        named = list(self.model.named_parameters())
        broken = [(name, p) for name, p in named if p.is_floating_point() and not finite(p)]
        gradients = [(name, p) for name, p in named if p.grad is not None and not finite(dense(p.grad))]
        chosen = gradients or broken
        if not chosen:
            return {"what": "update", "where": [], "nan": True, "type": "", "from": {}}
        first = chosen[0][1]
        tensor = dense(first.grad) if gradients and first.grad is not None else first.detach()
        found = _described(
            "gradient" if gradients else "update", [name for name, _ in chosen[:MOST_NAMED]], tensor, {}
        )
        found["parameters"] = [len(chosen), len(named)]
        if not gradients:
            sizes = [float(dense(p.grad).abs().max()) for _, p in broken if p.grad is not None and p.numel()]
            found["from"] = {"largest gradient": max(sizes)} if sizes else {}
            found["optimizer"] = ", ".join(
                dict.fromkeys(type(optimizer).__name__ for optimizer in self.optimizers)
            )
            found["epsilon"] = _epsilon(self.optimizers, tensor.dtype)
        return found


def _epsilon(optimizers: Sequence[torch.optim.Optimizer], kind: torch.dtype) -> float | None:
    """The optimizers' ``eps`` as a number of this type can hold it: 0 for Adam's 1e-8 in float16; None if
    they have none.
    """
    values = [group["eps"] for optimizer in optimizers for group in optimizer.param_groups if "eps" in group]
    return float(torch.tensor(float(values[0]), dtype=kind)) if values else None


def _described(what: str, where: list[str], tensor: Tensor, before: dict[str, float]) -> dict[str, Any]:
    nan = bool(torch.isnan(tensor).any())
    return {
        "what": what,
        "where": where,
        "nan": nan,
        "type": str(tensor.dtype).removeprefix("torch."),
        "from": before,
    }
