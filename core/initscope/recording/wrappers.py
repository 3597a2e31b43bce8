"""The network and the optimizers inside the wrappers of torch and of training frameworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from initscope.errors import ConfigError
from initscope.recording.tensors import is_dense
from initscope.torch_internals import holds_compiled


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, DataParallel and DistributedDataParallel."""
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, (nn.parallel.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is ``torch.compile``'s."""
    return any(holds_compiled(m) for m in model.modules())


def as_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """One optimizer, several or none as a list; in place of a wrapper that torch cannot watch, the optimizer
    that it holds.

    Raises ConfigError for anything else.
    """
    given = (
        [] if optimizer is None else list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    )
    return [_watchable(one) for one in given]


def holders(optimizers: Sequence[torch.optim.Optimizer]) -> Callable[[Tensor], bool]:
    """Whether a parameter is one of the optimizers', or lies in the memory of one: of a single long parameter
    that all of a model's are views of.
    """
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    ids, places = {id(p) for p in held}, {_memory(p) for p in held} - {0}
    return lambda parameter: id(parameter) in ids or _memory(parameter) in places


def _memory(x: Tensor) -> int:
    """Where the memory begins that ``x`` lies in; 0 if that cannot be told."""
    return x.untyped_storage().data_ptr() if is_dense(x) and x.device.type != "meta" else 0


def _watchable(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself, or the one inside of a wrapper: of training frameworks, or of differential
    privacy.

    A wrapper that was initialized as an optimizer is watched itself: its step is the whole update.
    """
    seen, waiting = {id(optimizer)}, [optimizer]
    for one in waiting:
        if isinstance(one, torch.optim.Optimizer) and "_optimizer_step_pre_hooks" in vars(one):
            return one
        inside = [getattr(one, "optimizer", None), *getattr(one, "__dict__", {}).values()]
        for found in inside:
            holds = isinstance(found, torch.optim.Optimizer) or hasattr(found, "param_groups")
            if holds and id(found) not in seen:
                seen.add(id(found))
                waiting.append(found)
    raise ConfigError(
        "optimizer must be a torch.optim.Optimizer, several in a list, or None, not "
        f"{type(optimizer).__name__}"
    )
