"""What has no rule: the real operation on Gaussian tensors with the carried moments, forward and backward,
measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from initscope.moments import axes as ax
from initscope.moments.context import Context, refs
from initscope.moments.field import SAMPLED, UNKNOWN, Field, independent
from initscope.moments.measure import draw, measure
from initscope.moments.trace import Known, Node, Ref
from initscope.torch_internals import tree_leaves, tree_map

_LARGEST = 2**23
"""Numbers in an operation's tensors; a larger one is not run."""


def sample(ctx: Context, node: Node) -> None:
    """Set the node's outputs from one run of the operation; where it cannot be run, they are ``unknown``."""
    inputs = refs(node)
    numbers = sum(_size(x.shape) for x in (*inputs, *(o for o in node.outputs if o is not None)))
    integers = any(not x.dtype.is_floating_point for x in inputs)
    if numbers > _LARGEST or integers or (node.op._schema.is_mutable and node.name.startswith("_foreach")):
        unknown(ctx, node)
        return
    try:
        _run(ctx, node, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        unknown(ctx, node, str(error))


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n


def _run(ctx: Context, node: Node, inputs: list[Ref]) -> None:
    generator = torch.Generator().manual_seed(node.outputs[0].id if node.outputs and node.outputs[0] else 0)
    fields = {x.id: ctx.field(x) for x in inputs}
    drawn = {x.id: draw(fields[x.id], generator).requires_grad_() for x in inputs}

    def real(x: Any) -> Any:
        if isinstance(x, Ref):
            return drawn[x.id] * 1.0  # not a leaf: operations in place are allowed
        if isinstance(x, Known):
            return x.value.double() if x.value.is_floating_point() else x.value
        return x

    kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        result = node.op(*tree_map(real, node.args), **tree_map(real, kwargs))
    outs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    usable = [
        (i, x)
        for i, (x, ref) in enumerate(zip(outs, [o for o in node.outputs if o is not None], strict=True))
        if x.is_floating_point()
    ]
    spread = max((f.spread for f in fields.values()), default=0.0)
    for i, ref in enumerate(node.outputs):
        if ref is not None and i not in dict(usable):
            ctx.put(node, independent(ax.default_axes(ref.shape), 0.0), None, how=SAMPLED, output=i)
    for i, x in usable:
        axes = _axes(tuple(x.shape), [fields[r.id].axes for r in inputs])
        found = replace(measure(x.detach(), axes), spread=spread)

        def pull(grad: Field, x=x, axes=axes):
            if not x.requires_grad:
                return
            noise = draw(replace(grad.like(axes), axes=axes), generator)
            wanted = [drawn[r.id] for r in inputs]
            grads = torch.autograd.grad(x, wanted, noise.to(x.dtype), retain_graph=True, allow_unused=True)
            for ref, g in zip(inputs, grads, strict=True):
                if g is not None:
                    yield ref.id, replace(measure(g, fields[ref.id].axes), mean=0.0, spread=grad.spread)

        ctx.put(node, found, pull, how=SAMPLED, output=i)


def _axes(shape: tuple[int, ...], known: list[ax.Axes]) -> ax.Axes:
    """The first input's roles where the shape allows; else those that the number of dimensions suggests."""
    for axes in known:
        if len(axes) == len(shape):
            return tuple(
                part if ax.size(part) == n else ax.axis(ax.main_role(part), n)
                for part, n in zip(axes, shape, strict=True)
            )
    for axes in known:
        if ax.size(ax.atoms(axes)) == _size(shape):
            return ax.reshape(axes, shape)
    return ax.default_axes(shape)


def unknown(ctx: Context, node: Node, why: str = "") -> None:
    """Carry the first input's moments on, and say that nobody knows."""
    inputs = [x for x in refs(node) if x.dtype.is_floating_point]
    source = inputs[0] if inputs else None
    for i, ref in enumerate(node.outputs):
        if ref is None:
            continue
        field = ctx.field(source) if source is not None else independent(ax.default_axes(ref.shape), 0.0)
        axes = _axes(ref.shape, [field.axes])

        def pull(grad: Field):
            if source is not None:
                at = ctx.field(source)
                yield source.id, replace(grad, axes=at.axes)

        ctx.put(
            node,
            replace(field, axes=axes),
            pull if ref.dtype.is_floating_point else None,
            how=UNKNOWN,
            output=i,
        )
