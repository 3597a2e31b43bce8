"""What a diagnosis wants to know besides the rows: facts of the model before training and of the first batch.

Kept small and plain (JSON in ``status.json``); measured once a run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.meter import LayerMeter


@torch.no_grad()
def weight_facts(model: nn.Module, meter: LayerMeter) -> dict[str, Any]:
    """Parameter counts, what is frozen or missing from the optimizer, and layers whose units are all alike."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    facts: dict[str, Any] = {
        "parameters": total,
        "trainable_share": trainable / total if total else 0.0,
        "weights": {name: module.weight.numel() for name, module in meter.layers.items()},
        "identical_units": [name for name, module in meter.layers.items() if units_identical(module.weight)],
        "normalization": any("Norm" in type(m).__name__ for m in model.modules()),
    }
    if meter.optimizer is not None:
        held = {id(p) for group in meter.optimizer.param_groups for p in group["params"]}
        owned = sum(p.numel() for p in parameters if p.requires_grad and id(p) in held)
        facts["optimized_share"] = owned / total if total else 0.0
        facts["optimizer"] = type(meter.optimizer).__name__
    return facts


def units_identical(weight: Tensor) -> bool:
    """Whether every output unit of a weight (units first) has the same incoming weights."""
    return weight.shape[0] > 1 and bool((weight == weight[:1]).all())


@torch.no_grad()
def first_batch_facts(inputs: tuple, output: Any) -> dict[str, Any]:
    """Range, mean and spread of the inputs; number of outputs, and whether they are probabilities already."""
    facts: dict[str, Any] = {}
    x = next((value for value in inputs if isinstance(value, Tensor)), None)
    if x is not None and x.numel():
        if x.is_floating_point():
            x = x.detach().float()
            facts["input"] = {"mean": x.mean().item(), "std": x.std(correction=0).item(), "low": x.min().item(), "high": x.max().item()}
        facts["batch_size"] = x.shape[0]
        facts["input_shape"] = list(x.shape[1:])
    if isinstance(output, Tensor) and output.dim() == 2:
        y = output.detach().float()
        sums = y.sum(1)
        facts["outputs"] = y.shape[1]
        facts["outputs_sum_to_one"] = bool((y >= 0).all() and (sums - 1).abs().max() < 1e-3)
        facts["outputs_log_probabilities"] = bool((y <= 0).all() and (y.exp().sum(1) - 1).abs().max() < 1e-3)
    return facts
