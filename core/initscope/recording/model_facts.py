"""What a diagnosis wants to know besides the rows: facts of the model before training, of the first step and of the end.

Kept small and plain (JSON in ``status.json``); measured once a run.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from initscope.networks.inits import fans
from initscope.recording.layers import Layer, is_normalization
from initscope.recording.meter import LayerMeter
from initscope.recording.tensors import is_dense, tensors_of

FIRST_STEPS = 8
"""Steps whose outputs are looked at for what the targets are like."""
IDENTICAL = 1e-3
"""Units whose incoming weights differ by at most this share of the weights' size count as identical."""
AGREED = 0.05
"""A loss's scale is a fact if it is the same in all of these steps, up to this share."""
_PRODUCTS = (
    "AddmmBackward0",
    "MmBackward0",
    "BmmBackward0",
    "AddmvBackward0",
    "MvBackward0",
    "BaddbmmBackward0",
    "LinearBackward0",
)
_SHAPE_NODES = ("View", "Squeeze", "Select", "Reshape", "UnsafeView")
"""Autograd operations that only change a shape."""
_SCALING = ("Mul", "Div", "Add")
"""Autograd operations by which a loss is scaled or joined by a penalty: they leave the sign of its gradient alone."""
_CHAIN_LIMIT = 400
"""Autograd nodes looked at between the loss and the last layer."""


@torch.no_grad()
def weight_facts(model: nn.Module, meter: LayerMeter) -> dict[str, Any]:
    """Parameter counts, what is frozen or missing from the optimizers, scales of weights and biases, units all alike.

    Of a weight that is not there yet (a lazy module's) nothing is said.
    """
    parameters = [p for p in model.parameters() if not is_lazy(p)]
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    weights = {layer.name: layer.weight for layer in meter.layers if layer.weight is not None}
    facts: dict[str, Any] = {
        "parameters": total,
        "trainable_share": trainable / total if total else 0.0,
        "weights": {name: weight.numel() for name, weight in weights.items()},
        "layer_titles": {layer.name: layer_title(layer) for layer in meter.layers if layer.name.replace(".", "").isdigit()},
        "identical_units": identical_layers(meter),
        "normalization": any(is_normalization(m) for m in model.modules()),
        "frozen": [name for name, weight in weights.items() if not weight.requires_grad],
        "scales": {layer.name: scales(layer.owner) for layer in multiplying(meter.layers)},
    }
    if meter.optimizers:
        held = {id(p) for optimizer in meter.optimizers for group in optimizer.param_groups for p in group["params"]}
        owned = sum(p.numel() for p in parameters if p.requires_grad and id(p) in held)
        facts["optimized_share"] = owned / total if total else 0.0
        facts["unoptimized"] = [name for name, weight in weights.items() if id(weight) not in held]
        facts["optimizer"] = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in meter.optimizers))
    return facts


def layer_title(layer: Layer) -> str:
    """What a layer is that has only a number for a name: "Linear 64 to 16", "Conv2d 1 to 16, 3 × 3"."""
    weight, kind = layer.weight, type(layer.owner).__name__
    if weight is None or weight.dim() < 2:
        return kind
    ins, outs = (getattr(layer.owner, name, None) for name in ("in_channels", "out_channels"))
    if ins is None or outs is None:
        ins, outs = (getattr(layer.owner, name, size) for name, size in (("in_features", weight.shape[1]), ("out_features", weight.shape[0])))
    kernel = " × ".join(map(str, weight.shape[2:]))
    return f"{kind} {ins} to {outs}" + (f", {kernel}" if kernel else "")


def multiplying(layers: Sequence[Layer]) -> list[Layer]:
    """The convolutions and linear layers whose weight is a parameter with units that sum over inputs."""
    return [x for x in layers if x.family in ("conv", "linear") and x.key == "weight" and x.weight is not None]


def scales(module: nn.Module) -> dict[str, float]:
    """``gain``: weight std times sqrt(fan_in), 1.41 for Kaiming, 0.58 for torch's default; ``bias_mean`` and ``bias_std``."""
    fan_in = fans(module)[0]
    weight, bias = module.weight.detach().float(), getattr(module, "bias", None)
    result = {"gain": (weight.std(correction=0) * fan_in**0.5).item(), "mean": weight.mean().item()}
    if bias is not None:
        result |= {"bias_mean": bias.float().mean().item(), "bias_std": bias.float().std(correction=0).item()}
    return result


def identical_layers(meter: LayerMeter) -> list[str]:
    """Layers whose output units all have the same incoming weights."""
    return [layer.name for layer in multiplying(meter.layers) if units_identical(units_first(layer.owner))]


def units_first(module: nn.Module) -> Tensor:
    """The layer's weight with output units as its first dimension (transposed convolutions keep them second)."""
    return module.weight.transpose(0, 1) if getattr(module, "transposed", False) else module.weight


@torch.no_grad()
def units_identical(weight: Tensor) -> bool:
    """Whether every output unit of a weight (units first) has the same incoming weights, up to ``IDENTICAL`` of their size."""
    if weight.shape[0] < 2:
        return False
    return bool((weight - weight[:1]).abs().max() <= IDENTICAL * weight.abs().max())


@torch.no_grad()
def first_batch_facts(inputs: Any, output: Any) -> dict[str, Any]:
    """Range, mean and spread of the inputs; number and range of outputs, and whether they are probabilities already.

    ``signal`` of the inputs is their standard deviation across the samples, root-mean-squared over elements. Of several inputs the first tensor is
    taken, of several outputs ``main_output``.
    """
    facts: dict[str, Any] = {}
    x = next((tensor for tensor in tensors_of(inputs) if not tensor.is_nested), None)  # a nested one has no one shape
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
        facts["outputs_sum_to_one"] = bool(y.shape[1] > 1 and (y >= 0).all() and (sums - 1).abs().max() < 1e-3)
        facts["outputs_log_probabilities"] = bool(y.shape[1] > 1 and (y <= 0).all() and (y.exp().sum(1) - 1).abs().max() < 1e-3)
    return facts


def main_output(output: Any) -> Tensor | None:
    """What the loss is most likely taken of: what the output calls ``logits``, else the first real tensor with samples and units."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    output = logits if isinstance(logits, Tensor) else output
    return next((x for x in tensors_of(output) if is_dense(x) and x.numel() and x.dim() > 1), None)


def input_facts(x: Tensor) -> dict[str, float]:
    """mean, std, low, high, signal of a batch (samples first), and how many values are NaN or infinite."""
    facts = {"mean": x.mean().item(), "std": x.std(correction=0).item(), "low": x.min().item(), "high": x.max().item()}
    difference = (x - x[:1]).flatten(1) if x.dim() > 1 else (x - x[:1]).unsqueeze(1)
    facts["signal"] = difference.double().var(0, correction=0).mean().sqrt().item()
    facts["nonfinite"] = int((~torch.isfinite(x)).sum())
    return facts


def first_step_facts(meter: LayerMeter, loss: Any) -> dict[str, Any]:
    """Which nonlinearity and normalization follow each layer, and the operations between the last layer and the loss."""
    facts: dict[str, Any] = {"activations": dict(meter.activations), "normalized": sorted(meter.normalized)}
    if isinstance(loss, Tensor) and loss.grad_fn is not None:
        facts["loss"] = loss_facts(loss)
    return facts


def loss_facts(loss: Tensor) -> dict[str, Any]:
    """What autograd knows of the loss, from it down to the last layer (shortest path).

    ``chain``: the operations, such as ["NllLoss", "LogSoftmax", "Softmax"] for a softmax before cross-entropy; ``classes``: the size of
    what the first softmax runs over; ``across_batch``: whether that is the batch; ``broadcast``: whether n outputs became n x n.
    """
    path = _path_to_last_layer(loss)
    shapes = [_shape(node) for node in path]
    facts: dict[str, Any] = {
        "chain": [node.name().removesuffix("Backward0") for node in path[:-1]],
        "classes": None,
        "across_batch": False,
        "broadcast": any(a and b and math.prod(b) > 1 and math.prod(a) == math.prod(b) ** 2 for a, b in pairwise(shapes)),
    }
    soft = next((node for node in path if "Softmax" in node.name()), None)
    if soft is not None and (shape := _shape(soft)):
        dim = getattr(soft, "_saved_dim", 1)
        dim = dim - 2**64 if dim >= 2**63 else dim
        facts |= {"classes": int(shape[dim]), "across_batch": len(shape) > 1 and dim % len(shape) == 0}
    return facts


def _path_to_last_layer(loss: Tensor) -> list[Any]:
    """Autograd nodes from the loss to the nearest matrix product or convolution, both ends included; empty if there is none near."""
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
        return tuple(node._input_metadata[0].shape)
    except (AttributeError, RuntimeError, IndexError):
        return ()


@torch.no_grad()
def best_constant_loss(chain: Sequence[str], loss: float, output: Tensor, gradient: Tensor) -> tuple[float, float] | None:
    """(loss on a batch of the best answer that does not look at the input, its standard error); None if it cannot be told.

    The targets are not seen by a recorder, but the loss's gradient for the outputs gives them away. Cross-entropy: it is
    negative at the true class alone; the answer is the classes' entropy (Miller and Madow's correction). Mean squared error:
    target = output - gradient * n / 2; the answer is the targets' variance, one mean for each unit or channel.
    Binary cross-entropy with logits: target = sigmoid(output) - gradient * n; the answer is the mean entropy of a unit.
    """
    output, gradient = output.float(), gradient.float()
    kind = next((name for name in chain if not name.startswith(_SCALING)), "")
    below = chain[chain.index(kind) + 1 :] if kind else []
    if output.dim() < 2 or any(not name.startswith((*_SHAPE_NODES, "LogSoftmax")) for name in below):
        return None
    if kind == "NllLoss" and output.dim() == 2:
        counts = torch.bincount(gradient[gradient.abs().sum(1) > 0].argmin(1), minlength=output.shape[1]).double()
        return _entropy(counts[counts > 0])
    if kind == "MseLoss":
        difference = gradient * (gradient.numel() / 2)
        if not math.isclose(difference.square().mean().item(), loss, rel_tol=0.01):
            return None  # scaled, or of other targets than we think
        target = (output - difference).reshape(*output.shape[:2], -1)
        count = len(target)
        squares = (target - target.mean((0, 2), keepdim=True)).square().mean((1, 2)).double() * (count / max(1, count - 1))
        return squares.mean().item(), squares.std(correction=0).item() / math.sqrt(count)
    if kind == "BinaryCrossEntropyWithLogits":
        target = (output.sigmoid() - gradient * gradient.numel()).flatten(1)
        if not (target.min() > -0.05 and target.max() < 1.05):
            return None
        units = [_entropy(torch.stack([rate, 1 - rate]).double() * len(target)) for rate in target.mean(0).clamp(1e-6, 1 - 1e-6)]
        return sum(u[0] for u in units) / len(units), max(u[1] for u in units)
    return None


@torch.no_grad()
def cross_entropy_scale(chain: Sequence[str], loss: float, output: Tensor, gradient: Tensor) -> float | None:
    """The loss over the batch's mean cross-entropy: the batch size for a sum, 1/4 for a loss divided for accumulation.

    The targets are those that the gradient gives away (``constant_answer``); None for other losses.
    """
    kind = next((name for name in chain if not name.startswith(_SCALING)), "")
    if kind != "NllLoss" or output.dim() != 2:
        return None
    counted = gradient.abs().sum(1) > 0
    mean = torch.nn.functional.cross_entropy(output[counted].float(), gradient[counted].argmin(1))
    scale = loss / mean.item() if counted.any() and mean > 0 else math.nan
    return scale if math.isfinite(scale) and scale > 0 else None


def _entropy(counts: Tensor) -> tuple[float, float] | None:
    """(entropy in nats with Miller and Madow's correction, its standard error) of classes seen ``counts`` times; None if none was."""
    total = float(counts.sum())
    if not total:
        return None
    share = counts / total
    entropy = float(-(share * share.log()).sum())
    spread = float((share * share.log().square()).sum()) - entropy**2
    return entropy + (len(share) - 1) / (2 * total), math.sqrt(max(0.0, spread) / total)


def agreed(scales: Sequence[float]) -> float | None:
    """The median of ``scales``; None where they differ by more than ``AGREED``: a loss with weights or smoothed labels has no one scale."""
    middle = statistics.median(scales)
    return middle if max(scales) - min(scales) <= AGREED * middle else None


def pooled_constant_loss(answers: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of independent (value, standard error) pairs, and its standard error."""
    count = len(answers)
    return sum(value for value, _ in answers) / count, math.sqrt(sum(error**2 for _, error in answers)) / count


def last_facts(meter: LayerMeter) -> dict[str, Any]:
    """Layers whose units are all alike at the end: symmetry that training did not break."""
    return {"end": {"identical_units": identical_layers(meter)}}
