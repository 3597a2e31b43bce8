"""What must hold before a run begins: a model that can be trained, in the process that records."""

from __future__ import annotations

import os

import torch
from torch import nn

from initscope.errors import ConfigError, RecordingError
from initscope.recording.guard import Guard
from initscope.recording.meter import LayerMeter
from initscope.recording.wrappers import holders


def is_another_rank() -> bool:
    """Whether this is one of several processes that train together, and not the first: as torch.distributed
    knows, else as torchrun says.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() != 0
    return os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"


def check_model(model: nn.Module, meter: LayerMeter, guard: Guard) -> None:
    """Raise for weights that have no values or cannot be trained; warn of optimizers that train another
    model.
    """
    empty = [
        layer.name
        for layer in meter.layers
        if layer.weight is not None and layer.weight.device.type == "meta"
    ]
    if empty:
        raise RecordingError(
            f"the weights of {empty[0]} are on device meta, where they have no values; move the model to a "
            "real device before recording it"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(
            "nothing to train: every parameter of the model has requires_grad=False; unfreeze a layer with "
            "requires_grad_(True)"
        )
    if meter.optimizers:
        holds = holders(meter.optimizers)
        if not any(map(holds, model.parameters())):
            held = [
                p
                for optimizer in meter.optimizers
                for group in optimizer.param_groups
                for p in group["params"]
            ]
            devices = sorted({str(p.device) for p in model.parameters()} | {str(p.device) for p in held})
            where = f" (devices: {', '.join(devices)})" if len(devices) > 1 else ""
            # No error: the loop runs as it was written, and the diagnosis of the run says the same.
            guard.tell_once(
                f"the optimizer holds none of the model's parameters{where}, so nothing will be learned "
                "unless the loop copies into the model what the optimizer moves: it was made for another "
                "model, or before this one was copied or moved; make it from this model's parameters()"
            )
