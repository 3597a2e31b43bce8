"""The forward columns of a compiled network: a second, uncompiled pass of a copy of it over the first samples
of the batch.

Compiled code calls no hooks, and compiling hooks into it would change what is computed. So on recorded steps,
once the compiled pass is over, a copy of the module runs without ``torch.compile`` and without a graph. The
copy shares the parameters and has buffers and attributes of its own; random states are put back; autocast
keeps nothing of it. What it measures holds for the samples it saw.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from initscope.recording.apart import apart
from initscope.recording.tensors import is_dense, tensors_of
from initscope.torch_internals import (
    FORWARD_HOOKS,
    FORWARD_PRE_HOOKS,
    tree_leaves,
    tree_map,
)

SAMPLES = 16
"""Samples of a batch that the second pass runs over."""
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), "ReLU"),
    **dict.fromkeys((F.gelu,), "GELU"),
    **dict.fromkeys((F.silu,), "SiLU"),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh), "Tanh"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid), "Sigmoid"),
}


def shadow_pass(
    model: nn.Module,
    inputs: tuple,
    kwargs: dict,
    after: Callable[[nn.Module, Any, Any], None],
    function: Callable[[str, Tensor], None],
) -> tuple[int, int]:
    """Run a copy of ``model``; ``after(module, inputs, output)`` is called after each of its modules with the
    module that it is a copy of, ``function(name, output)`` after nonlinearities that are called as functions.
    Returns (samples it ran over, samples of the batch).

    Raises whatever the model raises, also where it cannot be copied; nothing has changed then either.
    """
    batch, given, named = first_samples(inputs, kwargs)
    parameters = list(model.parameters())
    memo: dict[int, Any] = {id(p): p for p in parameters}
    for (
        module
    ) in model.modules():  # what a forward pass has left in an attribute has a graph, and cannot be copied
        memo |= {
            id(x): x
            for x in tree_leaves(list(module.__dict__.values()))
            if isinstance(x, Tensor) and x.grad_fn is not None
        }
    twin = copy.deepcopy(model, memo)
    for original, module in zip(model.modules(), twin.modules(), strict=True):
        _without_observers(module)
        module.register_forward_hook(lambda _, x, y, original=original: after(original, x, y))
    with (
        apart(model),
        _no_autocast_cache(),
        torch.compiler.set_stance("force_eager"),
        _NoticesFunctions(function),
    ):
        twin(*given, **named)
    samples = next((x.shape[0] for x in tensors_of([given, named]) if x.dim()), 0)
    return samples, batch


def first_samples(inputs: tuple, kwargs: dict) -> tuple[int, tuple, dict]:
    """(samples of the batch, inputs and keyword inputs of its first ``SAMPLES``); all of it where it is not
    certain which dimension that is.
    """
    tensors = [x for x in tree_leaves([inputs, kwargs]) if isinstance(x, Tensor)]
    sizes = {x.shape[0] for x in tensors if is_plain_batch(x)}
    batch = max(sizes, default=0)
    whole = len(sizes) != 1 or batch <= SAMPLES or not all(map(is_plain_batch, tensors))
    # Whole numbers beside real ones may count samples (a graph's edges): out of range they would end a GPU's
    # process.
    kinds = {x.is_floating_point() for x in tensors}
    if whole or (len(kinds) > 1 and any(x.device.type != "cpu" for x in tensors)):
        return batch, inputs, kwargs
    return batch, *tree_map(lambda x: x[:SAMPLES] if isinstance(x, Tensor) else x, (inputs, kwargs))


def is_plain_batch(x: Tensor) -> bool:
    """Whether ``x`` can be cut along its first dimension."""
    return type(x) is Tensor and not x.is_nested and x.layout == torch.strided and x.dim() > 0


def _without_observers(module: nn.Module) -> None:
    """Take off the copy's hooks that are functions, which may write down what they see; objects (old weight
    and spectral norm) stay.
    """
    for hooks in (module.__dict__[FORWARD_HOOKS], module.__dict__[FORWARD_PRE_HOOKS]):
        for key in [
            key for key, hook in hooks.items() if isinstance(hook, (types.FunctionType, types.MethodType))
        ]:
            del hooks[key]


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast keeps no weight that is converted meanwhile, which would have no gradient."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


class _NoticesFunctions(TorchFunctionMode):
    def __init__(self, noticed: Callable[[str, Tensor], None]):
        super().__init__()
        self._noticed = noticed

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        output = function(*arguments, **(keywords or {}))
        name = _FUNCTIONS.get(function)
        if name is not None and is_dense(output):
            self._noticed(name, output)
        return output
