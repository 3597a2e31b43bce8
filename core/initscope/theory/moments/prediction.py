"""Moments over the graph of any module: what each layer's values and gradients are before anything is
computed from data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from initscope.theory.moments import attention, linear, norms, pointwise, sampled, shapes
from initscope.theory.moments import axes as ax
from initscope.theory.moments.context import Context
from initscope.theory.moments.field import RULE, Field, constant, independent, worst
from initscope.theory.moments.measure import measure
from initscope.theory.moments.trace import Graph, Node, Ref, trace
from initscope.theory.moments.values import Value

RULES: dict[str, Callable[[Context, Node], bool]] = {
    **pointwise.RULES,
    **linear.RULES,
    **norms.RULES,
    **shapes.RULES,
    **attention.RULES,
}
"""By the name of the ATen operation. A rule returns False for arguments that it does not know."""
METRICS = ("activation_rms", "signal_std", "correlation", "activation_grad_rms", "grad_rms")
_SKIPPED = ("device", "sym_size", "is_same_size")


@dataclass(frozen=True)
class Layer:
    """One layer's numbers: a weight and the output of the operation that multiplies by it.

    ``correlation`` and ``signal_std`` are None for a batch of one; all but ``grad_rms`` are None for a weight
    that is only added. ``band``: factors by which, in 95 of 100 draws of the weights, a measurement lies at
    most above or below each number.
    """

    layer: str
    parameter: str
    kind: str
    activation_rms: float | None
    signal_std: float | None
    correlation: float | None
    activation_grad_rms: float | None
    grad_rms: float | None
    made: str
    """``rule``, ``sampled`` (an operation without a rule lies on the way) or ``unknown``."""
    band: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    layers: list[Layer]
    """In order of execution."""
    sampled: tuple[str, ...]
    """Operations without a rule that were run on Gaussian tensors."""
    unknown: tuple[str, ...]
    """Operations that could not be run either: their inputs' moments were carried on."""
    executed: bool
    """Whether the network had to be run for real to find its graph."""
    batch: int


def predict(
    model: nn.Module,
    sample_inputs: Any,
    *,
    input_stats: Mapping[str, float] | None = None,
    output_grad_rms: float = 1.0,
    outputs: Callable[[Any], list[Tensor]] | None = None,
) -> Prediction:
    """Each layer's moments for the weights that ``model`` has, in the mode (training or not) it is in.

    ``sample_inputs``: a tensor, a tuple (arguments) or a mapping (keywords). Of floating tensors only the
    moments are read: mean, mean square, and covariances between positions and samples; ``input_stats`` (mean,
    rms, correlation between samples) takes their place. Integers are read, because they choose rows of
    tables. ``output_grad_rms``: root mean square of the loss's gradient for the outputs, independent from
    entry to entry. ``outputs``: from what the model returns to the tensors that the loss is taken of.
    """
    return run(
        trace(model, sample_inputs, outputs), model, input_stats=input_stats, output_grad_rms=output_grad_rms
    )


def run(
    graph: Graph,
    model: nn.Module,
    *,
    input_stats: Mapping[str, float] | None = None,
    output_grad_rms: float = 1.0,
) -> Prediction:
    """The prediction from a graph that was traced."""
    ctx = forward(graph, input_stats)
    backward(ctx, output_grad_rms)
    from initscope.theory.moments.layers import collect

    return collect(ctx, model)


def forward(graph: Graph, input_stats: Mapping[str, float] | None = None) -> Context:
    ctx = Context(graph)
    for id, tensor in graph.inputs.items():
        axes = ax.default_axes(tuple(tensor.shape))
        ctx.values[id] = Value(id, _given(axes, input_stats) if input_stats else measure(tensor, axes))
        ctx.made[id] = RULE
    for node in graph.nodes:
        if node.name in _SKIPPED or not any(isinstance(o, Ref) for o in node.outputs):
            continue
        _apply(ctx, node)
    return ctx


def _given(axes: ax.Axes, stats: Mapping[str, float]) -> Field:
    """Independent entries with a mean, mean square and correlation between samples."""
    square, mean = stats["rms"] ** 2, stats.get("mean", 0.0)
    shared = max(stats.get("correlation", mean**2 / square if square else 0.0) * square - mean**2, 0.0)
    private = independent(axes, square - shared, mean)
    common = constant(axes, shared, 0.0)
    return Field(
        axes,
        private.within + np.where(np.arange(len(private.within)) == 0, common.within, 0.0),
        private.apart,
        mean,
        mean**2,
    )


def _apply(ctx: Context, node: Node) -> None:
    scores = [
        x for x in node.args if isinstance(x, Ref) and isinstance(ctx.extra.get(x.id), attention.Scores)
    ]
    if scores and node.name not in ("bmm", "matmul") and attention.carried(ctx, node):
        return
    rule = RULES.get(node.name)
    if (rule is not None and rule(ctx, node)) or (
        node.name in ("bmm", "matmul") and attention.product(ctx, node)
    ):
        pass
    else:
        sampled.sample(ctx, node)
    first = next(o for o in node.outputs if isinstance(o, Ref))
    own = worst(*(ctx.made.get(o.id, RULE) for o in node.outputs if isinstance(o, Ref)))
    inherited = worst(*(ctx.made.get(x.id, RULE) for x in node.args if isinstance(x, Ref)))
    if own != inherited or (rule is None and first.id in ctx.made):
        (ctx.unknown if own == sampled.UNKNOWN else ctx.sampled).append(node.name)
    for i, out in enumerate(node.outputs):
        if isinstance(out, Ref) and out.id not in ctx.values:  # indices, saved statistics
            ctx.put(node, independent(ax.default_axes(out.shape), 0.0), None, output=i)


def backward(ctx: Context, output_grad_rms: float) -> None:
    for ref in ctx.graph.outputs:
        ctx.add_grad(ref.id, independent(ctx.values[ref.id].field.axes, output_grad_rms**2))
    for out, pull in reversed(ctx.pulls):
        if out in ctx.grads:
            for id, grad in pull(ctx.grads[out]):
                ctx.add_grad(id, grad)


__all__ = ["METRICS", "Layer", "Prediction", "predict"]
