"""InitScope: is it the weight initialization, and did changing it fix it?

    from initscope import Recorder

    with Recorder(model, optimizer, name="my net") as recorder:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            recorder.step(loss)

The names below are loaded when they are first used: importing ``initscope`` itself loads neither torch nor
pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from initscope.api import check, compare, diagnose, initialize, probe, runs
    from initscope.errors import InitScopeError, Stopped
    from initscope.recording.recorder import Recorder

__version__ = "0.2.0"

_HOMES = {
    "Recorder": "initscope.recording.recorder",
    "InitScopeError": "initscope.errors",
    "Stopped": "initscope.errors",
    "check": "initscope.api",
    "diagnose": "initscope.api",
    "compare": "initscope.api",
    "probe": "initscope.api",
    "initialize": "initscope.api",
    "runs": "initscope.api",
}
__all__ = [
    "InitScopeError",
    "Recorder",
    "Stopped",
    "check",
    "compare",
    "diagnose",
    "initialize",
    "probe",
    "runs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'initscope' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
