"""Rules of views, pieces, joins, means and other poolings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from initscope.moments import axes as ax
from initscope.moments.axes import CHANNEL, POSITION, RINGS, SAMPLE
from initscope.moments.context import Context
from initscope.moments.field import Field, averaged, constant, moved, pair_sum
from initscope.moments.linear import _spread_rings
from initscope.moments.pointwise import unbroadcast
from initscope.moments.trace import Known, Node, Ref
from initscope.moments.values import Pointwise, Value


def turn(ctx: Context, node: Node, axes: ax.Axes, back: Callable[[Field], Field] | None = None) -> bool:
    """The same numbers in other dimensions."""
    x = node.args[0]
    field = ctx.field(x)

    def pull(grad: Field):
        # A gradient's roles may have been exchanged on the way (a mixer's): positions of the input are the
        # reference.
        grad = back(grad) if back else replace(grad.like(axes), axes=field.axes)
        yield x.id, grad

    ctx.put(node, field.with_axes(axes), pull)
    return True


def view(ctx: Context, node: Node) -> bool:
    if math.prod(node.args[0].shape) != math.prod(node.outputs[0].shape):
        return False
    return turn(ctx, node, ax.reshape(ctx.field(node.args[0]).axes, node.outputs[0].shape))


def permute(ctx: Context, node: Node) -> bool:
    axes = ctx.field(node.args[0]).axes
    if node.name == "t":
        order = list(range(len(axes)))[::-1]
    elif node.name == "transpose":
        order = list(range(len(axes)))
        i, j = node.args[1] % len(axes), node.args[2] % len(axes)
        order[i], order[j] = j, i
    else:
        order = [d % len(axes) for d in node.args[1]]
    return turn(ctx, node, tuple(axes[d] for d in order))


def stay(ctx: Context, node: Node) -> bool:
    """Rolled, flipped: the same moments in the same places."""
    return turn(ctx, node, ctx.field(node.args[0]).axes)


def expand(ctx: Context, node: Node) -> bool:
    x = node.args[0]
    field, shape = ctx.field(x), node.outputs[0].shape
    known = ((),) * (len(shape) - len(field.axes)) + field.axes
    axes = tuple(
        part if ax.size(part) == n else ax.axis(CHANNEL, n) for part, n in zip(known, shape, strict=True)
    )
    return turn(ctx, node, axes, lambda grad: replace(unbroadcast(grad.like(axes), field), axes=field.axes))


def _piece(ctx: Context, node: Node, output: int, dim: int) -> None:
    """Part of a dimension, with the moments of the whole."""
    x = node.args[0]
    field, shape = ctx.field(x), node.outputs[output].shape
    axes = list(field.axes)
    whole = x.shape[dim]
    dropped = len(shape) < len(x.shape)
    part = 1 if dropped else shape[dim]
    role = ax.main_role(axes[dim])
    spacing = axes[dim][-1].spacing if axes[dim] else 1
    piece = axes[dim] if part == whole else (ax.Atom(role, part, spacing),) if part > 1 else ()
    inner = (*axes[:dim], piece, *axes[dim + 1 :])
    out = field.with_axes((*axes[:dim], *axes[dim + 1 :]) if dropped else inner)
    if not ax.positions(out.axes):
        out = replace(out, within=np.full(RINGS, field.within[0]), apart=np.full(RINGS, field.apart[0]))

    def pull(grad: Field):
        grad = grad.like(out.axes)
        few, many = ax.ring_counts(ax.positions(inner)), ax.ring_counts(ax.positions(field.axes))
        share = part / whole
        ratio = np.full(RINGS, share)
        if role == POSITION:
            ratio = share * np.divide(few, many, out=np.zeros(RINGS), where=many > 0)
        yield (
            x.id,
            Field(
                field.axes,
                grad.within * ratio,
                grad.apart * ratio,
                0.0,
                grad.cross * share,
                grad.far * share,
                grad.spread,
            ),
        )

    ctx.put(node, out, pull, output=output)


def piece(ctx: Context, node: Node) -> bool:
    x = node.args[0]
    dim = node.args[1] if len(node.args) > 1 and node.name != "unbind" else 0
    if node.name in ("split", "split_with_sizes", "chunk"):
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    elif node.name == "unbind":
        dim = node.args[1] if len(node.args) > 1 else 0
    for output in range(len(node.outputs)):
        _piece(ctx, node, output, dim % len(x.shape))
    return True


def index_select(ctx: Context, node: Node) -> bool:
    """Rows picked by an index: as many of one dimension, in any order."""
    x = node.args[0]
    if node.name == "index":
        indices = node.args[1]
        dims = [i for i, one in enumerate(indices) if one is not None]
        if (
            not isinstance(x, Ref)
            or dims != list(range(dims[0], dims[0] + len(dims)))
            or not isinstance(indices[dims[0]], (Ref, Known))
        ):
            return False
    else:
        dims = [node.args[1] % len(x.shape)]
        if not isinstance(x, Ref):
            return False
    field, shape = ctx.field(x), node.outputs[0].shape
    before, after = dims[0], len(x.shape) - dims[-1] - 1
    picked = tuple(a for d in dims for a in field.axes[d])
    new = shape[before : len(shape) - after]
    axes = (
        *field.axes[:before],
        *(ax.axis(ax.main_role(picked), n) for n in new),
        *field.axes[len(x.shape) - after :],
    )
    share = math.prod(new) / max(math.prod(x.shape[d] for d in dims), 1)

    def pull(grad: Field):
        yield x.id, replace(grad.scaled(share), axes=field.axes, mean=0.0)

    ctx.put(node, field.with_axes(axes), pull)
    return True


def unsqueeze(ctx: Context, node: Node) -> bool:
    axes = list(ctx.field(node.args[0]).axes)
    axes.insert(node.args[1] % (len(axes) + 1), ())
    return turn(ctx, node, tuple(axes))


def squeeze(ctx: Context, node: Node) -> bool:
    x = node.args[0]
    axes = ctx.field(x).axes
    dims = node.args[1] if len(node.args) > 1 else list(range(len(axes)))
    dims = {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims) if x.shape[d] == 1}
    return turn(ctx, node, tuple(part for i, part in enumerate(axes) if i not in dims))


def cat(ctx: Context, node: Node) -> bool:
    """Joined along a dimension: the means of the parts' moments, weighted by their sizes; parts are
    independent but for their means.
    """
    parts = list(node.args[0])
    first = next((x for x in parts if isinstance(x, Ref)), None)
    if first is None:
        return False
    reference = ctx.field(first).axes
    rank = len(first.shape)
    stack = node.name == "stack"
    dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % (rank + stack)
    parts = [x for x in parts if isinstance(x, Ref) or x.value.numel()]
    fields = [
        ctx.field(x).like(reference) if isinstance(x, Ref) else ctx.constant(x, reference) for x in parts
    ]
    sizes = [1 if stack else (x.shape if isinstance(x, Ref) else x.value.shape)[dim] for x in parts]
    shares = np.array(sizes) / sum(sizes)
    if stack:
        axes = (*reference[:dim], ax.axis(CHANNEL, len(parts)), *reference[dim:])
    else:
        role = ax.main_role(max((f.axes[dim] for f in fields), key=ax.size))
        axes = tuple(
            ax.axis(role, sum(sizes)) if i == dim else max((f.axes[i] for f in fields), key=ax.size)
            for i in range(rank)
        )
    mean = float(shares @ [f.mean for f in fields])
    cross = float(mean**2 + shares**2 @ [f.cross - f.mean**2 for f in fields])
    out = Field(
        axes,
        sum(s * f.within for s, f in zip(shares, fields, strict=True)),
        sum(s * f.apart for s, f in zip(shares, fields, strict=True)),
        mean,
        cross,
        float(mean**2 + shares**2 @ [f.far - f.mean**2 for f in fields]),
        float(sum(s * f.spread for s, f in zip(shares, fields, strict=True))),
    )

    def pull(grad: Field):
        for x, f in zip(parts, fields, strict=True):
            if isinstance(x, Ref):
                yield x.id, replace(grad.like(axes), axes=f.axes)

    ctx.put(node, out, pull)
    for x in parts:
        if isinstance(x, Known):
            rest = tuple(
                part for i, part in enumerate(axes) if i != dim and ax.size(part) != x.value.shape[i]
            )
            ctx.use(
                x,
                node,
                lambda grad, r=rest: pair_sum(
                    grad, replace(grad, within=np.ones(RINGS), apart=np.zeros(RINGS)), r
                ),
            )
    return True


def pad(ctx: Context, node: Node) -> bool:
    """Zeros around: a share of the entries."""
    x = node.args[0]
    field, shape = ctx.field(x), node.outputs[0].shape
    share = math.prod(x.shape) / max(math.prod(shape), 1)
    if share > 1:  # negative padding crops
        share = 1.0
    axes = tuple(
        part if ax.size(part) == n else ax.axis(ax.main_role(part), n)
        for part, n in zip(field.axes, shape, strict=True)
    )
    out = replace(field.scaled(share), axes=axes, mean=share * field.mean)
    ctx.put(node, out, lambda grad: iter([(x.id, replace(grad, axes=field.axes))]))
    return True


def mean(ctx: Context, node: Node) -> bool:
    """Mean or sum over dimensions."""
    x = node.args[0]
    field = ctx.field(x)
    rank = len(x.shape)
    dims = (
        node.args[1]
        if len(node.args) > 1 and node.args[1] is not None and node.args[1] != []
        else list(range(rank))
    )
    dims = sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims))
    keep = len(node.outputs[0].shape) == rank
    return _mean(
        ctx,
        node,
        x,
        field,
        dims,
        keep,
        factor=math.prod(x.shape[d] for d in dims) if node.name == "sum" else 1,
    )


def _mean(
    ctx: Context, node: Node, x: Ref, field: Field, dims: list[int], keep: bool, factor: float = 1.0
) -> bool:
    over = tuple(a for d in dims for a in field.axes[d])
    within, apart, cross, far = averaged(field, over)
    axes = tuple(() if i in dims else part for i, part in enumerate(field.axes) if keep or i not in dims)
    out = Field(
        axes,
        within * factor**2,
        apart * factor**2,
        field.mean * factor,
        cross * factor**2,
        far * factor**2,
        field.spread,
    )
    n = ax.size(over) / factor
    reach = math.log2(max((a.size * a.spacing for a in over if a.role == POSITION), default=1))
    left = ax.positions(axes)
    summed = {a.role for a in over}

    def pull(grad: Field):
        scale = 1 / n**2
        inner, outer = (
            np.full(RINGS, r[0]) if not left else moved(r, -reach) for r in (grad.within, grad.between)
        )
        if SAMPLE in summed:
            outer = inner
        cross_ = grad.square if CHANNEL in summed else grad.cross
        yield (
            x.id,
            Field(
                field.axes, inner * scale, (inner - outer) * scale, 0.0, cross_ * scale, spread=grad.spread
            ),
        )

    ctx.put(node, out, pull)
    return True


def adaptive_pool(ctx: Context, node: Node) -> bool:
    x = node.args[0]
    shape = node.outputs[0].shape
    sides = len(node.args[1])
    if all(n == 1 for n in shape[-sides:]):
        return _mean(ctx, node, x, ctx.field(x), list(range(len(x.shape) - sides, len(x.shape))), keep=True)
    window = [max(1, round(i / o)) for i, o in zip(x.shape[-sides:], shape[-sides:], strict=True)]
    return _average_windows(ctx, node, window, window)


def avg_pool(ctx: Context, node: Node) -> bool:
    kernel = list(node.args[1])
    stride = list(node.args[2]) if len(node.args) > 2 and node.args[2] else kernel
    return _average_windows(ctx, node, kernel, stride)


def _average_windows(ctx: Context, node: Node, kernel: list[int], stride: list[int]) -> bool:
    x = node.args[0]
    field, shape = ctx.field(x), node.outputs[0].shape
    window = tuple(ax.Atom(POSITION, k) for k in kernel if k > 1)
    shift = math.log2(math.prod(stride)) / len(stride)
    axes = (*field.axes[: -len(kernel)], *(ax.axis(POSITION, n) for n in shape[-len(kernel) :]))
    alone = replace(field, axes=window and (window,))
    pooled, pooled_apart, _, _ = averaged(alone, window)
    within, apart = moved(field.within, shift), moved(field.apart, shift)
    within[0], apart[0] = pooled[0], pooled_apart[0]
    out = replace(
        field, axes=axes, within=np.minimum(within, pooled[0]) if (within >= 0).all() else within, apart=apart
    )
    gain = math.prod(shape[-len(kernel) :]) / math.prod(x.shape[-len(kernel) :]) / math.prod(kernel)

    def pull(grad: Field):
        inner, outer = (gain * moved(r, -shift) for r in (grad.within, grad.between))
        yield x.id, Field(field.axes, inner, inner - outer, 0.0, gain * grad.cross, spread=grad.spread)

    ctx.put(node, out, pull)
    return True


def max_pool(ctx: Context, node: Node) -> bool:
    """The largest of a window: one part that its pixels share, and the largest of independent parts (order
    statistics).

    A function that rises is taken after the maximum instead of before it: the maximum is then one of
    Gaussians.
    """
    x, kernel = node.args[0], list(node.args[1])
    stride = list(node.args[2]) if len(node.args) > 2 and node.args[2] else kernel
    value = ctx.value(x)
    inner: Value = value
    if isinstance(value, Pointwise) and value.kernel.monotone:
        inner = value.root
    field, shape = inner.field, node.outputs[0].shape
    count = math.prod(kernel)
    window = tuple(ax.Atom(POSITION, k) for k in kernel if k > 1)
    counts = ax.ring_counts(window)
    shift = math.log2(math.prod(stride)) / len(stride)
    variance, mean2 = field.variance, field.mean**2
    near = float(counts[1:] @ field.within[1:] / max(counts[1:].sum(), 1e-300)) if count > 1 else field.square
    private = min(max(field.square - near, 0.0), variance)
    near_apart = (
        float(counts[1:] @ field.apart[1:] / max(counts[1:].sum(), 1e-300))
        if count > 1
        else float(field.apart[0])
    )
    unlike = min(max((float(field.apart[0]) - near_apart) / private, 0.0), 1.0) if private > 0 else 0.0
    known = max(round(unlike, 3), 0.001)
    top_mean, top_var, half_difference, agree = _maxima(count, known)
    if unlike < known:  # nearly the same inputs: differences go with unlike, changes of place with its root
        half_difference *= unlike / known
        agree = 1 - (1 - agree) * math.sqrt(unlike / known)
    axes = (*field.axes[: -len(kernel)], *(ax.axis(POSITION, n) for n in shape[-len(kernel) :]))
    average = field.mean + top_mean * private**0.5
    square = variance - (1 - top_var) * private + average**2
    more = average**2 - mean2
    within, apart = moved(field.within, shift) + more, moved(field.apart, shift)
    within[0] = square
    within[1:] = np.minimum(within[1:], square)
    apart[0] = near_apart + private * half_difference
    pooled = Value(
        -1 - node.outputs[0].id,
        Field(axes, within, apart, average, field.cross + more, field.far + more, field.spread),
    )
    n_in, n_out = math.prod(x.shape[-len(kernel) :]), math.prod(shape[-len(kernel) :])

    def back(grad: Field) -> Field:
        share = n_out / n_in
        inside, outside = (
            share * _spread_rings(r, shift, axes, field.axes) for r in (grad.within, grad.between)
        )
        outside[0] *= agree
        return Field(field.axes, inside, inside - outside, 0.0, share * grad.cross, spread=grad.spread)

    if inner is value:
        ctx.put(node, pooled.field, lambda grad: iter([(x.id, back(grad))]))
    else:
        from initscope.moments.values import gate

        result = Pointwise(node.outputs[0].id, pooled, value.function)
        fields = result.field
        ctx.put(
            node,
            Value(node.outputs[0].id, fields),
            lambda grad: iter([(inner.id, back(gate(result.kernel, pooled.field, grad)))]),
        )
    return True


_DRAWS = 4096


def _maxima(count: int, unlike: float, _memory: dict = {}) -> tuple[float, float, float, float]:  # noqa: B006
    """Of the largest of ``count`` normals: mean, variance, half the mean square difference to that of normals
    with correlation 1 - ``unlike``, and how often both are at the same place. By 4096 fixed draws.
    """
    key = (count, unlike)
    if key not in _memory:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(_DRAWS, count, generator=generator, dtype=torch.float64) for _ in range(2))
        r = 1 - unlike
        other = r * x + math.sqrt(max(1 - r * r, 0.0)) * y
        one, two = x.max(1), other.max(1)
        half = float((one.values - two.values).square().mean()) / 2
        _memory[key] = (
            float(one.values.mean()),
            float(one.values.var()),
            half,
            float((one.indices == two.indices).double().mean()),
        )
    return _memory[key]


def copy(ctx: Context, node: Node) -> bool:
    """``x.copy_(y)``: y's numbers, repeated to x's shape."""
    x, y = node.args[:2]
    shape = node.outputs[0].shape
    known = ctx.field(x).axes if isinstance(x, Ref) else ax.default_axes(shape)
    if isinstance(y, Known):
        ctx.put(node, replace(ctx.constant(y, known), axes=known), None)
        return True
    field = ctx.field(y)
    padded = ((),) * (len(shape) - len(field.axes)) + field.axes
    axes = tuple(
        part if ax.size(part) == n else ax.axis(ax.main_role(like) if like else CHANNEL, n)
        for part, like, n in zip(padded, known, shape, strict=True)
    )
    ctx.put(node, field.with_axes(axes), lambda grad: iter([(y.id, unbroadcast(grad, field))]))
    return True


def fill(ctx: Context, node: Node) -> bool:
    """``x.fill_(number)``, ``x.zero_()``."""
    value = node.args[1] if len(node.args) > 1 else 0.0
    if isinstance(value, Known):
        value = float(value.value)
    if not isinstance(value, (int, float)):
        return False
    x, shape = node.args[0], node.outputs[0].shape
    axes = ctx.field(x).axes if isinstance(x, Ref) else ax.default_axes(shape)
    ctx.put(node, constant(axes, float(value) ** 2, float(value)), None)
    return True


def overwritten(ctx: Context, node: Node) -> bool:
    """A tensor part of which was written to through a view (``trace``): the old moments and the part's,
    weighted by their sizes.
    """
    old, part = node.args[:2]
    if not isinstance(part, Ref):
        return False
    shape = node.outputs[0].shape
    new = ctx.field(part)
    axes = ctx.field(old).axes if isinstance(old, Ref) else ax.default_axes(shape)
    if not isinstance(old, Ref) and len(new.axes) == len(shape):
        axes = tuple(
            side if ax.size(side) == n else ax.axis(ax.main_role(side) if side else ax.main_role(like), n)
            for side, like, n in zip(new.axes, axes, shape, strict=True)
        )
    before = ctx.field(old) if isinstance(old, Ref) else ctx.constant(old, axes)
    share = math.prod(part.shape) / max(math.prod(shape), 1)
    rest = 1 - share
    out = Field(
        axes,
        rest * before.within + share * new.within,
        rest * before.apart + share * new.apart,
        rest * before.mean + share * new.mean,
        rest * before.cross + share * new.cross,
        rest * before.far + share * new.far,
        max(before.spread, new.spread),
    )

    def pull(grad: Field):
        yield part.id, replace(grad, axes=new.axes, along=None)
        if isinstance(old, Ref):
            yield old.id, replace(grad.scaled(rest), axes=before.axes)

    ctx.put(node, out, pull)
    return True


def upsample(ctx: Context, node: Node) -> bool:
    """Nearest: every position repeated; otherwise neighbours are mixed, here as for a factor of 2 (weights
    3/4 and 1/4 a side).
    """
    x = node.args[0]
    field, shape = ctx.field(x), node.outputs[0].shape
    sides = len(shape) - 2
    factor = math.prod(shape[2:]) / math.prod(x.shape[2:])
    shift = math.log2(factor) / sides
    own = 1.0 if "nearest" in node.name else 0.625**sides
    axes = (*field.axes[:2], *(ax.axis(POSITION, n) for n in shape[2:]))
    within, apart = moved(field.within, -shift), moved(field.apart, -shift)
    within[0] = own * field.within[0] + (1 - own) * field.within[1]
    apart[0] = own * field.apart[0] + (1 - own) * field.apart[1]
    window = tuple(ax.Atom(POSITION, max(2, round(2**shift))) for _ in range(sides)) if shift > 0 else ()

    def pull(grad: Field):
        alone = replace(grad, axes=(window,))
        first, first_apart, _, _ = averaged(alone, window) if window else (grad.within, grad.apart, 0.0, 0.0)
        inner, outer = moved(grad.within, shift) * factor**2, moved(grad.apart, shift) * factor**2
        inner[0], outer[0] = first[0] * factor**2, first_apart[0] * factor**2
        yield x.id, Field(field.axes, inner, outer, 0.0, grad.cross * factor**2, spread=grad.spread)

    ctx.put(node, replace(field, axes=axes, within=np.minimum(within, within[0]), apart=apart), pull)
    return True


_PIECES = ("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind")
_VIEWS = ("as_strided", "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
RULES = dict.fromkeys(_VIEWS, view) | dict.fromkeys(_PIECES, piece) | dict.fromkeys(("roll", "flip"), stay)
RULES |= {
    "permute": permute,
    "transpose": permute,
    "t": permute,
    "expand": expand,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
}
RULES |= {
    "index": index_select,
    "index_select": index_select,
    "cat": cat,
    "stack": cat,
    "constant_pad_nd": pad,
    "mean": mean,
    "sum": mean,
    "copy": copy,
    "fill": fill,
    "zero": fill,
    "slice_scatter": overwritten,
}
RULES |= dict.fromkeys(
    ("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    adaptive_pool,
)
RULES |= dict.fromkeys(("avg_pool2d", "avg_pool3d", "avg_pool1d"), avg_pool)
RULES |= dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), max_pool)
RULES |= dict.fromkeys(
    (
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "upsample_nearest1d",
        "upsample_bicubic2d",
        "upsample_linear1d",
    ),
    upsample,
)
__all__ = ["RULES"]
