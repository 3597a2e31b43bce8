"""Tensors in what modules take and return: which one is a layer's output, which can be looked at, and what
made them.
"""

from __future__ import annotations

import dataclasses
import heapq
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from initscope.torch_internals import CONVOLUTION, sequence_number

_FUNCTIONS = {
    "ReluBackward0": "ReLU",
    "TanhBackward0": "Tanh",
    "SigmoidBackward0": "Sigmoid",
    "GeluBackward0": "GELU",
    "SiluBackward0": "SiLU",
}
"""Nonlinearities called as functions, by the name of their autograd node."""
_RESHAPING_OPERATIONS = re.compile("View|Pool|Dropout|Mul|Reshape|Squeeze|Permute|Transpose|Mean")
"""Autograd nodes that may stand between a nonlinearity and the next layer. A mean: ``adaptive_avg_pool2d(x,
1)`` is one.
"""
SEARCH_LIMIT = 1000
"""Autograd nodes looked at for the layer that a tensor was computed from."""


def output_of(module: nn.Module, output: Any) -> tuple[Tensor | None, int | None]:
    """(a layer's output, which of its dimensions is that of the samples, None if none is); no output where it
    cannot be measured.

    Of a tuple or dict the first tensor is taken: for recurrent layers and attention that is what the next
    layer sees.
    """
    if isinstance(output, nn.utils.rnn.PackedSequence):
        return (output.data, None) if is_dense(output.data) else (None, None)
    tensor = output if isinstance(output, Tensor) else next(tensors_of(output), None)
    if tensor is None or not is_dense(tensor) or not tensor.numel():
        return None, None
    if isinstance(module, CONVOLUTION):
        batched = tensor.dim() == len(module.kernel_size) + 2
    elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return tensor, None if tensor.dim() < 3 else 0 if module.batch_first else 1
    else:
        batched = tensor.dim() > (1 if isinstance(module, (nn.Linear, nn.Bilinear, nn.RNNCellBase)) else 0)
    return tensor, 0 if batched else None


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a model's output: a tensor, or tuples, lists, mappings and dataclasses of them, in their
    order.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in tensors_of(item))
    elif isinstance(value, (list, tuple)):
        yield from (tensor for item in value for tensor in tensors_of(item))
    elif dataclasses.is_dataclass(value):
        yield from (
            tensor
            for field in dataclasses.fields(value)
            for tensor in tensors_of(getattr(value, field.name, None))
        )


def is_dense(x: Tensor) -> bool:
    """Whether ``x`` holds plain real numbers that can be looked at."""
    return type(x) in (Tensor, nn.Parameter) and _is_plain(x) and x.is_floating_point()


def is_readable(x: Tensor) -> bool:
    """Whether the numbers of a parameter can be looked at: dense, real or complex, of two bytes or more, in
    this process.

    Not so: float8 and quantized weights, whose tensors know few operations, and weights that are spread over
    processes.
    """
    return _is_plain(x) and (x.is_floating_point() or x.is_complex())


def _is_plain(x: Tensor) -> bool:
    # A subclass that computes by itself may know only some operations; one that does not is an ordinary
    # tensor under another name.
    own = type(x) in (Tensor, nn.Parameter) or type(x).__torch_dispatch__ is Tensor.__torch_dispatch__
    return (
        own
        and not x.is_nested
        and x.layout == torch.strided
        and x.device.type != "meta"
        and x.dtype.itemsize > 1
    )


def is_shared(x: Tensor) -> bool:
    """Whether ``x`` is spread over several processes (``DTensor``)."""
    return hasattr(x, "full_tensor")


def local(x: Tensor) -> Tensor:
    """``x`` without its graph; of a tensor that is spread over several processes this one's part."""
    x = x.detach()
    x = cast(Any, x).to_local() if is_shared(x) else x
    return (
        x
        if type(x) is Tensor or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
        else x.as_subclass(Tensor)
    )


def dense(gradient: Tensor) -> Tensor:
    """The numbers of a gradient, a sparse one's entries added up."""
    gradient = gradient.detach()
    return gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient


def by_sample(x: Tensor) -> Tensor:
    """``x`` (samples first) as (samples, units), a view in memory order where that is possible."""
    if x.dim() < 2:
        return x.reshape(-1, 1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.flatten(1)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether one can be copied into the other number by number, in the order of memory."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and a.stride() == b.stride()


def is_compiled_output(inputs: Any) -> bool:
    """Whether the first of a module's inputs came out of ``torch.compile``."""
    x = inputs[0] if inputs else None
    return isinstance(x, Tensor) and x.grad_fn is not None and x.grad_fn.name().startswith("CompiledFunction")


def function_before(x: Tensor) -> str | None:
    """The nonlinearity whose output ``x`` is, perhaps pooled, reshaped or dropped out since; None if the last
    operation was another.
    """
    node = x.grad_fn
    while node is not None and _RESHAPING_OPERATIONS.search(node.name()):
        inputs = [child for child, _ in node.next_functions if child is not None]
        node = inputs[0] if len(inputs) == 1 else None  # a product of two is a gate
    return None if node is None else _FUNCTIONS.get(node.name())


def last_before(x: Tensor, numbers: Container[int], shortcuts: Mapping[int, int | None]) -> int | None:
    """Of the operations with these numbers the newest that ``x`` was computed from; None if none is near.

    ``shortcuts``: for operations that were searched from before, what was found.
    """
    waiting: list[tuple[int, int, Any]] = []
    seen: set[Any] = set()

    def wait_for(node: Any) -> None:
        if node is not None and node not in seen:
            seen.add(node)
            heapq.heappush(waiting, (-sequence_number(node), len(seen), node))

    wait_for(x.grad_fn)
    while waiting and len(seen) < SEARCH_LIMIT:
        negative, _, node = heapq.heappop(waiting)
        if node is None or -negative in numbers:
            return -negative
        if -negative in shortcuts:
            found = shortcuts[-negative]
            if found is not None:
                heapq.heappush(waiting, (-found, -1, None))
            continue
        for child, _ in node.next_functions:
            wait_for(child)
    return None
