"""What people give to the Recorder, made into what a run folder holds: converted where the meaning is clear,
refused where not.

A value that got through unconverted would make a run that no reader can open.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from enum import Enum
from numbers import Integral, Number
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from initscope.config.run_config import MAX_NAME, MAX_TAGS
from initscope.errors import ConfigError, RecordingError, one_line

LARGEST_STEP = 2**31 - 1
"""Steps and epochs are 32-bit whole numbers on disk."""
LARGEST_CONFIG = 1_000_000
"""Characters of a ``config`` as JSON."""
_DEPTH = 20


def as_name(value: Any) -> str:
    """A run's name: any value as text, None as no name."""
    text = (
        "" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    )
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"


def as_tags(value: Any) -> list[str]:
    """A run's tags: one text, or several of anything. Raises ConfigError for what is neither."""
    several = (
        ()
        if value is None
        else (value,)
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable)
        else tuple(value)
    )
    if len(several) > MAX_TAGS:
        raise ConfigError(f"a run has at most {MAX_TAGS} tags, not {len(several)}", "tags")
    return [as_name(tag) for tag in several]


def as_count(name: str, value: Any, least: int) -> int:
    """A whole number from ``least`` (smaller ones become it) as an int. Raises ConfigError."""
    try:
        number = float(value)
        if math.isfinite(number) and (number == int(number) or name == "every") and number <= LARGEST_STEP:
            return max(least, int(number))
    except (TypeError, ValueError, OverflowError):
        pass  # refused below, with what was given
    raise ConfigError(
        f"{name} must be a whole number from {least} to {LARGEST_STEP}, not {one_line(value)}", name
    )


def as_runs(value: Any) -> str | None:
    """The folder of all runs as text, absolute and with ``~`` filled in, so that a later ``os.chdir`` changes
    nothing; an address as it is.

    None and "" stand for the default. Raises ConfigError.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(
            f"runs must be a folder or an address such as s3://bucket/runs, not {type(value).__name__}",
            "runs",
        )
    text = os.fsdecode(os.fspath(value))
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def as_number(name: str, value: Any, call: str = "recorder.step()") -> Tensor | float:
    """One real number: a float, or a tensor of one left where it is. Raises RecordingError, naming
    ``call``.
    """
    if isinstance(value, Tensor):
        if value.is_nested or value.numel() != 1 or value.is_complex() or value.dtype is torch.bool:
            shape = "nested" if value.is_nested else tuple(value.shape)
            hint = (
                "; give its mean, loss.mean()"
                if name == "loss" and not value.is_nested and value.numel() > 1
                else ""
            )
            raise RecordingError(
                f"{call} takes the {name} as one real number, not a {value.dtype} tensor of shape "
                f"{shape}{hint}"
            )
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        value = value.item()
    # Decimal is a Number and no Real; bool is both, and never meant.
    if isinstance(value, Number) and not isinstance(value, (bool, complex)):
        try:
            return float(cast(float, value))
        except OverflowError:
            raise RecordingError(
                f"{call} takes the {name} as a number that a float can hold, not {one_line(value)}"
            ) from None
    raise RecordingError(
        f"{call} takes the {name} as one real number or a tensor of one, not {type(value).__name__}"
    )


def as_accuracy(value: Any, call: str = "recorder.step()") -> Tensor | float:
    """The same for an accuracy, of which a count of correct samples is none. Raises RecordingError."""
    number = as_number("accuracy", value, call)
    tensor_of_counts = isinstance(value, Tensor) and not value.is_floating_point()
    if tensor_of_counts or (isinstance(value, (Integral, np.integer)) and not 0 <= int(value) <= 1):
        kind = f"a {value.dtype} tensor" if tensor_of_counts else one_line(value)
        raise RecordingError(
            f"{call} takes the accuracy as a share from 0 to 1, not {kind}; divide a count by the size of "
            "the batch"
        )
    return number


def as_epoch(value: Any, last: int, call: str = "recorder.step()") -> int:
    """An epoch's number as a whole one from 0: fractions are cut, those below 0 are 0, None is ``last``.
    Raises RecordingError.
    """
    if value is None:
        return last
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, Number) and not isinstance(value, complex):
        number: Any = float(cast(float, value)) if not isinstance(value, Integral) else value
        if number == number and number <= LARGEST_STEP:  # noqa: PLR0124 (NaN)
            return max(0, math.floor(number)) if number > -math.inf else 0
    raise RecordingError(
        f"{call} takes the epoch as a whole number from 0 to {LARGEST_STEP}, not {one_line(value)}"
    )


def as_fact(value: Any) -> Any:
    """A value as JSON holds it; of what it cannot hold, the text."""
    try:
        return _plain(value, "fact", _DEPTH)
    except ConfigError:
        return one_line(value)


def as_config(value: Any) -> dict[str, Any]:
    """Anybody's settings as JSON holds them: a mapping, a dataclass or a Namespace. Raises ConfigError for
    what JSON cannot hold.
    """
    if value is None:
        return {}
    plain = _plain(value, "config", _DEPTH)
    if not isinstance(plain, dict):
        raise ConfigError(
            f"config must be a mapping of names to values, not {type(value).__name__}", "config"
        )
    if len(json.dumps(plain)) > LARGEST_CONFIG:
        raise ConfigError(
            f"config must have at most {LARGEST_CONFIG} characters as JSON; leave out data, keep settings",
            "config",
        )
    return plain


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth == 0:
        raise ConfigError(
            f"{where[:100]}… must be nested at most {_DEPTH} deep, not deeper or in a circle", "config"
        )
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.tolist() if not isinstance(value, Tensor) or not value.is_nested else str(value)
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, float):
        if isinstance(value, kind):  # subclasses too
            return kind(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else one_line(int(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]", depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, f"{where}[{i}]", depth - 1) for i, item in enumerate(value)]
    if isinstance(value, (PurePath, torch.device, torch.dtype)):
        return str(value)
    if isinstance(value, type) or callable(value):
        name = getattr(value, "__qualname__", None) or type(value).__qualname__
        return f"{getattr(value, '__module__', None) or type(value).__module__}.{name}"
    raise ConfigError(
        f"{where[:100]} must be a number, a text, a list or a mapping, not {type(value).__name__}; give its "
        "settings, or repr() of it",
        "config",
    )
