"""Facts of a loop itself: its optimizers' settings, its loss function, and where the first number that is
none came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initscope.schema import LAYER_METRICS

_SCALING = ("Mul", "Div", "Add", "View", "Squeeze", "Reshape", "UnsafeView")
"""Autograd operations after the loss function: scaling, a penalty, a shape."""
_BEFORE_THE_LOSS = (("weight", "weight_norm"), ("output", "activation_std"))
_AFTER_THE_LOSS = (("output gradient", "activation_grad_rms"), ("gradient", "grad_norm"))
"""Layer by layer, from the output to the input."""
_TENSORS = [LAYER_METRICS.index(metric) for _, metric in (*_BEFORE_THE_LOSS, *_AFTER_THE_LOSS)]


def optimizer_settings(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """Class and hyperparameters of each optimizer; a hyperparameter that differs between its groups is a
    list, one value a group.

    Values are JSON's: flags, numbers, texts, None, and tuples of them (Adam's betas). What is not (a
    function) is left out.
    """
    return [
        {"class": type(optimizer).__name__, **_settings(optimizer.param_groups)} for optimizer in optimizers
    ]


def _settings(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for key in groups[0] if groups else ():
        values = [_plain(group.get(key)) for group in groups]
        if key != "params" and _NOT_PLAIN not in values:
            found[key] = values[0] if all(value == values[0] for value in values) else values
    return found


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    if isinstance(value, (Tensor, np.generic)):
        value = value.item() if getattr(value, "numel", lambda: 1)() == 1 else _NOT_PLAIN
    if isinstance(value, (tuple, list)):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if _NOT_PLAIN in items else items
    return value if value is None or isinstance(value, (bool, int, float, str)) else _NOT_PLAIN


def loss_function(chain: Sequence[str]) -> str | None:
    """Autograd's name of the loss function ("NllLoss", "MseLoss") in the operations from the loss down; None
    if there are none.
    """
    return next((name for name in chain if not name.startswith(_SCALING)), None)


def first_nonfinite(loss: float | None, measured: np.ndarray, names: Sequence[str]) -> dict[str, Any] | None:
    """The first tensor of a step that holds a NaN or an infinity, in the order of computing: weights,
    outputs, the loss, gradients.

    ``measured`` is (metrics, layers), from the input to the output; gradients are computed from the output.
    {"tensor": "weight", "output", "loss", "output gradient" or "gradient", "layer": its name or None}; None
    if all are finite.
    """
    if np.isfinite(measured[_TENSORS]).all() and (loss is None or np.isfinite(loss)):
        return None
    for tensor, metric in _BEFORE_THE_LOSS:
        if (bad := ~np.isfinite(measured[LAYER_METRICS.index(metric)])).any():
            return {"tensor": tensor, "layer": names[int(bad.argmax())]}
    if loss is not None and not np.isfinite(loss):
        return {"tensor": "loss", "layer": None}
    for layer in range(len(names) - 1, -1, -1):
        for tensor, metric in _AFTER_THE_LOSS:
            if not np.isfinite(measured[LAYER_METRICS.index(metric), layer]):
                return {"tensor": tensor, "layer": names[layer]}
    return None
