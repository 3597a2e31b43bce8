"""From the moments of a graph to rows, one a weight, named as the module that holds it."""

from __future__ import annotations

import math

from torch import nn

from initscope.moments.context import Context, Use
from initscope.moments.field import RULE, worst
from initscope.moments.prediction import METRICS, Layer, Prediction

_MODEL_ERROR = 0.12
"""Standard deviation of log(measured / predicted) that no width takes away: the approximations' own."""
_WEIGHT_ERROR = 0.2
"""The same for a weight's gradient, which also needs how values and gradients are alike over positions."""
_LAYER_ERROR = 0.012
"""What each weight that the gradient has come through adds to it. All three are set by resnet50, densenet121,
googlenet, regnet, mobilenet, efficientnet and swin; other networks are for checking
(tests/benchmarks/moments.py prints the share inside).
"""


def collect(ctx: Context, model: nn.Module) -> Prediction:
    kinds = {name: type(module).__name__.lower() for name, module in model.named_modules()}
    by_param: dict[str, list[Use]] = {}
    for use in ctx.uses:
        by_param.setdefault(use.param, []).append(use)
    held: dict[str, int] = {}
    for param in by_param:
        if not _is_bias(param):
            owner = param.rpartition(".")[0]
            held[owner] = held.get(owner, 0) + 1
    rows = []
    matrices = {use.param: i for i, use in enumerate(ctx.uses) if ctx.graph.parameters[use.param].dim() > 1}
    first = {use.param: i for i, use in reversed(list(enumerate(ctx.uses)))}
    memory: dict[tuple[int, tuple[int, ...]], list[Use]] = {}
    """Uses of one weight under all its names: their gradients are added."""
    for param, uses in by_param.items():
        memory.setdefault(_place(ctx, param), []).extend(uses)
    for param, uses in by_param.items():
        owner = param.rpartition(".")[0]
        if _is_bias(param) and owner in held:
            continue
        name = owner if held.get(owner, 1) == 1 and owner else param
        rows.append(
            _row(
                ctx,
                name,
                param,
                kinds.get(owner, ""),
                uses,
                memory[_place(ctx, param)],
                sum(at > first[param] for at in matrices.values()),
            )
        )
    samples = next((t.shape[0] for t in ctx.graph.inputs.values() if t.dim()), 0) or _batch(ctx)
    return Prediction(
        rows,
        tuple(dict.fromkeys(ctx.sampled)),
        tuple(dict.fromkeys(ctx.unknown)),
        ctx.graph.executed,
        samples,
    )


def _place(ctx: Context, param: str) -> tuple[int, tuple[int, ...]]:
    weight = ctx.graph.parameters[param]
    return (weight.data_ptr(), tuple(weight.shape)) if weight.numel() else (id(weight), ())


def _batch(ctx: Context) -> int:
    return max((ctx.values[u.output].field.samples for u in ctx.uses if u.output is not None), default=1)


def _is_bias(param: str) -> bool:
    return "bias" in param.rpartition(".")[2]


def _row(
    ctx: Context, name: str, param: str, kind: str, uses: list[Use], everywhere: list[Use], crossed: int
) -> Layer:
    squares, made, made_back, spread_grad, spread = 0.0, [RULE], [RULE], 0.0, 0.0
    fields = [ctx.values[use.output].field for use in uses if use.output is not None]
    inputs = [ctx.values[ref].field.spread for use in uses for ref in use.inputs if ref in ctx.values]
    for use in everywhere:
        made.append(ctx.made.get(use.node_output, RULE))
        at = use.node_output if use.output is None else use.output
        made_back.append(ctx.made_back.get(at, RULE))
        grad = ctx.grads.get(at)
        if grad is not None:
            squares += use.square(grad)
            spread_grad = max(spread_grad, grad.spread)
    values = dict.fromkeys(METRICS)
    values["grad_rms"] = math.sqrt(max(squares, 0.0))
    spread = fields[0].spread if fields else 0.0
    grad_spread = spread_grad + max(inputs, default=spread)
    values["grad_rms"] *= median(grad_spread)
    outputs = [use.output for use in uses if use.output is not None]
    if outputs:
        field = fields[0]
        square = sum(f.square for f in fields) / len(fields)
        values["activation_rms"] = math.sqrt(max(square, 0.0)) * median(spread)
        batch = field.samples
        if batch > 1:
            apart = max(sum(float(f.apart[0]) for f in fields) / len(fields), 0.0)
            values["signal_std"] = math.sqrt(apart * (1 - 1 / batch)) * median(spread)
            values["correlation"] = 1 - apart / square if square > 0 else None
        grads = [ctx.grads[id].square for id in outputs if id in ctx.grads]
        values["activation_grad_rms"] = math.sqrt(max(sum(grads) / len(outputs), 0.0)) * median(spread_grad)
    return Layer(
        layer=name,
        parameter=param,
        kind=kind,
        made=worst(*made),
        made_back=worst(*made, *made_back),
        uses=len(everywhere),
        band=_band(spread, spread_grad, grad_spread, crossed),
        **values,
    )


def median(spread: float) -> float:
    """From the root of the mean square over draws of the weights to the median draw's, both log-normal:
    exp(-spread / 4).
    """
    return math.exp(-spread / 4)


def _band(forward: float, backward: float, both: float, crossed: int) -> dict[str, float]:
    """Half of log(square)'s spread is that of log(rms); weights' gradients are made of values and
    gradients.
    """

    def factor(spread: float, *errors: float) -> float:
        return math.exp(1.96 * math.sqrt(sum(e * e for e in errors) + spread / 4))

    way = _LAYER_ERROR * crossed
    return {
        "activation_rms": factor(forward, _MODEL_ERROR),
        "signal_std": factor(forward, _MODEL_ERROR),
        "activation_grad_rms": factor(backward, _MODEL_ERROR, way),
        "grad_rms": factor(both, _WEIGHT_ERROR, way),
    }
