"""What autograd's graph tells of the tensors that a model computes with: those that learn, and those that
nobody holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from initscope.recording.repeatable import MOST_ITEMS
from initscope.recording.tensors import is_dense, tensors_of
from initscope.torch_internals import version

MOST_NODES = 50_000
"""Autograd nodes that are looked at."""
MOST_NAMED = 12
"""Names that are kept as a fact."""
MOST_SAMPLED = 256
"""Values of a tensor by which it is told whether it was written to."""
_DEPTH = 3
"""How deep lists and dicts among a module's attributes are looked into."""


def leaves(output: Any, inputs: Any) -> list[Tensor]:
    """The tensors with ``requires_grad`` from which ``output`` was computed, up to ``inputs`` and without
    them.
    """
    given = [x for x in tensors_of(inputs) if x.requires_grad]
    ends = {id(x.grad_fn) for x in given if x.grad_fn is not None}
    known = {id(x) for x in given}
    waiting = [x.grad_fn for x in tensors_of(output) if x.grad_fn is not None]
    seen, found = set(waiting), []
    while waiting and len(seen) < MOST_NODES:
        node = waiting.pop()
        if id(node) in ends:
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor) and id(variable) not in known:
            found.append(variable)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return found


def unheld(model: nn.Module, output: Any, inputs: Any, held: set[int]) -> tuple[list[Tensor], list[Tensor]]:
    """(leaves that are in no ``parameters()`` and not among ``held``, the others). A tensor of the inputs'
    own shape is data, not a weight.
    """
    own = held | {id(p) for p in model.parameters()}
    shapes = {x.shape for x in tensors_of(inputs) if is_dense(x)}
    found = leaves(output, inputs)
    return [x for x in found if id(x) not in own and x.shape not in shapes], [
        x for x in found if id(x) in own
    ]


def names_of(model: nn.Module, wanted: Mapping[int, Tensor]) -> dict[int, str]:
    """Where the tensors (by id) are kept among the attributes of the model's modules: "hidden.0.weight" for a
    layer in a plain list.
    """
    names: dict[int, str] = {}

    def look(value: Any, name: str, depth: int) -> None:
        if isinstance(value, nn.Module):
            for inner, parameter in value.named_parameters():
                names.setdefault(id(parameter), f"{name}.{inner}") if id(parameter) in wanted else None
        elif isinstance(value, Tensor):
            if id(value) in wanted:
                names.setdefault(id(value), name)
        elif depth and isinstance(value, (list, tuple, dict)) and len(value) <= MOST_ITEMS:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                look(item, f"{name}.{key}", depth - 1)

    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_modules", "_buffers"):
                look(value, f"{path}.{key}" if path else key, _DEPTH)
    return names


class Mark(NamedTuple):
    """What tells whether a tensor was written to: its version, and some of its values, because the kernels of
    fused optimizers write without a new version.
    """

    version: int
    sample: Tensor


def mark(x: Tensor) -> Mark:
    """The mark of ``x`` as it is now: ``MOST_SAMPLED`` of its values, at even distances, are copied."""
    flat = x.detach().reshape(-1) if is_dense(x) else torch.empty(0)
    return Mark(version(x), flat[:: max(1, -(-len(flat) // MOST_SAMPLED))].nan_to_num())


def changed(x: Tensor, before: Mark) -> bool:
    """Whether ``x`` was written to since."""
    now = mark(x)
    return now.version != before.version or not torch.equal(now.sample, before.sample)


class Unregistered:
    """Watches two passes for weights that the model computes with, and that neither ``parameters()`` nor an
    optimizer holds.

    The first pass finds candidates; a pass after an update tells: those still there and never changed, while
    weights that are held have changed, are not trained. Weights that are new tensors in every pass cannot be.
    """

    def __init__(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]):
        self.model = model
        self.optimizers = optimizers
        self.done = False
        self._candidates: dict[int, tuple[Tensor, Mark]] = {}
        self._others: list[tuple[Tensor, Mark]] = []
        self._seen = False

    def look(self, output: Any, inputs: Any) -> dict[str, Any] | None:
        """The fact, once it is known: ``names``, ``share`` of the weights that run, ``anew`` (made in every
        pass); None until then.
        """
        held = {
            id(p)
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        loose, others = unheld(self.model, output, inputs, held)
        if not self._seen:
            self._seen = True
            self.done = not loose
            if loose:
                self._candidates = {id(x): (x, mark(x)) for x in loose}
                self._others = [(x, mark(x)) for x in others]
            return None
        if self._others and not any(changed(x, before) for x, before in self._others):
            return None  # nothing has been updated yet
        self.done = True
        same = [x for x in loose if id(x) in self._candidates and not changed(x, self._candidates[id(x)][1])]
        anew = [x for x in loose if id(x) not in self._candidates]
        self._candidates = {}
        chosen = [*same, *anew]
        if not chosen:
            return None
        names = names_of(self.model, {id(x): x for x in chosen})
        count, total = sum(x.numel() for x in chosen), sum(x.numel() for x in (*loose, *others))
        listed = [names.get(id(x), f"a tensor of shape {tuple(x.shape)}") for x in chosen[:MOST_NAMED]]
        return {"names": listed, "count": len(chosen), "share": count / total, "anew": len(anew)}
