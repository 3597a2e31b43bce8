"""What rules work with: the values so far, the constants' fields, and what happens on the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from initscope.moments import axes as ax
from initscope.moments.axes import Axes
from initscope.moments.field import RULE, Field, worst
from initscope.moments.measure import measure
from initscope.moments.trace import Graph, Known, Node, Ref, compact
from initscope.moments.values import Pull, Value
from initscope.torch_internals import tree_leaves

WeightGradient = Callable[[Field], float]
"""From the gradient of a layer's output to the mean square of the gradient of its weight."""


@dataclass
class Use:
    """One use of a weight by an operation."""

    param: str
    output: int | None
    """The tensor that is this layer's output; None where the weight is only added to something."""
    node_output: int
    square: WeightGradient
    inputs: tuple[int, ...] = ()


@dataclass
class Context:
    graph: Graph
    values: dict[int, Value] = field(default_factory=dict)
    pulls: list[tuple[int, Pull]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    grads: dict[int, Field] = field(default_factory=dict)
    made: dict[int, str] = field(default_factory=dict)
    """How each tensor's field was made: the worst of the operations it came through."""
    own: dict[int, str] = field(default_factory=dict)
    """The same for the last operation alone."""
    made_back: dict[int, str] = field(default_factory=dict)
    """How each tensor's gradient was made: the worst of the operations between it and the outputs."""
    extra: dict[int, Any] = field(default_factory=dict)
    """What is not a field: attention's scores and weights before they meet the values."""
    sampled: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Names of operations without a rule: run on Gaussian tensors, or not even that."""
    _fields: dict[Any, tuple[Field, Tensor]] = field(default_factory=dict)
    """With the tensor, so that no other gets its address."""

    def value(self, ref: Ref) -> Value:
        return self.values[ref.id]

    def field(self, x: Any) -> Field:
        return self.values[x.id].field

    def put(
        self, node: Node, result: Field | Value, pull: Pull | None, *, how: str = RULE, output: int = 0
    ) -> Value:
        """Set the value of a node's output; ``pull`` says where its gradient goes."""
        ref = node.outputs[output]
        value = result if isinstance(result, Value) else Value(ref.id, result)
        self.values[ref.id] = value
        self.own[ref.id] = how
        self.made[ref.id] = worst(how, *(self.made.get(x.id, RULE) for x in refs(node)))
        if pull is not None:
            self.pulls.append((ref.id, pull))
        return value

    def constant(self, x: Known | Tensor, axes: Axes) -> Field:
        """The field of a known tensor that meets one with ``axes``, its dimensions in the same roles."""
        value = x.value if isinstance(x, Known) else x
        key = (id(value), axes)
        if key not in self._fields:
            self._fields[key] = (measure_constant(value, axes), value)
        return self._fields[key][0]

    def use(self, x: Any, node: Node, square: WeightGradient, *, output: int | None = None) -> None:
        """``x`` is a weight of this operation, if it is a parameter."""
        if isinstance(x, Known) and x.param is not None:
            rows = compact(x.value).numel() / max(self.graph.parameters[x.param].numel(), 1)
            if (
                rows != 1 and not x.same
            ):  # rows looked up, a slice, a view repeated: the gradient is spread over the whole parameter
                one = square
                square = lambda grad: one(grad) * rows  # noqa: E731
            self.uses.append(
                Use(x.param, output, node.outputs[0].id, square, tuple(r.id for r in refs(node)))
            )

    def add_grad(self, id: int, grad: Field) -> None:
        from initscope.moments.values import total

        self.grads[id] = total(self.grads[id], grad) if id in self.grads else grad


def refs(node: Node) -> list[Ref]:
    return [x for x in tree_leaves((node.args, node.kwargs)) if isinstance(x, Ref)]


def aligned(shape: tuple[int, ...], axes: Axes) -> Axes:
    """Roles for a constant's dimensions, from the right, of the tensor it meets."""
    padded = ((),) * max(0, len(shape) - len(axes)) + tuple(axes)
    result = []
    for size, part in zip(shape, padded[len(padded) - len(shape) :], strict=True):
        whole = ax.size(part)
        result.append(() if size == 1 else part if size == whole else ax.axis(ax.main_role(part), size))
    return tuple(result)


def measure_constant(value: Tensor, axes: Axes) -> Field:
    """Its field; infinities, as masks have them, count as absent."""
    value = value.detach()
    finite = value.double()
    if finite.numel() and not bool(finite.isfinite().all()):
        finite = finite.nan_to_num(0.0, 0.0, 0.0)
    found = measure(finite, aligned(tuple(value.shape), axes))
    return replace(found, mean=float(finite.mean()) if finite.numel() else 0.0)
