"""Rules of products with a weight: linear layers, matrix products, convolutions, embeddings.

With independent weights of mean square s2 a sum over n inputs has the covariance n s2 times that of its
inputs, for any two samples and positions (Poole et al. 2016, equation 3; for maps Xiao et al. 2018, equation
2.5; taps on zero padding add nothing); on the way back the same with the outputs that an input reaches (He et
al. 2015, equation 13). The moments are the actual weight's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from initscope.moments import axes as ax
from initscope.moments.axes import CHANNEL, POSITION, RINGS, SAMPLE, Axis
from initscope.moments.context import Context
from initscope.moments.field import Field, averaged, moved, pair_sum
from initscope.moments.measure import measure
from initscope.moments.trace import Known, Node, Ref, compact
from initscope.moments.values import add


def weight_moments(weight: Tensor) -> tuple[float, float]:
    """(variance, mean) of a weight's entries; the mean is 0 where it is no more than the noise of so many
    draws.
    """
    weight = compact(weight.detach()).double()
    square, mean = float(weight.square().mean()), float(weight.mean())
    noise = math.sqrt(square / max(weight.numel(), 1))
    if abs(mean) < 5 * noise:
        return square, 0.0
    return max(square - mean**2, 0.0), mean


def contract(x: Field, over: Axis, moments: tuple[float, float], rest: ax.Axes, width: int) -> Field:
    """Sum over the atoms ``over`` with independent weights; ``rest``: the other axes, to which the caller
    adds the new one.

    Where no channels are summed, those that stay become positions: different ones share the weights.
    """
    variance, mean = moments
    n = ax.size(over)
    roles = {atom.role for atom in over}
    left = ax.atoms(rest)
    if CHANNEL not in roles and POSITION in roles and any(a.role == CHANNEL for a in left):
        x = x.swapped()
        rest = tuple(
            tuple(a._replace(role={POSITION: CHANNEL, CHANNEL: POSITION}.get(a.role, a.role)) for a in part)
            for part in rest
        )
        over = tuple(a._replace(role=CHANNEL) if a.role == POSITION else a for a in over)
        left = ax.atoms(rest)
    within, apart = x.within.copy(), x.apart.copy()
    if not any(a.role == POSITION for a in left):
        within[:], apart[:] = within[0], apart[0]
    if SAMPLE in roles:
        apart = np.zeros(RINGS)
    within, apart, coherent = n * variance * within, n * variance * apart, 0.0
    if mean:
        all_within, all_apart, _, _ = averaged(x, over)
        within, apart = within + (n * mean) ** 2 * all_within, apart + (n * mean) ** 2 * all_apart
        coherent = (n * mean) ** 2 * all_within[0]
    out = Field(rest, within, apart, n * mean * x.mean, float(coherent), float(coherent))
    return replace(out, spread=x.spread + 2 * out.coherence() / max(width, 1))


def _product(
    ctx: Context,
    node: Node,
    x: Ref,
    weight: Known,
    x_dim: int,
    w_in: int,
    w_out: int | None,
    out_dim: int,
    bias=None,
    alpha: float = 1.0,
) -> None:
    """out = x . weight over dimension ``x_dim``; the weight's own output dimension becomes ``out_dim``."""
    field = ctx.field(x)
    x_dim %= len(field.axes)
    over = field.axes[x_dim] or (ax.Atom(CHANNEL, 1),)
    moments = weight_moments(weight.value * alpha if alpha != 1 else weight.value)
    outputs = weight.value.shape[w_out] if w_out is not None else 1
    rest = tuple(part for i, part in enumerate(field.axes) if i != x_dim)
    new = ax.axis(CHANNEL, outputs)
    out = contract(field, over, moments, rest, outputs)
    if w_out is not None:
        at = out_dim % (len(rest) + 1)
        out = replace(out, axes=(*out.axes[:at], new, *out.axes[at:]))
    if isinstance(bias, Known):
        out = add(out, ctx.constant(bias, out.axes), out.axes)
    node_id = node.outputs[0].id

    def pull(grad: Field):
        g_rest = tuple(
            part for i, part in enumerate(grad.axes) if w_out is None or i != out_dim % len(grad.axes)
        )
        g_over = (
            (grad.axes[out_dim % len(grad.axes)] or (ax.Atom(CHANNEL, 1),))
            if w_out is not None
            else (ax.Atom(CHANNEL, 1),)
        )
        back = contract(grad, g_over, moments, g_rest, ax.size(over))
        axes = (*back.axes[:x_dim], field.axes[x_dim], *back.axes[x_dim:])
        yield x.id, replace(back, axes=axes, mean=0.0).like(field.axes)

    def square(grad: Field) -> float:
        mine = field
        if CHANNEL not in {a.role for a in over} and any(a.role == CHANNEL for a in ax.atoms(rest)):
            mine = field.swapped()
        keep = tuple(part for i, part in enumerate(mine.axes) if i != x_dim)
        return pair_sum(grad.like(out.axes), mine, keep) * alpha**2

    ctx.put(node, out, pull)
    ctx.use(weight, node, square, output=node_id)
    if isinstance(bias, Known):
        ctx.use(bias, node, lambda grad: pair_sum(grad, _ones(grad), grad.axes), output=None)


def _ones(like: Field) -> Field:
    return replace(like, within=np.ones(RINGS), apart=np.zeros(RINGS))


def addmm(ctx: Context, node: Node) -> bool:
    bias, a, b = node.args[:3]
    alpha = float(node.kwargs.get("alpha", 1))
    if node.kwargs.get("beta", 1) != 1 or isinstance(bias, Ref):
        return False
    return _matmul(ctx, node, a, b, bias, alpha)


def mm(ctx: Context, node: Node) -> bool:
    return _matmul(ctx, node, *node.args[:2])


def _matmul(ctx: Context, node: Node, a, b, bias=None, alpha: float = 1.0) -> bool:
    if isinstance(a, Ref) and isinstance(b, Known):
        _product(ctx, node, a, b, -1, -2, -1 if b.value.dim() > 1 else None, -1, bias, alpha)
    elif isinstance(a, Known) and isinstance(b, Ref):
        _product(
            ctx, node, b, a, 0 if len(b.shape) < 3 else -2, -1, -2, 0 if len(b.shape) < 3 else -2, bias, alpha
        )
    else:
        return False
    return True


def convolution(ctx: Context, node: Node) -> bool:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args[:9]
    if not isinstance(x, Ref) or not isinstance(weight, Known):
        return False
    field = ctx.field(x)
    kernel = weight.value.shape[2:]
    out_shape = node.outputs[0].shape
    variance, mean = weight_moments(weight.value)
    inputs = x.shape[1] // groups
    outputs = out_shape[1] // groups
    ins, outs = x.shape[2:], out_shape[2:]
    # Taps that fall on the input, of all outputs and taps; for a transposed convolution the two sides are
    # exchanged.
    small, big = (ins, outs) if transposed else (outs, ins)
    sides = [_valid(*side) for side in zip(big, kernel, stride, padding, dilation, small, strict=True)]
    pairs = math.prod(int(valid.sum()) for valid in sides)
    """(position, tap) pairs in all that carry something."""
    n_in, n_out = math.prod(ins), math.prod(outs)
    shift = math.log2(math.prod(stride)) / max(len(stride), 1)
    axes = (field.axes[0], ax.axis(CHANNEL, out_shape[1]), *(ax.axis(POSITION, n) for n in outs))
    down, up = (not transposed, transposed)
    gain = inputs * pairs / n_out

    lost = _border(sides, small)
    lost_back = _border(sides, big) if shift == 0 else lost

    def through(rings: np.ndarray, shrink: bool, from_axes, to_axes) -> np.ndarray:
        lost_here = lost if to_axes is axes else lost_back
        return (
            moved(rings, shift) if shrink else _spread_rings(rings, shift, from_axes, to_axes)
        ) * lost_here

    within, apart = (
        gain * variance * through(r, down, field.axes, axes) for r in (field.within, field.apart)
    )
    if mean:  # the coherent part: the mean over the taps, as if they saw neighbouring positions
        window = tuple(ax.Atom(POSITION, k, d) for k, d in zip(kernel, dilation, strict=True) if k > 1)
        mixed, mixed_apart, _, _ = averaged(replace(field, axes=(field.axes[0], (), window)), window)
        cross = field.cross if inputs > 1 else field.square
        factor = (mean * inputs * pairs / n_out) ** 2
        ratio = (cross + (field.square - cross) / inputs) / field.square if field.square > 0 else 1.0
        within, apart = within + factor * ratio * mixed, apart + factor * ratio * mixed_apart
    if not any(axes[2:]):
        within[:], apart[:] = within[0], apart[0]
    out = Field(
        axes, within, apart, gain * mean * field.mean, (gain * mean * field.mean) ** 2, spread=field.spread
    )
    out = replace(out, spread=out.spread + 2 * out.coherence() / out_shape[1])
    if isinstance(bias, Known):
        out = add(out, ctx.constant(Known(bias.value.reshape(-1, *[1] * len(outs)), bias.param), axes), axes)

    def pull(grad: Field):
        back = outputs * pairs / n_in * (variance + mean**2)
        within, between = (back * through(r, up, grad.axes, field.axes) for r in (grad.within, grad.between))
        if not any(field.axes[2:]):
            within[:], between[:] = within[0], between[0]
        found = Field(field.axes, within, within - between, 0.0, 0.0)
        yield x.id, replace(found, spread=grad.spread + 2 * found.coherence() / x.shape[1])

    def square(grad: Field) -> float:
        one, other = (grad, field) if not transposed else (field, grad)
        return pair_sum(one, other, one.axes, shift) * pairs / (math.prod(small) * math.prod(kernel))

    ctx.put(node, out, pull)
    ctx.use(weight, node, square, output=node.outputs[0].id)
    if isinstance(bias, Known):
        ctx.use(bias, node, lambda grad: pair_sum(grad, _ones(grad), grad.axes))
    return True


@lru_cache(maxsize=4096)
def _valid(size: int, kernel: int, stride: int, padding: int, dilation: int, outputs: int) -> np.ndarray:
    """For each tap along one side, the number of outputs for which it does not fall on padding."""
    at = np.arange(outputs)[:, None] * stride - padding + np.arange(kernel)[None] * dilation
    return ((at >= 0) & (at < size)).sum(0)


def _border(sides: list[np.ndarray], outputs: tuple[int, ...]) -> np.ndarray:
    """By how much zero padding weakens the covariance of two positions more than the mean square, a ring.

    They share only the taps that are inside for both: of m positions at which a tap is inside, m - l pairs
    have the distance l.
    """
    result = np.ones(RINGS)
    for valid, n in zip(sides, outputs, strict=True):
        lags = np.arange(n)
        both = np.maximum(valid[:, None] - lags, 0).sum(0)
        both, whole = np.where(lags == 0, both, 2 * both), np.where(lags == 0, n - lags, 2 * (n - lags))
        share = valid.sum() / n
        for ring in range(1, RINGS):
            near = lags < 2**ring
            result[ring] *= both[near].sum() / whole[near].sum() / share if share else 1.0
    return result


def _spread_rings(rings: np.ndarray, shift: float, coarse: ax.Axes, fine: ax.Axes) -> np.ndarray:
    """Covariances on a map 2**shift times finer, where only positions a multiple of the stride apart share a
    weight.

    Ring k of the coarse map becomes ring k + shift; the sum over all pairs stays what it is per position.
    """
    if shift == 0:
        return rings.copy()
    few, many = ax.ring_counts(ax.positions(coarse)), ax.ring_counts(ax.positions(fine))
    result = np.zeros(RINGS)
    result[0] = rings[0]
    sums = np.zeros(RINGS)
    for ring in range(1, RINGS):
        at = ring + shift
        low = min(math.floor(at), RINGS - 1)
        share = at - math.floor(at)
        sums[low] += (1 - share) * few[ring] * rings[ring]
        sums[min(low + 1, RINGS - 1)] += share * few[ring] * rings[ring]
    for ring in range(1, RINGS):
        if many[ring] > 0:
            result[ring] = sums[ring] / many[ring]
    return result


def embedding(ctx: Context, node: Node) -> bool:
    """Rows of a table: the field is that of the rows that were looked up, with tokens as positions."""
    table, ids = node.args[:2]
    if not isinstance(table, Known) or not isinstance(ids, Known):
        return False
    shape = node.outputs[0].shape
    rows = table.value[ids.value.reshape(-1)].reshape(shape)
    axes = ax.default_axes(shape)
    measured = measure(rows, axes)
    flat = ids.value.reshape(shape[0], -1) if len(shape) > 2 else ids.value.reshape(-1, 1)
    lookups = flat.numel()

    def pairs(groups) -> float:
        """Pairs of look-ups of the same row, counted within each group."""
        return float(sum((torch.bincount(g).double().square().sum() - len(g)).item() for g in groups))

    of_sample, of_place, all_pairs = pairs(flat), pairs(flat.T), pairs([flat.reshape(-1)])

    def square(grad: Field) -> float:
        """Rows that are looked up n times sum n gradients."""
        total = (
            lookups * grad.square + of_sample * grad.others(grad.within) + of_place * float(grad.between[0])
        )
        total += (all_pairs - of_sample - of_place) * grad.others(grad.between)
        return max(total, 0.0) / table.value.shape[0]

    ctx.put(node, measured, lambda grad: iter(()))
    ctx.use(table, node, square, output=node.outputs[0].id)
    return True


RULES = {
    "addmm": addmm,
    "mm": mm,
    "bmm": mm,
    "mv": mm,
    "_grouped_mm": mm,
    "convolution": convolution,
    "embedding": embedding,
}
__all__ = ["RULES", "contract", "weight_moments"]
