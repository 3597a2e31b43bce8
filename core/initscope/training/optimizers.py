"""The optimizer of a configuration, how many steps it takes, and its learning rate at each of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from initscope.config.run_config import RunConfig


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with the config's hyperparameters; ``fused`` kernels where the device has them."""
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), betas=(config.momentum, 0.999), **common)


def planned_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    steps = config.epochs * steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


def learning_rate(config: RunConfig, step: int, total: int) -> float:
    """Learning rate of a step, a function of the step alone so that a resumed run needs no scheduler state.

    Linear warm-up, then constant, half a cosine to zero, or a tenth after one half and a hundredth after
    three quarters.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.learning_rate * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    return config.learning_rate
