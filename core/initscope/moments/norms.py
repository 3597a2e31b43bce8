"""Rules of normalizations: minus the mean over some atoms, over the standard deviation, times gamma, plus
beta.

One formula for all: over channels (LayerNorm), channels of a group and positions (GroupNorm), samples and
positions (BatchNorm; Yang et al. 2019), positions (InstanceNorm). On the way back the gradient loses its mean
and its part along the output, over the same atoms, and is divided by the standard deviation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from initscope.moments import axes as ax
from initscope.moments.axes import Axis
from initscope.moments.context import Context
from initscope.moments.field import Field, averaged, pair_sum
from initscope.moments.trace import Known, Node, Ref
from initscope.moments.values import add, multiply


def normalized(x: Field, over: Axis, epsilon: float, *, center: bool = True) -> tuple[Field, float]:
    """(normalized field, factor of the variance)."""
    if center:
        mean_within, mean_apart, _, _ = averaged(x, over)
    else:
        mean_within, mean_apart = np.zeros_like(x.within), np.zeros_like(x.apart)
    variance = max(x.square - mean_within[0], 0.0)
    factor = 1 / (variance + epsilon)
    mean = 0.0 if center else x.mean * factor**0.5
    cross = 0.0 if center else x.cross * factor
    out = Field(
        x.axes, (x.within - mean_within) * factor, (x.apart - mean_apart) * factor, mean, cross, spread=0.0
    )
    return out, factor


def backward(grad: Field, out: Field, factor: float, over: Axis, *, center: bool = True) -> Field:
    within, between = grad.within.copy(), grad.between.copy()
    inside, outside = grad.along or (grad.within * out.within, grad.between * out.between)
    product = Field(grad.axes, inside, inside - outside)
    along_within, along_apart, _, _ = averaged(product, over)
    if center:
        mean_within, mean_apart, _, _ = averaged(grad, over)
        within, between = within - mean_within, between - (mean_within - mean_apart)
    within, between = within - along_within * out.within, between - (along_within - along_apart) * out.between
    within[0] = max(within[0], 0.0)
    cross = grad.cross if not center else 0.0
    return replace(
        grad,
        within=within * factor,
        apart=(within - between) * factor,
        cross=cross * factor,
        far=0.0,
        mean=0.0,
        along=None,
    )


def _norm(
    ctx: Context,
    node: Node,
    x: Ref,
    over: Axis,
    epsilon: float,
    weight,
    bias,
    channel_dims: tuple[int, ...],
    *,
    center: bool = True,
) -> None:
    field = ctx.field(x)
    core, factor = normalized(field, over, epsilon, center=center)
    _affine(
        ctx,
        node,
        x,
        core,
        weight,
        bias,
        channel_dims,
        lambda grad: backward(grad, core, factor, over, center=center),
    )


def _affine(ctx: Context, node: Node, x: Ref, core: Field, weight, bias, channel_dims, back) -> None:
    def shaped(constant: Known) -> Known:
        shape = [core_size if i in channel_dims else 1 for i, core_size in enumerate(x.shape)]
        return Known(constant.value.reshape(shape), constant.param, constant.same)

    out, gamma = core, None
    if isinstance(weight, Known):
        gamma = ctx.constant(shaped(weight), core.axes)
        out = replace(multiply(core, gamma, core.axes), spread=core.spread)
    if isinstance(bias, Known):
        out = add(out, ctx.constant(shaped(bias), core.axes), core.axes)
    rest = tuple(() if i in channel_dims else part for i, part in enumerate(core.axes))

    def pull(grad: Field):
        if gamma is not None:
            g2 = gamma.square
            along = None if grad.along is None else (grad.along[0] * g2, grad.along[1] * g2)
            grad = replace(multiply(grad, gamma, grad.axes), mean=0.0, spread=grad.spread, along=along)
        yield x.id, back(grad)

    ctx.put(node, out, pull)
    ctx.use(weight, node, lambda grad: pair_sum(grad, core, rest), output=node.outputs[0].id)
    ctx.use(
        bias,
        node,
        lambda grad: pair_sum(
            grad, replace(core, within=np.ones_like(core.within), apart=np.zeros_like(core.apart)), rest
        ),
    )


def layer_norm(ctx: Context, node: Node) -> bool:
    x, shape = node.args[:2]
    weight, bias, epsilon = (*node.args[2:5], None, None, 1e-5)[:3]
    dims = tuple(range(len(x.shape) - len(shape), len(x.shape)))
    axes = ctx.field(x).axes
    _norm(ctx, node, x, tuple(a for d in dims for a in axes[d]), float(epsilon or 1e-5), weight, bias, dims)
    return True


def rms_norm(ctx: Context, node: Node) -> bool:
    x, shape = node.args[:2]
    weight = node.args[2] if len(node.args) > 2 else None
    epsilon = node.args[3] if len(node.args) > 3 and node.args[3] is not None else torch.finfo(x.dtype).eps
    dims = tuple(range(len(x.shape) - len(shape), len(x.shape)))
    axes = ctx.field(x).axes
    _norm(
        ctx,
        node,
        x,
        tuple(a for d in dims for a in axes[d]),
        float(epsilon),
        weight,
        None,
        dims,
        center=False,
    )
    return True


def group_norm(ctx: Context, node: Node) -> bool:
    x, weight, bias, _, channels, _, groups, epsilon = node.args[:8]
    axes = ctx.field(x).axes
    inside = channels // groups
    over = tuple(a for part in axes[2:] for a in part)
    if inside > 1:
        over = (ax.Atom(ax.main_role(axes[1]), inside), *over)
    _norm(ctx, node, x, over, float(epsilon), weight, bias, (1,))
    return True


def batch_norm(ctx: Context, node: Node) -> bool:
    x, weight, bias = node.args[:3]
    if node.name == "_native_batch_norm_legit" and len(node.args) == 6:  # without running statistics
        mean, var, training, epsilon = None, None, *node.args[3:4], node.args[5]
    elif node.name in ("_native_batch_norm_legit", "native_batch_norm"):
        mean, var, training, epsilon = *node.args[3:6], node.args[7]
    else:
        return False
    axes = ctx.field(x).axes
    if training or not isinstance(var, Known):
        over = tuple(a for i, part in enumerate(axes) if i != 1 for a in part)
        _norm(ctx, node, x, over, float(epsilon), weight, bias, (1,))
        return True
    factor = float((1 / (var.value.double() + epsilon)).mean())
    shift = -mean.value.double() * (var.value.double() + epsilon).rsqrt()
    core = ctx.field(x).scaled(factor)
    core = add(core, ctx.constant(Known(shift.reshape(-1, *[1] * (len(axes) - 2))), axes), axes)
    _affine(ctx, node, x, core, weight, bias, (1,), lambda grad: grad.scaled(factor))
    return True


RULES = {
    "native_layer_norm": layer_norm,
    "_fused_rms_norm": rms_norm,
    "rms_norm": rms_norm,
    "native_group_norm": group_norm,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
}
