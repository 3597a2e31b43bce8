"""Gains solved from the network's own moments, so that neither signal nor gradient is lost: scheme ``auto``.

Nothing is read from data, and no formula knows the network: its graph is traced and the moments of its values
carried along (``initscope.moments``). A layer's output has the mean square ``s2 f``, ``s2`` that of its
weight and ``f`` what its inputs give; layer after layer, s2 is set so that this is a target (forward: LeCun
et al. 1998; He et al. 2015, equation 10; by measurement Mishkin and Matas 2015; by moments of a Keras graph
Bingham and Miikkulainen 2023).

- **Branches.** Of ``x + f(x)`` the branch is the side that more weights lie on. Its last weight has the
  target divided by the number of branches of the network, so that N of them add once what the stream carries
  (1/sqrt(N) in size: Hayou et al. 2021; Zhang et al. 2019).
- **Gradient.** Where a function bends (tanh), the mean square that keeps the signal lets the gradient grow by
  ``E f'^2 v / E f^2`` a layer (Schoenholz et al. 2017, equation 13). So the target is not 1 but that of 1,
  1/2, ..., 1/64 for which what the signal loses and what the gradient's scale varies over the layers, both as
  logarithms of mean squares, are smallest together. For ReLU, which bends nowhere else than in 0, that is 1.

Assumed of floating inputs: mean 0, mean square 1, samples independent, and positions the less alike the
further they are apart.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initscope.errors import TheoryUnavailable
from initscope.moments import axes as ax
from initscope.moments.context import Context, Use, refs
from initscope.moments.field import RINGS, UNKNOWN, Field
from initscope.moments.prediction import backward, forward
from initscope.moments.trace import Graph, Node, Ref, call_arguments, trace
from initscope.torch_internals import CONVOLUTION, tree_map

TARGETS = tuple(2.0**-i for i in range(7))
"""Mean squares of layers' outputs that are tried."""
_SAMPLES = 4
_SIDES = (32, 64, 224, 28, 16, 96, 128, 8)
"""Sides of pictures that are tried where no sample is given."""
_LIKENESS = 0.9
"""Correlation of neighbouring positions; its square at twice the distance, and so on."""


def solve(model: nn.Module, weights: Mapping[str, Tensor], sample: Any = None) -> dict[str, str]:
    """Scale ``weights`` (by their names in ``model``; matrices already drawn) in place; returns {name: why}
    of those that could not be solved and are as they were.

    ``sample``: inputs as ``model`` takes them (a tensor, arguments, keywords); of floating ones only the
    shapes are looked at. Without it the first layer's own sizes are used. A weight that several layers share
    is solved where it is first used.
    """
    if not weights:
        return {}
    try:
        graph = trace(model, _inputs(model, sample))
    # The network's own forward can raise anything, and the answer is the same: nothing was solved, and why.
    except Exception as error:
        why = f"the network cannot be traced ({type(error).__name__}: {error})".split("\n")[0]
        return dict.fromkeys(weights, why)
    places = {tensor.data_ptr(): name for name, tensor in weights.items()}
    known = {name: places.get(tensor.data_ptr()) for name, tensor in graph.parameters.items()}
    branches = _branch_ends(graph, known)
    start = {name: tensor.detach().clone() for name, tensor in weights.items()}
    best: tuple[float, dict[str, float], dict[str, str]] | None = None
    for target in TARGETS:
        found = _scaled(graph, weights, start, known, branches, target)
        if best is not None and found[0] >= best[0]:
            break
        best = found
    assert best is not None
    _, factors, failed = best
    for name, tensor in weights.items():
        tensor.copy_(start[name] * factors.get(name, 1.0))
    return failed


def _scaled(
    graph: Graph,
    weights: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    known: Mapping[str, str | None],
    branches: set[str],
    target: float,
) -> tuple[float, dict[str, float], dict[str, str]]:
    """(cost, factor of each weight, {weight: why it has none}) of one target."""
    factors: dict[str, float] = {}
    failed = dict.fromkeys(weights, "the network's forward does not multiply by it")
    outputs: dict[str, int] = {}
    share = 1 / max(len(branches), 1)
    for name, tensor in weights.items():
        tensor.copy_(start[name])

    def after(ctx: Context, node: Node, uses: list[Use]) -> bool:
        changed = False
        for use in uses:
            name = known.get(use.param)
            if name is None or name in outputs or use.output is None:
                continue
            outputs[name] = use.output
            square = ctx.values[use.output].field.square
            if ctx.made.get(use.output) == UNKNOWN:
                failed[name] = "an operation before it cannot be followed"
            elif not (square > 0 and math.isfinite(square)):
                failed[name] = f"its output has the mean square {square:g}"
            else:
                del failed[name]
                factors[name] = math.sqrt(target * (share if name in branches else 1.0) / square)
                weights[name].mul_(factors[name])
                changed = True
        return changed

    ctx = forward(graph, given=_assumed, after=after)
    backward(ctx, 1.0)
    grads = [ctx.grads[at].square for name, at in outputs.items() if name in factors and at in ctx.grads]
    logs = [math.log(square) for square in grads if square > 0 and math.isfinite(square)]
    # sqrt(12) standard deviations: the range, were they spread evenly.
    varies = math.sqrt(12) * statistics.pstdev(logs) if len(logs) > 1 else 0.0
    return varies - math.log(target), factors, failed


def _assumed(axes: ax.Axes) -> Field:
    within = _LIKENESS ** np.arange(RINGS) if ax.positions(axes) else np.ones(RINGS)
    return Field(axes, within, within.copy() if ax.count(axes, ax.SAMPLE) > 1 else np.zeros(RINGS))


def _branch_ends(graph: Graph, known: Mapping[str, str | None]) -> set[str]:
    """The last weight on each branch of a sum ``stream + branch``: the side that more weights lie on."""
    order: list[str] = []
    behind: dict[int, frozenset[str]] = {}
    ends = set()
    for node in graph.nodes:
        sides = [behind.get(ref.id, frozenset()) for ref in refs(node)]
        if node.name == "add" and len(sides) == 2 and all(isinstance(x, Ref) for x in node.args[:2]):
            more, less = sorted((sides[0] - sides[1], sides[1] - sides[0]), key=len, reverse=True)
            if len(more) > len(less):
                ends.add(max(more, key=order.index))
        mine = frozenset().union(*sides)
        for x in node.args:
            name = known.get(getattr(x, "param", None) or "")
            if name is not None:
                mine |= {name}
                if name not in order:
                    order.append(name)
        for out in node.outputs:
            if out is not None:
                behind[out.id] = mine
    return ends


def _inputs(model: nn.Module, sample: Any) -> Any:
    if sample is not None:
        args, kwargs = call_arguments(sample)
        cut = tree_map(lambda x: x[:_SAMPLES] if isinstance(x, Tensor) and x.dim() else x, (args, kwargs))
        return cut[1] if kwargs else cut[0]
    error = TheoryUnavailable("it has no layer that tells the shape of its inputs; pass sample=")
    for guess in _guesses(model):
        try:
            with torch.random.fork_rng(devices=[]):
                trace(model, guess)
        except Exception as trouble:  # the network's own: these inputs are not what it takes
            error = TheoryUnavailable(f"inputs of shape {tuple(guess.shape)}: {trouble}; pass sample=")
            continue
        return guess
    raise error


def _guesses(model: nn.Module) -> list[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return [torch.arange(_SAMPLES * n).reshape(_SAMPLES, n) % module.num_embeddings for n in (16, 8)]
        if isinstance(module, nn.Linear):
            n = module.in_features
            square = (
                [torch.zeros(_SAMPLES, 1, math.isqrt(n), math.isqrt(n))] if math.isqrt(n) ** 2 == n else []
            )
            return [torch.zeros(_SAMPLES, n), *square, torch.zeros(_SAMPLES, 16, n)]
        if isinstance(module, CONVOLUTION):
            sides = len(module.kernel_size)
            return [torch.zeros(_SAMPLES, module.in_channels, *[side] * sides) for side in _SIDES]
    return []
