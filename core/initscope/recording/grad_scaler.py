"""By which factor a gradient is scaled while it is computed: what ``torch.amp.GradScaler`` multiplied the
loss by.

A scaler is no part of model or optimizer, and a loop takes its factor out only after the backward pass (with
clipping right behind). So ``GradScaler.scale`` is watched while somebody measures: the scaled loss gets a
hook that names the factor when its backward pass begins.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from initscope.torch_internals import at_the_end_of_the_pass, loss_scale

_watchers: weakref.WeakSet[LossScale] = weakref.WeakSet()
_originals: dict[type, Callable] = {}


class LossScale:
    """``current`` is the factor (a scalar tensor) during the backward pass of a scaled loss, else None. A
    context manager.
    """

    def __init__(self) -> None:
        self.current: Tensor | None = None

    def __enter__(self) -> LossScale:
        if not _watchers:
            for scaler in _subclasses(torch.amp.GradScaler):
                if "scale" in vars(scaler):
                    _originals[scaler] = scaler.scale
                    scaler.scale = _watched(scaler.scale)
        # Registered before the set's own reference: the set has forgotten this watcher when it is called.
        weakref.finalize(self, _restore)
        _watchers.add(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _watchers.discard(self)
        self.current = None
        _restore()

    def _begin(self, scale: Tensor) -> None:
        self.current = scale
        at_the_end_of_the_pass(self.forget)

    def forget(self) -> None:
        """The pass is over, or has been given up."""
        self.current = None


def _restore() -> None:
    """Give the scalers their own ``scale`` back once nobody measures, or whoever did was dropped unclosed."""
    if not _watchers:
        scaler: Any
        for scaler, original in _originals.items():
            scaler.scale = original
        _originals.clear()


def _subclasses(cls: type) -> list[Any]:
    children: list[type] = cls.__subclasses__()
    return [cls, *(found for child in children for found in _subclasses(child))]


def _watched(original: Callable) -> Callable:
    @functools.wraps(original)
    def scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if self.is_enabled():
            for loss in (
                [scaled]
                if isinstance(scaled, Tensor)
                else scaled
                if isinstance(scaled, (list, tuple))
                else ()
            ):
                if loss.requires_grad:
                    loss.register_hook(functools.partial(_announce, self))
        return scaled

    return scale


def _announce(scaler: torch.amp.GradScaler, gradient: Tensor) -> None:
    scale = loss_scale(scaler)
    if scale is not None:
        for watcher in _watchers:
            watcher._begin(scale.detach().clone())
