"""What a diagnosis wants to know besides the rows: facts of the model before training, of the first step and
of the end.

Kept small and plain (JSON in ``status.json``); measured once a run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initscope.networks.inits import fans
from initscope.recording.layers import Layer, is_flat, is_normalization
from initscope.recording.meter import LayerMeter
from initscope.recording.tensors import is_dense, is_readable, tensors_of
from initscope.recording.wrappers import holders
from initscope.torch_internals import saved_names

FIRST_STEPS = 8
"""Steps whose outputs are looked at for what the targets are like."""
IDENTICAL = 1e-3
"""Units whose incoming weights differ by at most this share of the weights' size count as identical."""
_PRODUCTS = (
    "AddmmBackward0",
    "MmBackward0",
    "BmmBackward0",
    "AddmvBackward0",
    "MvBackward0",
    "BaddbmmBackward0",
    "LinearBackward0",
)
_SHAPING = (
    "TBackward",
    "Transpose",
    "Permute",
    "View",
    "Expand",
    "Unsqueeze",
    "UnsafeView",
    "Reshape",
    "ToCopy",
    "Clone",
)
"""Autograd operations between a parameter and the product it takes part in."""
_CHAIN_LIMIT = 400
"""Autograd nodes looked at between the loss and the last layer."""
_GRAPH_LIMIT = 50_000
"""Autograd nodes looked at in search of the model's parameters."""


@torch.no_grad()
def weight_facts(model: nn.Module, meter: LayerMeter) -> dict[str, Any]:
    """Parameter counts, what is frozen or missing from the optimizers, scales of weights and biases, units
    all alike.

    Of a weight that is not there yet (a lazy module's) nothing is said.
    """
    parameters = [p for p in model.parameters() if not is_lazy(p)]
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    weights = {layer.name: layer.weight for layer in meter.layers if layer.weight is not None}
    facts: dict[str, Any] = {
        "parameters": None if is_flat(model) else total,  # of flat ones this process has its share alone
        "trainable_share": trainable / total if total else 0.0,
        "weights": {name: weight.numel() for name, weight in weights.items()},
        "layer_titles": {
            layer.name: layer_title(layer) for layer in meter.layers if layer.name.replace(".", "").isdigit()
        },
        "identical_units": identical_layers(meter),
        "normalization": any(is_normalization(m) for m in model.modules()),
        "frozen": [name for name, weight in weights.items() if not weight.requires_grad],
        "scales": {layer.name: scales(layer.owner) for layer in multiplying(meter.layers)},
    }
    if meter.optimizers:
        held = holders(meter.optimizers)
        owned = sum(p.numel() for p in parameters if p.requires_grad and held(p))
        facts["optimized_share"] = owned / total if total else 0.0
        facts["unoptimized"] = [name for name, weight in weights.items() if not held(weight)]
        facts["optimizer"] = ", ".join(
            dict.fromkeys(type(optimizer).__name__ for optimizer in meter.optimizers)
        )
    return facts


def layer_title(layer: Layer) -> str:
    """What a layer is that has only a number for a name: "Linear 64 to 16", "Conv2d 1 to 16, 3 × 3"."""
    weight, kind = layer.weight, type(layer.owner).__name__
    if weight is None or weight.dim() < 2:
        return kind
    ins, outs = (getattr(layer.owner, name, None) for name in ("in_channels", "out_channels"))
    if ins is None or outs is None:
        ins, outs = (
            getattr(layer.owner, name, size)
            for name, size in (("in_features", weight.shape[1]), ("out_features", weight.shape[0]))
        )
    kernel = " × ".join(map(str, weight.shape[2:]))
    return f"{kind} {ins} to {outs}" + (f", {kernel}" if kernel else "")


def multiplying(layers: Sequence[Layer]) -> list[Layer]:
    """The convolutions and linear layers whose weight is a parameter with units that sum over inputs, and can
    be looked at.
    """
    found = [
        x for x in layers if x.family in ("conv", "linear") and x.key == "weight" and x.weight is not None
    ]
    return [x for x in found if x.weight.numel() and is_readable(x.weight)]


def scales(module: nn.Module) -> dict[str, float]:
    """``gain``: weight std times sqrt(fan_in), 1.41 for Kaiming, 0.58 for torch's default; ``bias_mean`` and
    ``bias_std``.
    """
    fan_in = fans(module)[0]
    weight, bias = module.weight.detach().float(), getattr(module, "bias", None)
    result = {"gain": (weight.std(correction=0) * fan_in**0.5).item(), "mean": weight.mean().item()}
    if bias is not None:
        result |= {"bias_mean": bias.float().mean().item(), "bias_std": bias.float().std(correction=0).item()}
    return result


def identical_layers(meter: LayerMeter) -> list[str]:
    """Layers whose output units all have the same incoming weights."""
    alike = {x.name for x in multiplying(meter.layers) if units_identical(units_first(x.owner))}
    alike |= {x.name for x in meter.layers if _recurrent_units_identical(x.owner)}
    return [layer.name for layer in meter.layers if layer.name in alike]


def _recurrent_units_identical(module: nn.Module) -> bool:
    """Whether the units of a recurrent layer compute the same: in all its weights and biases the rows of each
    gate are alike.
    """
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return False
    weights = [p for p in module.parameters() if p.numel() and is_readable(p)]
    units = module.hidden_size
    if units < 2 or not weights or any(p.shape[0] % units for p in weights):
        return False  # a projection's rows are no units of the gates
    gates = [gate for p in weights for gate in p.reshape(len(p), -1).split(units)]
    return all(units_identical(gate) for gate in gates)


def units_first(module: nn.Module) -> Tensor:
    """The layer's weight with output units as its first dimension (transposed convolutions keep them
    second).
    """
    return module.weight.transpose(0, 1) if getattr(module, "transposed", False) else module.weight


@torch.no_grad()
def units_identical(weight: Tensor) -> bool:
    """Whether every output unit of a weight (units first) has the same incoming weights, up to ``IDENTICAL``
    of their size.
    """
    if weight.shape[0] < 2:
        return False
    return bool((weight - weight[:1]).abs().max() <= IDENTICAL * weight.abs().max())


@torch.no_grad()
def first_batch_facts(inputs: Any, output: Any) -> dict[str, Any]:
    """Range, mean and spread of the inputs; number and range of outputs, and whether they are probabilities
    already.

    ``signal`` of the inputs is their standard deviation across the samples, root-mean-squared over elements.
    Of several inputs the first tensor is taken, of several outputs ``main_output``.
    """
    facts: dict[str, Any] = {}
    x = next(
        (tensor for tensor in tensors_of(inputs) if not tensor.is_nested), None
    )  # a nested one has no one shape
    if x is not None and x.numel() and x.dim():
        if is_dense(x):
            facts["input"] = input_facts(x.detach().float())
        facts["batch_size"] = x.shape[0]
        facts["input_shape"] = list(x.shape[1:])
    output = main_output(output)
    if output is not None and output.dim() == 2:
        y = output.detach().float()
        sums = y.sum(1)
        facts["outputs"] = y.shape[1]
        facts["output_range"] = [y.min().item(), y.max().item()]
        facts["outputs_sum_to_one"] = bool(
            y.shape[1] > 1 and (y >= 0).all() and (sums - 1).abs().max() < 1e-3
        )
        facts["outputs_log_probabilities"] = bool(
            y.shape[1] > 1 and (y <= 0).all() and (y.exp().sum(1) - 1).abs().max() < 1e-3
        )
    return facts


def main_output(output: Any) -> Tensor | None:
    """What the loss is most likely taken of: what the output calls ``logits``, else the first real tensor
    with samples and units.
    """
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    output = logits if isinstance(logits, Tensor) else output
    return next((x for x in tensors_of(output) if is_dense(x) and x.numel() and x.dim() > 1), None)


def input_facts(x: Tensor) -> dict[str, float]:
    """mean, std, low, high, signal of a batch (samples first), and how many values are NaN or infinite."""
    facts = {
        "mean": x.mean().item(),
        "std": x.std(correction=0).item(),
        "low": x.min().item(),
        "high": x.max().item(),
    }
    difference = (x - x[:1]).flatten(1) if x.dim() > 1 else (x - x[:1]).unsqueeze(1)
    facts["signal"] = difference.double().var(0, correction=0).mean().sqrt().item()
    facts["nonfinite"] = int((~torch.isfinite(x)).sum())
    return facts


def first_step_facts(meter: LayerMeter, loss: Any, output_node: Any = None) -> dict[str, Any]:
    """Which nonlinearity and normalization follow each layer, and the operations between the last layer and
    the loss.

    ``output_node`` is the autograd node of the model's output: with it ``loss.other_network`` says whether
    the loss is computed by weights that are none of the model's, as a generator's by its discriminator.
    """
    facts: dict[str, Any] = {"activations": dict(meter.activations), "normalized": sorted(meter.normalized)}
    if meter.trained_in_evaluation:
        facts["trained_in_evaluation"] = True
    if meter.shadow:
        facts["shadow_pass"] = dict(meter.shadow)
    if isinstance(loss, Tensor) and loss.grad_fn is not None:
        facts["loss"] = loss_facts(loss)
        if output_node is not None:
            facts["loss"]["other_network"] = _judged_by_another(loss, output_node, meter.model)
    return facts


def _judged_by_another(loss: Tensor, output_node: Any, model: nn.Module) -> bool:
    """Whether the last product before the loss is of weights that are not the model's, and lies above the
    model's output.
    """
    path = _path_to_last_layer(loss)
    if not path or output_node in path:
        return False
    leaves = [child for child, _ in path[-1].next_functions if child is not None]
    while any(leaf.name().startswith(_SHAPING) for leaf in leaves):
        leaves = [
            x
            for leaf in leaves
            for x in (
                [c for c, _ in leaf.next_functions if c] if leaf.name().startswith(_SHAPING) else [leaf]
            )
        ]
    held = [leaf.variable for leaf in leaves if hasattr(leaf, "variable")]
    if not held and all(child is not None for child, _ in path[-1].next_functions):
        return False  # outputs times outputs, as a matrix of similarities
    own = {id(p) for p in model.parameters()}
    return not any(id(p) in own for p in held)


def reaches(loss: Tensor, model: nn.Module) -> bool:
    """Whether the loss's graph holds any of the model's parameters; True too where the graph is too large to
    tell.
    """
    own = {id(p) for p in model.parameters()}
    seen, waiting = {loss.grad_fn}, deque([loss.grad_fn])
    while waiting and len(seen) < _GRAPH_LIMIT:
        node = waiting.popleft()
        if id(getattr(node, "variable", None)) in own:
            return True
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return bool(waiting)


def backward_has_run(loss: Tensor) -> bool:
    """Whether what the loss's graph had saved for the backward pass has been used and freed; False where
    nothing was saved near the loss.
    """
    seen, waiting = {loss.grad_fn}, deque([loss.grad_fn])
    while waiting and len(seen) < _CHAIN_LIMIT:
        node = waiting.popleft()
        for name in saved_names(node):
            try:
                found = getattr(node, name)
            except RuntimeError as error:
                if "already been freed" in str(error) or "after they have" in str(error):
                    return True
                continue  # an attribute that torch cannot show
            if isinstance(found, Tensor):
                return False
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return False


def loss_facts(loss: Tensor) -> dict[str, Any]:
    """What autograd knows of the loss, from it down to the last layer (shortest path).

    ``chain``: the operations, such as ["NllLoss", "LogSoftmax", "Softmax"] for a softmax before
    cross-entropy; ``classes``: the size of what the first softmax runs over; ``across_batch``: whether that
    is the batch; ``broadcast``: whether n outputs became n x n; ``indexed_across``: whether n x k outputs
    were indexed into n x n.
    """
    path = _path_to_last_layer(loss)
    shapes = [_shape(node) for node in path]
    facts: dict[str, Any] = {
        "chain": [node.name().removesuffix("Backward0") for node in path[:-1]],
        "classes": None,
        "across_batch": False,
        "broadcast": any(
            a and b and math.prod(b) > 1 and math.prod(a) == math.prod(b) ** 2 for a, b in pairwise(shapes)
        ),
    }
    facts["indexed_across"] = any(
        upper.name().startswith("Index") and _takes_a_column_for_each_row(a, b)
        for upper, (a, b) in zip(path, pairwise(shapes), strict=False)
    )
    soft = next((node for node in path if "Softmax" in node.name()), None)
    if soft is not None and (shape := _shape(soft)):
        dim = getattr(soft, "_saved_dim", 1)
        dim = dim - 2**64 if dim >= 2**63 else dim
        facts |= {"classes": int(shape[dim]), "across_batch": len(shape) > 1 and dim % len(shape) == 0}
    return facts


def _takes_a_column_for_each_row(made: tuple[int, ...], given: tuple[int, ...]) -> bool:
    """Whether indexing (n, k) gave (n, n): ``values[:, actions]`` instead of each row's own column."""
    square = len(made) == 2 and made[0] == made[1] > 1
    return square and len(given) == 2 and given[0] == made[0] != given[1]


def _path_to_last_layer(loss: Tensor) -> list[Any]:
    """Autograd nodes from the loss to the nearest matrix product or convolution, both ends included; empty if
    there is none near.
    """
    above: dict[Any, Any] = {loss.grad_fn: None}
    waiting = deque(above)
    while waiting and len(above) < _CHAIN_LIMIT:
        node = waiting.popleft()
        if node.name() in _PRODUCTS or node.name().startswith(("Convolution", "CompiledFunction")):
            path = [node]
            while (node := above[node]) is not None:
                path.append(node)
            return path[::-1]
        for child, _ in node.next_functions:
            if child is not None and child not in above:
                above[child] = node
                waiting.append(child)
    return []


def _shape(node: Any) -> tuple[int, ...]:
    """Shape of an autograd node's output; empty where torch does not tell (the attribute is not public)."""
    try:
        shape = tuple(node._input_metadata[0].shape)
    except (AttributeError, RuntimeError, IndexError):
        return ()
    return (
        shape if all(isinstance(size, int) for size in shape) else ()
    )  # a nested tensor has sizes that are no numbers


def last_facts(meter: LayerMeter) -> dict[str, Any]:
    """Layers whose units are all alike at the end: symmetry that training did not break."""
    return {"end": {"identical_units": identical_layers(meter)}}
