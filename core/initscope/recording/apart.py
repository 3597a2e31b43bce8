"""What a pass needs that the training has not asked for: it draws no random number of the training's, and
says nothing to other processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from initscope.torch_internals import TorchDispatchMode


class Communicates(Exception):
    """The network sends something to other processes in its forward pass, which one of them cannot do
    alone.
    """


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """No graph; random states of Python, NumPy and torch (of the devices of ``model`` too) put back.

    Where several processes train, communication raises Communicates: the others run no such pass and would
    never answer.
    """
    plain, numpys = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), _alone():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpys)


def _alone() -> Any:
    distributed = torch.distributed
    many = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return _RefusesCommunication() if many else nullcontext()  # type: ignore[no-untyped-call]


class _RefusesCommunication(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if "c10d" in function.namespace:
            raise Communicates(f"the network's forward pass communicates ({function})")
        return function(*arguments, **(keywords or {}))
