"""Passes of a twin of the model, which shares its weights and nothing else: what a recorder may try without
touching the training.

A twin has modules, buffers and attributes of its own, so that a batch norm's averages, a kept hidden state or
an auxiliary loss of the model stay as they are. Every pass runs without a graph and leaves Python's, NumPy's
and torch's random states as they were.
"""

from __future__ import annotations

import contextlib
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initscope.recording.apart import apart
from initscope.recording.layers import is_normalization
from initscope.recording.model_facts import main_output
from initscope.recording.repeatable import MOST_ITEMS, MOST_NUMBERS
from initscope.recording.tensors import tensors_of
from initscope.torch_internals import (
    BACKWARD_HOOKS,
    BACKWARD_PRE_HOOKS,
    FORWARD_HOOKS,
    STATE_DICT_HOOKS,
    compiled_call,
)

MOST_BUFFERS = 2**24
"""Numbers in a model's buffers above which no twin is made."""
LEAST_SAMPLES = 2
NOISE = 1e-2
"""Outputs that move by less than this share of the largest movement have not moved."""
_FORWARD_HOOKS = (FORWARD_HOOKS, BACKWARD_HOOKS, BACKWARD_PRE_HOOKS, STATE_DICT_HOOKS)
"""Somebody else's hooks, which may note what they see. Hooks before a pass stay: ``spectral_norm`` computes
its weight in one.
"""


def has_twin(model: nn.Module) -> bool:
    """Whether a twin of ``model`` can be made: no compiled or scripted part, and buffers that are not
    huge.
    """
    if any(
        isinstance(m, torch.jit.ScriptModule) or "_orig_mod" in m._modules or compiled_call(m) is not None
        for m in model.modules()
    ):
        return False
    return sum(b.numel() for b in model.buffers()) <= MOST_BUFFERS


def twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode that shares its parameters; buffers and Python attributes are
    its own.
    """
    made = _Twins().module(model)
    for module in made.modules():
        module.training = False
    return made


class _Twins:
    """Copies modules one by one; what was copied is found again by its id, so that shared layers stay
    shared.
    """

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._alive: list[Any] = []

    def module(self, original: nn.Module) -> nn.Module:
        if id(original) in self._made:
            return self._made[id(original)]
        copy = object.__new__(type(original))
        self._keep(original, copy)
        for name, value in vars(original).items():
            copy.__dict__[name] = OrderedDict() if name in _FORWARD_HOOKS else self._value(value)
        return copy

    def _keep(self, original: Any, copy: Any) -> None:
        self._made[id(original)] = copy
        self._alive.append(original)  # or its id might be given to another

    def _value(self, value: Any) -> Any:
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, nn.Parameter):
            return value
        if isinstance(value, Tensor):
            copied = value.clone() if not value.requires_grad and value.numel() <= MOST_NUMBERS else value
            self._keep(value, copied)
            return copied
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.module(value.__self__))
        return self._container(value)

    def _container(self, value: Any) -> Any:
        kind = type(value)
        if kind not in (dict, OrderedDict, list, tuple, set, deque) or len(value) > MOST_ITEMS:
            return value
        if kind is tuple:
            return tuple(self._value(item) for item in value)
        copied = kind() if kind is not deque else deque(maxlen=value.maxlen)
        self._keep(value, copied)
        if kind in (dict, OrderedDict):
            copied.update((key, self._value(item)) for key, item in value.items())
        elif kind is set:
            copied.update(self._value(item) for item in value)
        else:
            copied.extend(self._value(item) for item in value)
        return copied


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """``apart``, with the buffers of ``model`` put back as well."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with apart(model):
        try:
            yield
        finally:
            for buffer, value in buffers:
                if not torch.equal(
                    buffer, value
                ):  # code that holds on to the original's modules, such as a lambda
                    buffer.data.copy_(value)  # a graph that has saved the buffer must not see a new version


def _output(copy: nn.Module, arguments: Any) -> Tensor | None:
    """The main output of one pass, with the same random numbers each time."""
    torch.manual_seed(0)
    inputs, named = arguments
    output = main_output(copy(*inputs, **named))
    return None if output is None else output.detach().float()


def _outputs(copy: nn.Module, batches: Sequence[tuple[tuple, dict]]) -> Tensor | None:
    """The main outputs of a pass for each batch, one after another; of the first alone if their shapes
    differ.
    """
    made = [_output(copy, arguments) for arguments in batches]
    if any(output is None or not output.dim() for output in made):
        return None
    same = len({output.shape[1:] for output in made}) == 1
    return torch.cat(made) if same else made[0]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in its tuples, lists and dicts changed; everything else is handed on."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    return value


def _with_row(x: Tensor, dim: int, size: int, row: int) -> Tensor:
    """``x`` with one index along ``dim`` replaced by the next one; other tensors as they are."""
    if x.dim() <= dim or x.shape[dim] != size:
        return x
    changed = x.clone()
    changed.select(dim, row).copy_(x.select(dim, (row + 1) % size))
    return changed


def mixing(model: nn.Module, arguments: tuple[tuple, dict]) -> dict[str, Any] | None:
    """How much a sample's output depends on other samples of its batch, in evaluation mode.

    ``leak``: when one sample's input is replaced by another's, the largest movement among the other samples'
    outputs over the largest of all, 0 to 1 (the median over three samples); ``batch``: samples. None where it
    cannot be told: inputs without a common first dimension, outputs that do not move, a network that reads
    its second dimension as samples, batch statistics in evaluation mode.
    """
    tensors = [x for x in tensors_of(list(arguments)) if x.dim()]
    if not tensors or any(x.shape[0] != tensors[0].shape[0] for x in tensors):
        return None
    size = tensors[0].shape[0]
    if (
        size < LEAST_SAMPLES
        or any(x.dim() > 1 and x.shape[0] == x.shape[1] for x in tensors)
        or _uses_batch(model)
    ):
        return None
    copy = twin(model)
    base = _output(copy, arguments)
    if base is None or base.shape[0] % size or not torch.isfinite(base).all():
        return None
    second = tensors[0].shape[1] if tensors[0].dim() > 1 else 0
    if base.shape[0] == size * second:
        base = base.reshape(size, second, -1)

    def leak(dim: int, count: int, axis: int) -> float | None:
        """Over three indices along the inputs' ``dim``: how far other indices of the output's ``axis``
        move.
        """
        shares = []
        for row in sorted({0, count // 2, count - 2}):
            changed = _output(copy, mapped(arguments, lambda x, row=row: _with_row(x, dim, count, row)))
            moved = (changed.reshape(base.shape) - base).abs()
            moved = moved.movedim(axis, 0).reshape(base.shape[axis], -1).amax(1)
            moved = moved.reshape(count, -1).amax(1)
            largest = float(moved.max())
            if largest > 1e-6 * float(base.abs().max()):
                own = float(moved[row])
                moved[row] = 0
                shares.append(float(moved.max()) / max(largest, own))
        return float(np.median(shares)) if shares else None

    found = leak(0, size, 0)
    if found is None:
        return None
    if found > NOISE and second >= LEAST_SAMPLES:
        for axis in range(min(2, base.dim())):
            if base.shape[axis] == second and (other := leak(1, second, axis)) is not None and other <= NOISE:
                return None  # time first, samples second: a layout, not a mistake
    return {"leak": found, "batch": size}


def bend(model: nn.Module, arguments: tuple[tuple, dict]) -> float | None:
    """How far the output for the mean of two samples lies from the mean of their outputs, in evaluation mode
    and as a share of the outputs' spread: 0, up to rounding, for a network that is a linear function of its
    input. None where it has not one tensor of numbers as its input, or the outputs are all the same.
    """
    tensors = list(tensors_of(list(arguments)))
    if len(tensors) != 1 or not tensors[0].is_floating_point() or not tensors[0].dim():
        return None
    if len(tensors[0]) < LEAST_SAMPLES or _uses_batch(model):
        return None
    copy = twin(model)
    base = _output(copy, arguments)
    between = _output(copy, mapped(arguments, lambda x: (x + x.roll(1, 0)) / 2))
    if base is None or between is None or len(base) != len(tensors[0]) or base.shape != between.shape:
        return None
    spread = float((base - base.mean(0)).abs().max())
    if not spread > 1e-6 * float(base.abs().max()):
        return None
    return float((between - (base + base.roll(1, 0)) / 2).abs().max()) / spread


def _uses_batch(model: nn.Module) -> bool:
    """Whether the network normalizes by the batch in evaluation mode too, so that samples cannot but touch
    each other.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is None:
                return True
        elif is_normalization(module) and "batch" in type(module).__name__.lower():
            return True
    return False


def averaging(model: nn.Module) -> list[nn.Module]:
    """The normalizations that use a batch's statistics in training and running averages in evaluation."""
    return [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None and m.training
    ]


def mode_gap(
    model: nn.Module, batches: Sequence[tuple[tuple, dict]], norms: Sequence[nn.Module]
) -> dict[str, Any] | None:
    """How far apart the outputs for ``batches`` are with each batch's statistics and with the running
    averages, all else in evaluation mode. ``norms`` are the modules of ``model`` that train with a
    batch's statistics (``averaging``).

    ``distance``: RMS of the difference over the outputs' standard deviation across samples; ``agreement``:
    share of the samples (pixels) whose largest output is the same, None for a single output; ``momentum``:
    the smallest of the averages (None: of all batches alike). None where the outputs cannot be compared.
    """
    places = {id(module): name for name, module in model.named_modules()}
    copy = twin(model)
    by_averages = _outputs(copy, batches)
    twins = dict(copy.named_modules())
    for module in norms:
        twins[places[id(module)]].training = True
    by_batch = _outputs(copy, batches)
    if (
        by_averages is None
        or by_batch is None
        or by_averages.shape != by_batch.shape
        or len(by_batch) < LEAST_SAMPLES
    ):
        return None
    spread = float((by_batch - by_batch.mean(0)).square().mean().sqrt())
    difference = float((by_averages - by_batch).square().mean().sqrt())
    agreement = (
        float((by_averages.argmax(1) == by_batch.argmax(1)).float().mean()) if by_batch.shape[1] > 1 else None
    )
    momentum = min((module.momentum for module in norms if module.momentum is not None), default=None)
    return {
        "distance": difference / spread if spread else None,
        "agreement": agreement,
        "batch": len(by_batch),
        "momentum": momentum,
    }
