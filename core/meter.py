"""Hooks that measure every layer of a network during one training step, and change nothing.

Three moments are watched: a layer's output in the forward pass, the gradients of its output and weight in the backward
pass (the weight's before any clipping), and the weight around the optimizer's step. Each quantity is one number a layer,
left on the device; ``collect`` stacks them into one tensor, so that a step costs at most one transfer.

Reductions are chosen by measurement on a CPU core (one million float32): ``vector_norm`` 0.08 ms, a sum over samples as a
matrix-vector product 0.05 ms, ``std`` 1.1 ms, ``var`` over samples 6.6 ms. They run over (samples, units) views in memory
order, because the same reductions over a channels-last tensor's logical order are ten times slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.inits import LAYERS
from core.schema import LAYER_METRICS

RECTIFIERS = (nn.ReLU, nn.ReLU6)
_FUNCTIONS = {"ReluBackward0": "ReLU", "TanhBackward0": "Tanh", "SigmoidBackward0": "Sigmoid", "GeluBackward0": "GELU", "SiluBackward0": "SiLU"}
"""Nonlinearities called as functions, by the name of their autograd node."""
_SHAPING = ("View", "Pool", "Dropout", "Mul", "Reshape", "Squeeze", "Permute", "Transpose")
"""Autograd nodes that may stand between a nonlinearity and the next layer."""
_SAFE_NORM = (1e-13, 1e15)
"""Outside this range float32 squares may underflow or overflow, and the norm is taken again in float64."""


class LayerMeter:
    """Measures the convolutions and linear layers of ``model``; a context manager that always takes its hooks off.

    ``armed`` decides whether the coming step is measured. Evaluation passes (``model.eval()`` or ``no_grad``) never are.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None):
        self.model = model
        self.optimizer = optimizer
        self.layers: dict[str, nn.Module] = {name or "model": m for name, m in model.named_modules() if isinstance(m, LAYERS)}
        self.names = list(self.layers)
        self.kinds = [type(module).__name__.lower() for module in self.layers.values()]
        # A computed weight (weight_norm, spectral_norm) is no parameter, and looking at it may change it: left unmeasured.
        self.weights = {i: m._parameters["weight"] for i, m in enumerate(self.layers.values()) if m._parameters.get("weight") is not None}
        self.armed = True
        self.order: list[int] = []
        self.activations: dict[str, str] = {}
        self.normalized: set[str] = set()
        self._values: list[dict[str, Tensor]] = [{} for _ in self.names]
        self._before: list[Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._latest: int | None = None

    # -- hooks on and off

    def __enter__(self) -> LayerMeter:
        try:
            self._hang_hooks()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _hang_hooks(self) -> None:
        for i, module in enumerate(self.layers.values()):
            self._handles.append(module.register_forward_pre_hook(self._before_layer))
            self._handles.append(module.register_forward_hook(lambda m, inputs, output, i=i: self._after_layer(i, output)))
        for i, weight in self.weights.items():
            if weight.requires_grad:
                self._handles.append(weight.register_post_accumulate_grad_hook(lambda p, i=i: self._after_gradient(i, p)))
        for module in self.model.modules():
            if is_activation(module):
                self._handles.append(module.register_forward_hook(self._after_activation))
            elif is_normalization(module):
                self._handles.append(module.register_forward_hook(self._after_normalization))
        if self.optimizer is not None:
            self._handles.append(self.optimizer.register_step_pre_hook(self._before_update))
            self._handles.append(self.optimizer.register_step_post_hook(self._after_update))

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before = None

    @property
    def _watching(self) -> bool:
        return self.armed and self.model.training and torch.is_grad_enabled()

    # -- the three moments

    def _after_layer(self, i: int, output: Any) -> None:
        if not self._watching or not isinstance(output, Tensor):
            return
        if i not in self.order:
            self.order.append(i)
        self._latest = i
        self._values[i].update(forward_statistics(output.detach()))
        if output.requires_grad:
            output.register_hook(lambda gradient, i=i: self._after_output_gradient(i, gradient))

    def _after_output_gradient(self, i: int, gradient: Tensor) -> None:
        if self.armed:
            flat = by_sample(gradient.detach())
            self._values[i]["activation_grad_rms"] = norm(flat) / math.sqrt(max(1, flat.numel()))

    def _after_activation(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._watching or self._latest is None or not isinstance(output, Tensor):
            return
        self.activations[self.names[self._latest]] = type(module).__name__
        if isinstance(module, RECTIFIERS):
            self._values[self._latest]["dead_fraction"] = dead_fraction(output)

    def _before_layer(self, module: nn.Module, inputs: Any) -> None:
        """Notice a nonlinearity that was called as a function (``F.relu``): no module's hook sees it."""
        if not self._watching or self._latest is None or not inputs or not isinstance(inputs[0], Tensor):
            return
        function, latest = _function_before(inputs[0]), self._latest
        if function is None or self.activations.setdefault(self.names[latest], function) != function:
            return
        if function == "ReLU" and "dead_fraction" not in self._values[latest]:
            self._values[latest]["dead_fraction"] = dead_fraction(inputs[0])

    def _after_normalization(self, *_: object) -> None:
        if self._watching and self._latest is not None:
            self.normalized.add(self.names[self._latest])

    def _after_gradient(self, i: int, weight: Tensor) -> None:
        if self.armed and weight.grad is not None:
            length = norm(weight.grad.detach())
            self._values[i].update(grad_norm=length, grad_rms=length / math.sqrt(weight.numel()))

    @torch.no_grad()
    def _before_update(self, *_: object) -> None:
        if not self.armed or not self.weights:
            return
        weights = list(self.weights.values())
        if self._before is None:
            self._before = [torch.empty_like(weight) for weight in weights]
        torch._foreach_copy_(self._before, weights)
        for i, length in zip(self.weights, norms(self._before), strict=True):
            self._values[i]["weight_norm"] = length

    @torch.no_grad()
    def _after_update(self, *_: object) -> None:
        if not self.armed or self._before is None:
            return
        torch._foreach_sub_(self._before, list(self.weights.values()))
        for i, moved in zip(self.weights, norms(self._before), strict=True):
            # A weight of exact zeros that stays so has moved by nothing, not by 0/0.
            ratio = moved / self._values[i]["weight_norm"]
            self._values[i]["update_ratio"] = torch.where(moved == 0, moved, ratio)

    # -- the result

    @torch.no_grad()
    def collect(self) -> Tensor:
        """One column a layer in execution order, one row a metric of ``LAYER_METRICS`` less ``nonfinite``; resets the step.

        Shape (metrics, layers), float32, on the model's device. What was not measured (a frozen weight, a layer that
        did not run, no optimizer given, a weight that is computed) is marked by the value ``MISSING``.
        """
        missing = torch.full((), MISSING, device=next(self.model.parameters()).device)
        columns = []
        for i in self._ordered():
            values = self._values[i]
            if "weight_norm" not in values and i in self.weights:
                values["weight_norm"] = norm(self.weights[i].detach())
            columns.append(torch.stack([values.get(name, missing).to(torch.float32) for name in LAYER_METRICS[:-1]]))
        self._values = [{} for _ in self.names]
        self._latest = None
        return torch.stack(columns, dim=1)

    def discard(self) -> None:
        """Forget the step that was being measured."""
        self._values = [{} for _ in self.names]
        self._latest = None

    def _ordered(self) -> Iterable[int]:
        """Layers in the order of their first execution; those never run last."""
        return self.order + [i for i in range(len(self.names)) if i not in self.order]

    def ordered_names(self) -> list[str]:
        """Layer names in the order of ``collect``'s columns."""
        return [self.names[i] for i in self._ordered()]

    def ordered_kinds(self) -> list[str]:
        """Layer kinds in the order of ``collect``'s columns."""
        return [self.kinds[i] for i in self._ordered()]


MISSING = -1e30
"""Stands for "not measured" on the way from device to disk, where it becomes null; no metric takes this value."""


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's element-wise nonlinearities."""
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention)


def is_normalization(module: nn.Module) -> bool:
    """Whether ``module`` is a batch, layer, group, instance or RMS norm, torch's or anybody's, by its class name."""
    name = type(module).__name__
    return not name.startswith("_") and name.rstrip("123dD").endswith("Norm")


def _function_before(x: Tensor) -> str | None:
    """The nonlinearity whose output ``x`` is, perhaps pooled, reshaped or dropped out since; None if the last operation was another."""
    node = x.grad_fn
    while node is not None and any(word in node.name() for word in _SHAPING):
        inputs = [child for child, _ in node.next_functions if child is not None]
        node = inputs[0] if len(inputs) == 1 else None  # a product of two is a gate
    return None if node is None else _FUNCTIONS.get(node.name())


def dead_fraction(output: Tensor) -> Tensor:
    """Share of a rectifier's units (samples first) that output zero for every sample."""
    highest = by_sample(output.detach()).amax(0)
    return (highest <= 0).sum() / highest.numel()


def by_sample(x: Tensor) -> Tensor:
    """``x`` (samples first) as (samples, units), a view in memory order where that is possible."""
    if x.dim() < 2:
        return x.reshape(-1, 1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.reshape(x.shape[0], -1)


def norm(x: Tensor) -> Tensor:
    """L2 norm as a scalar tensor, right also where float32 squares would vanish (below 1e-19) or overflow."""
    if x.device.type == "cuda" or x.dtype == torch.float64:
        return torch.linalg.vector_norm(x, dtype=torch.float64)
    length = torch.linalg.vector_norm(x, dtype=torch.float32)
    if x.device.type == "cpu":
        if not _SAFE_NORM[0] < length < _SAFE_NORM[1]:
            length = torch.linalg.vector_norm(x, dtype=torch.float64)
        return length.double()
    return length


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """L2 norms of several tensors, with few kernels where launching one costs."""
    if tensors[0].device.type == "cpu":
        return [norm(x) for x in tensors]
    return torch._foreach_norm(tensors)


def forward_statistics(output: Tensor) -> dict[str, Tensor]:
    """activation_mean, activation_std and signal_std of a layer's output (samples first).

    ``signal_std`` is the population standard deviation of each unit across the samples, root-mean-squared over units. It
    can be a millionth of the values themselves, so the first sample is subtracted before anything is squared: the
    difference of two close floats is exact, and what is left has the size of the signal. The whole variance is that
    across samples plus that of the units' means, which are few and are shifted before they are squared too.
    """
    x = by_sample(output)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    samples, units = x.shape
    count = max(1, x.numel())
    difference = x - x[:1]
    moved = torch.mv(difference.t(), torch.ones(samples, device=x.device, dtype=x.dtype)) / max(1, samples)
    origin = x[0, 0]
    means = (x[0] - origin) + moved
    mean = means.mean()
    signal = (norm(difference) ** 2 / count - norm(moved) ** 2 / max(1, units)).clamp(min=0)
    return {
        "activation_mean": origin + mean,
        "activation_std": (signal + norm(means - mean) ** 2 / max(1, units)).sqrt(),
        "signal_std": signal.sqrt(),
    }
