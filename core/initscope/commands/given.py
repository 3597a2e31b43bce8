"""What the arguments of a command say: its configuration, and its folder of runs."""

from __future__ import annotations

import argparse
import errno
import json
from pathlib import Path
from typing import Any

from initscope.config import factory
from initscope.config import run_config as configs
from initscope.config.pinning import pin
from initscope.config.run_config import OPTIONS, RunConfig
from initscope.errors import ConfigError, one_line
from initscope.store import Runs, default_root

DEFAULT_PRESET = "quick"
LONGEST_CONFIG = 1_000_000


def _read(path: Path) -> bytes:
    """The bytes of a file or pipe. Raises OSError for more than a config can be (``/dev/zero``)."""
    with open(path, "rb") as file:
        data = file.read(LONGEST_CONFIG + 1)
    if len(data) > LONGEST_CONFIG:
        raise OSError(errno.EFBIG, f"it is larger than {LONGEST_CONFIG:,} bytes")
    return data


def config_from(given: argparse.Namespace) -> RunConfig:
    """The config that preset, file and flags make together, each over the one before, with its own files
    pinned. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    stated: set[str] = set()
    if given.config:
        try:
            saved = json.loads(_read(Path(given.config)))
        except OSError as error:
            raise ConfigError(
                f"cannot read {given.config}: {error.strerror or error}; check the path and who may read it"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{given.config} is not valid JSON: {one_line(str(error))}; correct it, or take the "
                "config.json of a run"
            ) from None
        if not isinstance(saved, dict):
            raise ConfigError(f"{given.config} must hold a JSON object, not {one_line(saved)}")
        # A run's own config.json is welcome as it is.
        saved = saved["config"] if isinstance(saved.get("config"), dict) else saved
        values.update(saved)
        stated |= {
            name for name, value in saved.items() if name in OPTIONS and value != OPTIONS[name].default
        }
    typed = {name: value for name in OPTIONS if (value := getattr(given, f"field_{name}")) is not None}
    for role in factory.ROLES:
        if role in typed:
            values[f"{role}_sha256"] = ""  # the file's digest belonged to the other model or data
    return pin(
        configs.preset(given.preset or DEFAULT_PRESET).replace(**{**values, **typed}), stated | set(typed)
    )


def runs_of(given: argparse.Namespace) -> Runs:
    """The folder of runs that ``--runs`` names, or the usual one."""
    return Runs(given.runs or default_root())
