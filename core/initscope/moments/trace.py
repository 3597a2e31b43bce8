"""The graph of a module: its ATen operations in order, found by one forward pass of tensors that hold no
numbers.

The inputs are fake tensors (shapes only), so nothing is computed from data; what depends on no input (masks,
positions, tables of indices, views of weights) is computed, so that rules can read it. Networks whose control
flow asks for values run once for real. The module is left as it was: buffers are copies, hooks do not run,
and the random generators are restored.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from initscope.torch_internals import (
    BACKWARD_HOOKS,
    BACKWARD_PRE_HOOKS,
    FORWARD_HOOKS,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    share_memory,
    tree_leaves,
    tree_map,
)

_CONSTANTS = {"new_zeros": 0.0, "zeros_like": 0.0, "new_ones": 1.0, "ones_like": 1.0}


@dataclass(frozen=True, eq=False)
class Ref:
    """A tensor that depends on the inputs, by number."""

    id: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def compact(x: Tensor) -> Tensor:
    """Each number once: without the dimensions along which ``expand`` repeats a tensor."""
    for dim, (side, step) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if side > 1 and step == 0:
            x = x.narrow(dim, 0, 1)
    return x


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor whose numbers are known; ``param``: the parameter it is, or is a view or function of;
    ``same``: whether it is a view.
    """

    value: Tensor
    param: str | None = None
    same: bool = True


@dataclass(frozen=True, eq=False)
class Node:
    op: Any
    """The overload, as ``torch.ops.aten.relu.default``."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Any]
    """``Ref`` for tensors, None for the rest."""

    @property
    def name(self) -> str:
        """``relu`` for ``aten.relu_.default``: in place or not makes no difference here."""
        name = self.op.overloadpacket.__name__
        return name.rstrip("_") if self.op._schema.is_mutable and not name.endswith("__") else name


@dataclass
class Graph:
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """The sample's floating tensors by their number."""
    outputs: list[Ref] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    executed: bool = False
    """Whether the network had to be run for real."""


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.refs: dict[int, Ref] = {}
        self.params: dict[int, tuple[str, bool]] = {}
        self.data: set[int] = set()
        self.alive: list[Any] = []
        """What was given a number must not be freed: another tensor would get its address."""

    def new(self, x: Tensor) -> Ref:
        ref = Ref(len(self.alive), tuple(x.shape), x.dtype)
        self.alive.append(x)
        self.refs[id(x)] = ref
        return ref

    def seen(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in self.refs:
            return self.refs[id(x)]
        name, same = self.params.get(id(x), (None, True))
        return Known(x, name, same)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asked for by everything, and never part of the graph
            return func(*args)
        flat = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        of_input = any(id(x) in self.refs for x in flat)
        of_data, of_param = any(id(x) in self.data for x in flat), any(id(x) in self.params for x in flat)
        if of_input or (of_data and of_param and any(x.is_floating_point() for x in flat)):
            return self._record(func, args, kwargs)
        result = func(*args, **kwargs)
        outs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.alive += outs
        if of_data:
            self.data.update(map(id, outs))
        if of_param:
            source = next(self.params[id(x)] for x in flat if id(x) in self.params)
            view = len(outs) == 1 and outs[0].numel() == next(x for x in flat if id(x) in self.params).numel()
            self.params.update({id(x): (source[0], source[1] and view) for x in outs})
        return result

    def _record(self, func, args, kwargs):
        seen_args, seen_kwargs = tree_map(self.seen, (args, kwargs))
        name = func.overloadpacket.__name__
        written = args[0] if args else None
        if not self.graph.executed and not any(
            isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))
        ):
            args, kwargs = tree_map(
                lambda x: self.mode.from_tensor(x) if isinstance(x, Tensor) else x, (args, kwargs)
            )
        result = func(*args, **kwargs)
        if name in _CONSTANTS or name in ("full_like", "new_full"):
            value = _CONSTANTS.get(name, args[-1])
            made = torch.full(tuple(result.shape), value, dtype=result.dtype)
            self.alive.append(made)
            return made
        outs = [self.new(x) if isinstance(x, Tensor) else None for x in tree_leaves(result)]
        self.graph.nodes.append(Node(func, seen_args, seen_kwargs, outs))
        first = func._schema.arguments[0].alias_info if func._schema.arguments else None
        if first is not None and first.is_write and isinstance(result, Tensor) and outs[0] is not None:
            self._written(written, result, outs[0])
        return result

    def _written(self, target: Tensor, result: Tensor, now: Ref) -> None:
        """``target``, written to in place, is what came out; so is what shares its memory, as far as it
        reaches: the tensor it is a view of, and other views.
        """
        self.refs[id(target)] = now
        around = {id(x): x for x in self.alive if x is not target and x is not result}
        others = [x for x in around.values() if share_memory(x, target)]
        whole = max(others, key=lambda x: x.numel(), default=None)
        if whole is None:
            return
        if whole.numel() > target.numel():
            old = self.seen(whole)
            now = self._replace(whole, torch.ops.aten.slice_scatter.default, (old, now))
        for x in others:
            if x is whole and x.numel() > target.numel():
                continue
            if x.numel() == math.prod(now.shape):
                self._replace(x, torch.ops.aten.view.default, (now, list(x.shape)))
            else:
                place = (list(x.shape), list(x.stride()), x.storage_offset())
                self._replace(x, torch.ops.aten.as_strided.default, (now, *place))

    def _replace(self, x: Tensor, op: Any, args: tuple[Any, ...]) -> Ref:
        ref = self.new(x)
        self.graph.nodes.append(Node(op, args, {}, [ref]))
        return ref


@contextlib.contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Hooks would take the pass for a training step: none runs, but the pre-hooks that compute weights."""
    kept = [
        (m, key, m.__dict__[key])
        for m in model.modules()
        for key in (FORWARD_HOOKS, BACKWARD_HOOKS, BACKWARD_PRE_HOOKS)
        if m.__dict__.get(key)
    ]
    try:
        for module, key, hooks in kept:
            module.__dict__[key] = type(hooks)()
        yield
    finally:
        for module, key, hooks in kept:
            module.__dict__[key] = hooks


def call_arguments(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, Mapping):
        return (), dict(sample)
    return (tuple(sample), {}) if isinstance(sample, (tuple, list)) else ((sample,), {})


def trace(model: nn.Module, sample: Any, outputs=None) -> Graph:
    """The graph of ``model(*sample)``, in the mode (training or not) that the model is in.

    ``outputs``: from what the model returns to the tensors that a loss is taken of; ``output_tensors`` if
    None.
    """
    try:
        return _trace(model, sample, outputs or output_tensors, fake=True)
    # data-dependent control flow, an operation without shapes alone: the network's own forward can raise
    # anything
    except Exception:
        # A network that is broken raises its own error here again.
        return _trace(model, sample, outputs or output_tensors, fake=False)


def _trace(model: nn.Module, sample: Any, outputs, *, fake: bool) -> Graph:
    graph = Graph(executed=not fake)
    recorder = _Recorder(graph)
    mode = recorder.mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Each name its own tensor over the parameter's memory: a tied weight is told by the place that uses it.
    parameters = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    buffers = {name: b.clone() for name, b in model.named_buffers(remove_duplicate=False)}
    graph.parameters = parameters
    recorder.params = {id(p): (name, True) for name, p in parameters.items()}

    def enter(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if not x.is_floating_point():
            recorder.data.add(id(x))
            return x
        entered = mode.from_tensor(x.detach()) if fake else x.detach().clone()
        graph.inputs[recorder.new(entered).id] = x.detach()
        return entered

    args, kwargs = tree_map(enter, call_arguments(sample))
    devices = sorted({p.device.index or 0 for p in parameters.values() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.no_grad(), _without_hooks(model), recorder:
        result = torch.func.functional_call(
            model, {**parameters, **buffers}, args, kwargs, tie_weights=False, strict=False
        )
    graph.outputs = [recorder.refs[id(x)] for x in outputs(result) if id(x) in recorder.refs]
    return graph


def output_tensors(result: Any) -> list[Tensor]:
    """A tensor; the ``logits`` (else the first floating tensor) of a mapping; every floating tensor of a
    tuple.
    """
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        found = [x for x in result.values() if isinstance(x, Tensor) and x.is_floating_point()]
        return [result["logits"]] if isinstance(result.get("logits"), Tensor) else found[:1]
    return [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
