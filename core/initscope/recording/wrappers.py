"""The network and the optimizers inside the wrappers of torch and of training frameworks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from initscope.errors import ConfigError


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, DataParallel and DistributedDataParallel."""
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, (nn.parallel.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is ``torch.compile``'s."""
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules())


def as_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    """One optimizer, several or none as a list, without the wrappers of training frameworks (their ``.optimizer`` does the work).

    Raises ConfigError for anything else.
    """
    given = [] if optimizer is None else list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    found = [getattr(one, "optimizer", one) for one in given]
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise ConfigError(f"optimizer must be a torch.optim.Optimizer, several in a list, or None, not {type(one).__name__}")
    return found
