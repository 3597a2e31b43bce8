"""Moments over the graph of any module: what each layer's values and gradients are before anything is
computed from data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from initscope.moments import attention, linear, norms, pointwise, sampled, shapes
from initscope.moments import axes as ax
from initscope.moments.context import Context, Use
from initscope.moments.field import RULE, Field, constant, independent, worst
from initscope.moments.measure import measure
from initscope.moments.trace import Graph, Node, Ref, trace
from initscope.moments.values import Value

RULES: dict[str, Callable[[Context, Node], bool]] = {
    **pointwise.RULES,
    **linear.RULES,
    **norms.RULES,
    **shapes.RULES,
    **attention.RULES,
}
"""By the name of the ATen operation. A rule returns False for arguments that it does not know."""
METRICS = ("activation_rms", "signal_std", "correlation", "activation_grad_rms", "grad_rms")
OutputGradient = Callable[[int, Field], Field]
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
    made_back: str
    """The same for the gradients, whose way is the one from the outputs as well."""
    uses: int
    """How often the weight is multiplied by; the numbers are over all uses."""
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
    output_grad: OutputGradient | None = None,
    outputs: Callable[[Any], list[Tensor]] | None = None,
) -> Prediction:
    """Each layer's moments for the weights that ``model`` has, in the mode (training or not) it is in.

    ``sample_inputs``: a tensor, a tuple (arguments) or a mapping (keywords). Of floating tensors only the
    moments are read: mean, mean square, and covariances between positions and samples; ``input_stats`` (mean,
    rms, correlation between samples) takes their place. Integers are read, because they choose rows of
    tables. ``output_grad_rms``: root mean square of the loss's gradient for the outputs, independent from
    entry to entry; ``output_grad`` takes its place: from an output's number and field to its gradient's.
    ``outputs``: from what the model returns to the tensors that the loss is taken of.
    """
    return run(
        trace(model, sample_inputs, outputs),
        model,
        input_stats=input_stats,
        output_grad_rms=output_grad_rms,
        output_grad=output_grad,
    )


def run(
    graph: Graph,
    model: nn.Module,
    *,
    input_stats: Mapping[str, float] | None = None,
    output_grad_rms: float = 1.0,
    output_grad: OutputGradient | None = None,
) -> Prediction:
    """The prediction from a graph that was traced."""
    ctx = forward(graph, input_stats)
    backward(ctx, output_grad_rms, output_grad)
    from initscope.moments.layers import collect

    return collect(ctx, model)


def forward(
    graph: Graph,
    input_stats: Mapping[str, float] | None = None,
    *,
    given: Callable[[ax.Axes], Field] | None = None,
    after: Callable[[Context, Node, list[Use]], bool] | None = None,
) -> Context:
    """The values' fields. ``given``: an input's field in place of the measured one. ``after`` is told of each
    operation and the weights that it uses; where it says that it has changed them, the operation's rule is
    applied again.
    """
    ctx = Context(graph)
    for id, tensor in graph.inputs.items():
        axes = ax.default_axes(tuple(tensor.shape))
        if given is not None:
            field = given(axes)
        else:
            field = _given(axes, input_stats) if input_stats else measure(tensor, axes)
        ctx.values[id] = Value(id, field)
        ctx.made[id] = RULE
    for node in graph.nodes:
        if node.name in _SKIPPED or not any(isinstance(o, Ref) for o in node.outputs):
            continue
        pulls, uses = len(ctx.pulls), len(ctx.uses)
        _apply(ctx, node)
        if after is not None and len(ctx.uses) > uses and after(ctx, node, ctx.uses[uses:]):
            del ctx.pulls[pulls:], ctx.uses[uses:]
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


def backward(ctx: Context, output_grad_rms: float, output_grad: OutputGradient | None = None) -> None:
    for number, ref in enumerate(ctx.graph.outputs):
        field = ctx.values[ref.id].field
        known = output_grad is not None
        ctx.add_grad(
            ref.id, output_grad(number, field) if known else independent(field.axes, output_grad_rms**2)
        )
        # What the loss makes of the outputs is as good as the outputs are known.
        ctx.made_back[ref.id] = ctx.made.get(ref.id, RULE) if known else RULE
    for out, pull in reversed(ctx.pulls):
        if out in ctx.grads:
            how = worst(ctx.made_back.get(out, RULE), ctx.own.get(out, RULE))
            for id, grad in pull(ctx.grads[out]):
                ctx.add_grad(id, grad)
                ctx.made_back[id] = worst(how, ctx.made_back.get(id, RULE))


__all__ = ["METRICS", "Layer", "Prediction", "predict"]
