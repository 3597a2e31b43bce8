"""Rules of what works number by number: nonlinearities, sums, products, masks, noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from initscope.moments import axes as ax
from initscope.moments.context import Context
from initscope.moments.field import Field, averaged, independent
from initscope.moments.kernels import Function
from initscope.moments.trace import Known, Node, Ref
from initscope.moments.values import Pointwise, Value, add, gate, multiply

UNARY = frozenset(
    [
        "relu",
        "gelu",
        "silu",
        "mish",
        "tanh",
        "sigmoid",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "leaky_relu",
        "elu",
        "celu",
        "selu",
        "softplus",
        "log_sigmoid_forward",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log1p",
        "sqrt",
        "rsqrt",
        "pow",
        "square",
        "abs",
        "neg",
        "reciprocal",
        "sin",
        "cos",
        "tan",
        "erf",
        "erfc",
        "atan",
        "asinh",
        "sinh",
        "cosh",
        "clamp",
        "clamp_min",
        "clamp_max",
        "threshold",
        "softshrink",
        "hardshrink",
        "relu6",
        "sign",
        "round",
        "floor",
        "ceil",
        "logit",
        "prelu",
        "_prelu_kernel",
        "rsub",
        "remainder",
        "nan_to_num",
    ]
)
"""Any of them, with any arguments: what they do is found by calling them."""
_SAME = frozenset(
    [
        "_to_copy",
        "clone",
        "detach",
        "alias",
        "contiguous",
        "to",
        "lift",
        "lift_fresh",
        "lift_fresh_copy",
        "positive",
    ]
)
_BINARY = frozenset(["add", "sub", "mul", "div", "maximum", "minimum", "pow", "rsub", "true_divide"])


def _functional(node: Node) -> Any:
    return getattr(torch.ops.aten, node.name)


def _number(x: Any) -> bool:
    return isinstance(x, (int, float, bool)) or (isinstance(x, Known) and x.value.numel() == 1)


def _plain(x: Any) -> Any:
    return (
        x.value.double()
        if isinstance(x, Known) and x.value.is_floating_point()
        else x.value
        if isinstance(x, Known)
        else x
    )


def _function(ctx: Context, x: Any) -> Function:
    """An operand as a function of its root."""
    if not isinstance(x, Ref):
        constant = _plain(x)
        return lambda _: constant
    return ctx.value(x).function or (lambda grid: grid)


def pointwise(ctx: Context, node: Node) -> bool:
    """One function of one root: any operation whose operands are that root's functions and numbers."""
    tensors = [x for x in node.args if isinstance(x, Ref)]
    roots = {ctx.value(x).root.id for x in tensors}
    constants = [x for x in node.args if isinstance(x, Known) and x.value.numel() > 1]
    if _from_integers(node):
        return False
    if len(roots) != 1 or len({x.shape for x in tensors}) != 1:
        return False
    if constants and node.name not in ("prelu", "_prelu_kernel"):
        return False
    op, args, kwargs = _functional(node), node.args, node.kwargs
    if node.name == "log_sigmoid_forward":
        op = torch.nn.functional.logsigmoid
    if constants:  # one slope a channel: their mean stands for all
        args = tuple(Known(x.value.mean().reshape(1)) if x in constants else x for x in args)
        if node.name == "_prelu_kernel":
            op = torch.prelu
    functions = [_function(ctx, x) for x in args]
    root = ctx.value(tensors[0]).root

    def function(grid):
        called = [f(grid) for f in functions]
        if op is torch.prelu:
            return torch.where(called[0] > 0, called[0], called[0] * called[1])
        return op(*called, **kwargs)

    _put(ctx, node, root, function)
    return True


def _put(ctx: Context, node: Node, root: Value, function: Function) -> None:
    value = Pointwise(node.outputs[0].id, root, function)

    def pull(grad: Field):
        yield root.id, gate(value.kernel, root.field, grad)

    ctx.put(node, value, pull)


def _from_integers(node: Node) -> bool:
    """Whether whole numbers that depend on the inputs (places, comparisons) become values: those are not
    carried.
    """
    whole = any(isinstance(x, Ref) and not x.dtype.is_floating_point for x in node.args)
    return whole and node.outputs[0].dtype.is_floating_point


def same(ctx: Context, node: Node) -> bool:
    x = node.args[0]
    if not isinstance(x, Ref) or _from_integers(node):
        return False
    value = ctx.value(x)
    if value.function is not None:
        _put(ctx, node, value.root, value.function)
    else:
        _put(ctx, node, value, lambda grid: grid)
    return True


def binary(ctx: Context, node: Node) -> bool:
    """Sums and products of tensors that are independent but for their means; of a tensor and a constant."""
    a, b = node.args[:2]
    if _from_integers(node):
        return False
    if _number(a) or _number(b) or _same_root(ctx, a, b):
        return pointwise(ctx, node)
    name = node.name
    if name == "div" and isinstance(a, Ref):
        return _divide(ctx, node, a, b)
    if name not in ("add", "sub", "mul"):
        return False
    x, y = (_operand(ctx, one, other) for one, other in ((a, b), (b, a)))
    axes = ax.broadcast(x.axes, y.axes)
    if name == "mul":
        _multiply(ctx, node, (a, x), (b, y), axes)
    else:
        alpha = float(node.kwargs.get("alpha", 1)) * (-1 if name == "sub" else 1)
        _add(ctx, node, (a, x), (b, y), axes, alpha)
    return True


def _same_root(ctx: Context, a: Any, b: Any) -> bool:
    return (
        isinstance(a, Ref)
        and isinstance(b, Ref)
        and a.shape == b.shape
        and ctx.value(a).root is ctx.value(b).root
    )


def _operand(ctx: Context, x: Any, other: Any) -> Field:
    return ctx.field(x) if isinstance(x, Ref) else ctx.constant(x, ctx.field(other).axes)


def _add(ctx: Context, node: Node, one, other, axes: ax.Axes, alpha: float) -> None:
    (a, x), (b, y) = one, other
    out = add(x, y, axes, weights=(1.0, alpha))

    def pull(grad: Field):
        for operand, field_, factor in ((a, x, 1.0), (b, y, alpha**2)):
            if isinstance(operand, Ref):
                yield (
                    operand.id,
                    replace(
                        unbroadcast(grad, field_).scaled(factor), along=share_along(grad, field_, out, factor)
                    ),
                )

    ctx.put(node, out, pull)
    for operand, field_ in ((a, x), (b, y)):
        if isinstance(operand, Known):
            ctx.use(operand, node, lambda grad, f=field_: unbroadcast(grad, f).square)
    for operand, constant in ((a, b), (b, a)):
        _absorb_bias(ctx, node, operand, constant)


def share_along(grad: Field, part: Field, whole: Field, factor: float):
    """``along`` for one term of a sum: its z is sqrt(share) times that of the sum, and the rest is
    independent of the gradient.
    """
    if grad.along is None or part.axes != whole.axes or whole.variance <= 0 or part.variance <= 0:
        return None
    share = factor * part.variance / whole.variance
    result = []
    for along, covariance, mine, all_ in (
        (grad.along[0], grad.within, part.within, whole.within),
        (grad.along[1], grad.between, part.between, whole.between),
    ):
        z, z_whole = 1 - (part.square - mine) / part.variance, 1 - (whole.square - all_) / whole.variance
        result.append(factor * (share * along + covariance * (z - share * z_whole)))
    return tuple(result)


def _absorb_bias(ctx: Context, node: Node, x: Any, bias: Any) -> None:
    """A layer that adds its bias in an operation of its own puts out the sum."""
    if not (isinstance(x, Ref) and isinstance(bias, Known) and bias.param):
        return
    owner = bias.param.rpartition(".")[0]
    for use in ctx.uses:
        if use.output == x.id and use.param.rpartition(".")[0] == owner:
            use.output = node.outputs[0].id


def _multiply(ctx: Context, node: Node, one, other, axes: ax.Axes) -> None:
    (a, x), (b, y) = one, other

    def through(grad: Field, factor: Field, to: Field) -> Field:
        return unbroadcast(replace(multiply(grad, factor.like(grad.axes), axes), mean=0.0), to)

    def pull(grad: Field):
        for operand, field_, factor in ((a, x, y), (b, y, x)):
            if isinstance(operand, Ref):
                yield operand.id, through(grad, factor, field_)

    ctx.put(node, multiply(x, y, axes), pull)
    for operand, field_, factor in ((a, x, y), (b, y, x)):
        if isinstance(operand, Known):
            ctx.use(operand, node, lambda grad, f=field_, k=factor: through(grad, k, f).square)


def _divide(ctx: Context, node: Node, a: Ref, b: Any) -> bool:
    """a / b with b taken as independent of a: a norm written out."""
    x = ctx.field(a)
    if isinstance(b, Known):
        y = ctx.constant(Known(1 / b.value.double(), None), x.axes)
    else:
        root = ctx.value(b)
        y = Pointwise(-1, root.root, lambda grid: 1 / _function(ctx, b)(grid)).field
    axes = ax.broadcast(x.axes, y.axes)

    def pull(grad: Field):
        yield a.id, unbroadcast(replace(multiply(grad, y, axes), mean=0.0), x)

    ctx.put(node, multiply(x, y, axes), pull)
    return True


def unbroadcast(grad: Field, to: Field) -> Field:
    """Sum of the gradient over the dimensions along which an operand was repeated."""
    pad = len(grad.axes) - len(to.axes)
    over: list[ax.Atom] = []
    for i, part in enumerate(grad.axes):
        if i < pad or (ax.size(part) > 1 and ax.size(to.axes[i - pad]) == 1):
            over += part
    if not over:
        return grad
    n = ax.size(over)
    within, apart, cross, far = averaged(grad, tuple(over))
    axes = tuple(() if any(a in over for a in part) else part for part in grad.axes[pad:])
    return Field(axes, within * n**2, apart * n**2, 0.0, cross * n**2, far * n**2, grad.spread)


def bernoulli(ctx: Context, node: Node) -> bool:
    """Dropout's noise: every entry drawn anew."""
    p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    shape = node.outputs[0].shape
    if not isinstance(p, (int, float)) or not isinstance(node.args[0], Ref):
        return False
    like = ctx.values.get(node.args[0].id)
    axes = like.field.axes if like is not None else ax.default_axes(shape)
    ctx.put(node, independent(axes, float(p), float(p)), None)
    return True


def empty(ctx: Context, node: Node) -> bool:
    """Memory that noise will be written to: only its shape counts."""
    shape = node.outputs[0].shape
    x = next((a for a in node.args if isinstance(a, Ref)), None)
    known = ctx.field(x).axes if x is not None else ()
    fits = len(known) == len(shape)
    default = ax.default_axes(shape)
    axes = tuple(
        () if n == 1 else known[i] if fits and ax.size(known[i]) == n else default[i]
        for i, n in enumerate(shape)
    )
    ctx.put(node, independent(axes, 0.0), None)
    return True


def native_dropout(ctx: Context, node: Node) -> bool:
    x, p, train = node.args[:3]
    field = ctx.field(x)
    keep = 1 - p if train else 1.0
    noise = replace(independent(field.axes, 1 / keep if keep else 0.0, 1.0), axes=field.axes)
    ctx.put(
        node,
        multiply(field, noise, field.axes),
        lambda grad: iter([(x.id, replace(multiply(grad, noise, field.axes), mean=0.0))]),
    )
    return True


def masked(ctx: Context, node: Node) -> bool:
    """Entries that a known mask sets to a number: a share of them."""
    if node.name == "where":
        mask, a, b = node.args
        keep = True
    else:
        a, mask, b = node.args[:3]
        keep = False
    if not isinstance(mask, Known) or sum(isinstance(x, Ref) for x in (a, b)) != 1:
        return False
    x, other = (a, b) if isinstance(a, Ref) else (b, a)
    chosen = mask.value.double().mean().item()
    share = chosen if keep == (x is a) else 1 - chosen
    value = float(_plain(other).double().mean() if isinstance(other, Known) else other)
    field = ctx.field(x)
    value = value if abs(value) < 1e30 else 0.0
    out = replace(
        field,
        far=share * field.far + (1 - share) * value**2,
        within=share * field.within + (1 - share) * value**2,
        apart=share * field.apart,
        mean=share * field.mean + (1 - share) * value,
        cross=share * field.cross + (1 - share) * value**2,
    )
    ctx.put(node, out, lambda grad: iter([(x.id, grad.scaled(share))]))
    return True


RULES = dict.fromkeys(UNARY, pointwise) | dict.fromkeys(_SAME, same) | dict.fromkeys(_BINARY, binary)
RULES |= {"bernoulli": bernoulli, "empty_like": empty, "new_empty": empty, "native_dropout": native_dropout}
RULES |= {"masked_fill": masked, "where": masked}
__all__ = ["RULES", "unbroadcast"]
