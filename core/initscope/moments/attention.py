"""Rules of attention: softmax(scale q k^T + mask) v, as one operation or written out.

Given the queries' and keys' moments the scores are Gaussian; what is needed of the softmax are a few overlaps
of attention weights (``Overlaps``), which are means over draws of scores, because no closed form holds once
single keys dominate. For small scores they agree with the log-normal forms of Kedia et al. 2024 and
Giorlandino and Goldt 2025. The backward pass keeps what published gradient recursions drop: the covariance of
gradients between tokens, and the way through the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from initscope.moments import axes as ax
from initscope.moments.axes import CHANNEL, RINGS
from initscope.moments.context import Context
from initscope.moments.field import RULE, Field, independent
from initscope.moments.trace import Known, Node, Ref

_ROWS = 10
_BUDGET = 150_000
"""Scores drawn for one operation."""
_MASKED = -1e4
"""Additive masks below this forbid a key."""


@dataclass(frozen=True)
class Overlaps:
    """Means over rows i, i' of sum_j a_ij a_i'j of attention weights."""

    own: float
    """i = i', the same sample: 1 over the number of keys that count."""
    rows: float
    """Another row of the same sample."""
    samples: float
    """The same row in another sample."""
    both: float
    """Another row of another sample."""
    path: float
    """sum_j a_ij^2 (1 - 2 a_ij + own): how much of independent score gradients passes the softmax."""
    path_rows: float


@dataclass(frozen=True)
class Scores:
    """Scores, or with ``soft`` attention weights, on the way from q and k to v."""

    query: Ref
    key: Ref
    key_dim: int
    """Dimension of ``key`` along which the keys lie."""
    query_dim: int
    scale: float = 1.0
    masks: tuple[Tensor, ...] = field(default=())
    soft: bool = False
    dropout: float = 0.0
    causal: bool = False


def overlaps(
    variance: float,
    rows_alike: float,
    samples_alike: float,
    queries: int,
    keys: int,
    masks: tuple[Tensor, ...],
    causal: bool,
) -> Overlaps:
    """By draws of scores: N(0, ``variance``) along the keys, with correlations between rows and between
    samples.
    """
    generator = torch.Generator().manual_seed(0)
    groups = _rows(masks, queries, keys, causal)
    found = []
    for bias in groups:
        rows = bias.shape[0]
        draws = max(4, min(64, _BUDGET // (rows * keys * len(groups))))

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def alike(a: Tensor, b: Tensor, correlation: float) -> Tensor:
            r = min(max(correlation, 0.0), 1.0)
            return math.sqrt(r) * a + math.sqrt(1 - r) * b

        one = alike(noise(draws, 1, keys), noise(draws, rows, keys), rows_alike)
        fresh = alike(noise(draws, 1, keys), noise(draws, rows, keys), rows_alike)
        r = min(max(samples_alike, -1.0), 1.0)
        two = r * one + math.sqrt(1 - r * r) * fresh
        a, b = ((math.sqrt(max(variance, 0.0)) * s + bias).softmax(-1) for s in (one, two))
        found.append(_overlap(a, b))
    return Overlaps(*np.mean(found, axis=0).tolist())


def _overlap(a: Tensor, b: Tensor) -> list[float]:
    rows = a.shape[1]
    same, other = torch.einsum("mrk,mqk->rq", a, a) / len(a), torch.einsum("mrk,mqk->rq", a, b) / len(a)
    off = ~torch.eye(rows, dtype=torch.bool)
    own = a.square().sum(-1)
    path = a.square().sum(-1) - 2 * a.pow(3).sum(-1) + own.square()
    # For two rows: sum_j a_j b_j (u_j - a.u)(u_j - b.u), u independent along the keys.
    cross = torch.einsum("mrk,mqk->mrq", a, a)
    third = torch.einsum("mrk,mqk->mrq", a.square(), a)
    both = (cross - third - third.transpose(1, 2) + cross.square()).mean(0)
    several = rows > 1
    return [
        float(own.mean()),
        float(same[off].mean()) if several else float(own.mean()),
        float(other.diagonal().mean()),
        float(other[off].mean()) if several else float(other.mean()),
        float(path.mean()),
        float(both[off].mean()) if several else float(path.mean()),
    ]


def _rows(masks: tuple[Tensor, ...], queries: int, keys: int, causal: bool) -> list[Tensor]:
    """Biases of some rows, (rows, keys), of some of the masks' groups."""
    at = torch.linspace(0, queries - 1, min(queries, _ROWS)).round().long()
    base = torch.zeros(queries, keys, dtype=torch.float64)
    if causal:
        base = base.masked_fill(torch.ones(queries, keys).tril(keys - queries) == 0, -math.inf)
    full = [base.unsqueeze(0)]
    for mask in masks:
        value = mask.detach()
        value = (
            torch.zeros(value.shape, dtype=torch.float64).masked_fill(~value, -math.inf)
            if value.dtype == torch.bool
            else value.double()
        )
        value = torch.where(value < _MASKED, -math.inf, value)
        full.append(value.expand(*value.shape[:-2], queries, keys).reshape(-1, queries, keys))
    groups = max(len(f) for f in full)
    chosen = torch.linspace(0, groups - 1, min(groups, 4)).round().long().tolist()
    result = []
    for group in chosen:
        bias = sum(f[group % len(f)][at] for f in full)
        alive = bias.isfinite().any(-1)
        if alive.any():
            result.append(bias[alive])
    return result or [torch.zeros(1, keys, dtype=torch.float64)]


def _without(x: Field, keep_dim: int) -> Field:
    """Only the tokens' dimension as positions: windows beside it are other sequences."""
    axes = tuple(part if i == keep_dim % len(x.axes) else () for i, part in enumerate(x.axes))
    return replace(x, axes=axes)


def attend(ctx: Context, node: Node, scores: Scores, v: Ref, v_dim: int) -> None:
    q, k, value = ctx.field(scores.query), ctx.field(scores.key), ctx.field(v)
    q_dim, k_dim = scores.query_dim, scores.key_dim
    queries, keys = scores.query.shape[q_dim], scores.key.shape[k_dim]
    head = scores.query.shape[-1 if q_dim % len(scores.query.shape) != len(scores.query.shape) - 1 else -2]
    scale2 = scores.scale**2 * head
    q1, k1, v1 = _without(q, q_dim), _without(k, k_dim), _without(value, v_dim)
    k_near, v_near = k1.others(k1.within), v1.others(v1.within)
    k_own, v_own = max(k1.square - k_near, 0.0), max(v1.square - v_near, 0.0)
    variance = scale2 * q1.square * k_own
    rows_alike = q1.others(q1.within) / q1.square if q1.square > 0 else 1.0
    k_between = float(k1.between[0]) - k1.others(k1.between)
    alike = (float(q1.between[0]) / q1.square if q1.square > 0 else 1.0) * (
        k_between / k_own if k_own > 1e-12 * k1.square else 1.0
    )
    o = overlaps(variance, rows_alike, alike, queries, keys, scores.masks, scores.causal)
    keep = 1 - scores.dropout
    own = o.own / keep

    vb_own, vb_near = float(v1.between[0]), v1.others(v1.between)
    within = np.full(RINGS, o.rows * v_own + v_near)
    within[0] = own * v_own + v_near + (1 / keep - 1) * o.own * v_near
    apart0, apart_near = float(v1.apart[0]), v1.others(v1.apart)
    # as differences, which may be tiny: (S - S_b) of the samples' shared part, and the values' own
    # differences
    apart = np.full(
        RINGS, (o.rows - o.both) * (vb_own - vb_near) + o.rows * (apart0 - apart_near) + apart_near
    )
    apart[0] = (
        (own - o.samples) * (vb_own - vb_near)
        + own * (apart0 - apart_near)
        + apart_near
        + (1 / keep - 1) * o.own * v_near
    )
    out_shape = node.outputs[0].shape
    tokens = ctx.field(scores.query).axes[q_dim]
    channels = value.axes[-1]
    axes = (*(part for part in q.axes[: len(out_shape) - 2]), tokens, channels)
    out = Field(axes, within, apart, value.mean, value.cross, value.far, value.spread)

    def pull(grad: Field):
        g = _without(grad, -2)
        g0, g_near = g.square, g.others(g.within)
        gb0, gb_near = float(g.between[0]), g.others(g.between)
        ratio, more = queries / keys, queries - 1
        # values: sum over the queries that look at a key
        own_v, near_v = (
            ratio * (own * g0 + more * o.rows * g_near),
            ratio * ((1 - o.own) * g0 + more * (1 - o.rows) * g_near) / max(keys - 1, 1),
        )
        own_b = ratio * (o.samples * gb0 + more * o.both * gb_near)
        near_b = ratio * ((1 - o.samples) * gb0 + more * (1 - o.both) * gb_near) / max(keys - 1, 1)
        yield v.id, _rings(value, own_v, near_v, own_b, near_b, grad.spread)
        # scores: u_ij = g_i . v_j has variance depth * g0 * v_own along the keys
        depth = v.shape[-1]
        u, u_rows = depth * g0 * v_own, depth * g_near * v_own
        u_b, ub_rows = depth * gb0 * (vb_own - vb_near), depth * gb_near * (vb_own - vb_near)
        s2 = scores.scale**2
        share = o.samples / o.own if o.own else 0.0
        kb_own = max(k_between, 0.0)
        yield (
            scores.query.id,
            _rings(
                q,
                s2 * u * o.path * k_own,
                s2 * u_rows * o.path_rows * k_own,
                s2 * u_b * o.path * share * kb_own,
                s2 * ub_rows * o.path_rows * share * kb_own,
                grad.spread,
            ),
        )
        q_near, qb0, qb_near = q1.others(q1.within), float(q1.between[0]), q1.others(q1.between)
        own_k = ratio * s2 * (u * o.path * q1.square + more * u_rows * o.path_rows * q_near)
        own_kb = ratio * s2 * share * (u_b * o.path * qb0 + more * ub_rows * o.path_rows * qb_near)
        # A softmax's gradient sums to zero over the keys.
        yield (
            scores.key.id,
            _rings(k, own_k, -own_k / max(keys - 1, 1), own_kb, -own_kb / max(keys - 1, 1), grad.spread),
        )

    ctx.put(node, out, pull)


def _rings(like: Field, own: float, near: float, own_b: float, near_b: float, spread: float) -> Field:
    within, between = np.full(RINGS, near), np.full(RINGS, near_b)
    within[0], between[0] = max(own, 0.0), own_b
    if not ax.positions(like.axes):
        within[:], between[:] = within[0], own_b
    return Field(like.axes, within, within - between, 0.0, 0.0, spread=spread)


def fused(ctx: Context, node: Node) -> bool:
    """scaled_dot_product_attention in one operation, on whatever device."""
    names = [a.name for a in node.op._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    q, k, v = (given[name] for name in ("query", "key", "value"))
    if not all(isinstance(x, Ref) for x in (q, k, v)):
        return False
    scale = given.get("scale") or 1 / math.sqrt(q.shape[-1])
    mask = given.get("attn_mask", given.get("attn_bias"))
    masks = (mask.value,) if isinstance(mask, Known) else ()
    scores = Scores(
        q, k, -2, -2, scale, masks, True, float(given.get("dropout_p") or 0.0), bool(given.get("is_causal"))
    )
    attend(ctx, node, scores, v, -2)
    return True


def product(ctx: Context, node: Node) -> bool:
    """A matrix product of two tensors that both depend on the input: scores, if channels are summed;
    attention, if the first holds weights.
    """
    a, b = node.args[:2]
    if isinstance(a, Ref) and isinstance(ctx.extra.get(a.id), Scores) and isinstance(b, Ref):
        scores = ctx.extra[a.id]
        if scores.soft:
            attend(ctx, node, scores, b, -2)
            return True
        return False
    if not (isinstance(a, Ref) and isinstance(b, Ref)):
        return False
    x, y = ctx.field(a), ctx.field(b)
    inner = {ax.main_role(x.axes[-1]), ax.main_role(y.axes[-2])}
    if inner != {CHANNEL}:
        return False
    scores = Scores(a, b, len(b.shape) - 1, len(a.shape) - 2)
    variance = a.shape[-1] * x.square * y.square
    axes = (*x.axes[:-1], y.axes[-1])
    _put(ctx, node, scores, independent(axes, variance))
    return True


def _put(ctx: Context, node: Node, scores: Scores, like: Field) -> None:
    ctx.put(node, like, None, how=RULE)
    ctx.extra[node.outputs[0].id] = scores


def carried(ctx: Context, node: Node) -> bool:
    """An operation on scores or attention weights that keeps them what they are; False for anything else."""
    x = next(a for a in node.args if isinstance(a, Ref) and isinstance(ctx.extra.get(a.id), Scores))
    scores: Scores = ctx.extra[x.id]
    other = next((a for a in node.args if a is not x and not isinstance(a, (list, tuple))), None)
    like = ctx.field(x)
    shape = node.outputs[0].shape
    name = node.name
    if name in (
        "view",
        "_unsafe_view",
        "reshape",
        "expand",
        "clone",
        "contiguous",
        "_to_copy",
        "alias",
        "detach",
        "unsqueeze",
        "squeeze",
    ):
        if shape[-2:] != x.shape[-2:]:
            return False
        like = replace(like, axes=ax.reshape(like.axes, shape))
    elif name in ("mul", "div") and isinstance(other, Ref):  # dropout's noise
        noise = ctx.field(other)
        keep = noise.mean**2 / noise.square if noise.square else 1.0
        scores = replace(scores, dropout=1 - keep)
    elif name in ("mul", "div") and (isinstance(other, (int, float)) or other.value.numel() == 1):
        factor = float(other.value if isinstance(other, Known) else other)
        scores = replace(scores, scale=scores.scale * (factor if name == "mul" else 1 / factor))
    elif name == "native_dropout":
        scores = replace(scores, dropout=float(node.args[1]) if node.args[2] else 0.0)
    elif name == "add" and isinstance(other, Known):
        scores = replace(scores, masks=(*scores.masks, other.value))
    elif name == "masked_fill" and isinstance(node.args[1], Known):
        scores = replace(scores, masks=(*scores.masks, ~node.args[1].value.bool()))
    elif name == "where" and isinstance(node.args[0], Known) and node.args[1] is x:
        scores = replace(scores, masks=(*scores.masks, node.args[0].value.bool()))
    elif name in ("_softmax", "_safe_softmax") and node.args[1] in (-1, len(x.shape) - 1) and not scores.soft:
        scores = replace(scores, soft=True)
        keys = x.shape[-1]
        like = independent(like.axes, 1 / keys**2, 1 / keys)
    else:
        return False
    _put(ctx, node, scores, like)
    return True


def softmax(ctx: Context, node: Node) -> bool:
    """Of anything else than scores, over one dimension: Gaussians with the field's variance along it, drawn;
    mean 1/n.
    """
    x, dim = node.args[:2]
    field_ = ctx.field(x)
    dim %= len(x.shape)
    n = x.shape[dim]
    over_channel = ax.main_role(field_.axes[dim]) == CHANNEL
    near = field_.cross if over_channel else _without(field_, dim).others(field_.within)
    own = max(field_.square - near, 0.0)
    alike = 1 - float(field_.apart[0]) / own if own > 0 else 1.0
    rows = (field_.others(field_.within) - near) / own if own > 0 and over_channel else 0.0
    o = overlaps(own, rows, alike, 8, n, (), False)
    within, between = np.full(RINGS, o.rows / n), np.full(RINGS, o.both / n)
    within[0], between[0] = o.own / n, o.samples / n
    if not ax.positions(field_.axes):
        within[:], between[:] = within[0], between[0]
    out = Field(field_.axes, within, within - between, 1 / n, 1 / n**2, spread=field_.spread)
    ctx.put(node, out, lambda grad: iter([(x.id, grad.scaled(o.path / n))]))
    return True


_FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
    "scaled_dot_product_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
RULES = dict.fromkeys(_FUSED, fused) | {"_softmax": softmax}
__all__ = ["RULES", "Scores", "carried", "overlaps", "product"]
