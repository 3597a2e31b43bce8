"""``ui``: the dashboard, from any folder."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from typing import Any, NoReturn

from initscope.errors import ConfigError
from initscope.installation import checkout, module_command
from initscope.store import Runs, default_root

NEEDED = ("streamlit", "starlette", "uvicorn", "anyio", "plotly", "tsdownsample", "PIL", "google.protobuf")
"""What the ``dashboard`` extra brings, by the names it is imported with."""


def ui_command(given: argparse.Namespace) -> NoReturn:
    """Become the server: signals and the exit status are its own. Raises ConfigError if it cannot run
    here.
    """
    if missing := [name for name in NEEDED if not _there(name)]:
        raise ConfigError(
            f"the dashboard needs {', '.join(missing)}, not installed here: pip install "
            "'initscope[dashboard]'"
        )
    if given.port is not None and not 0 <= given.port <= 65_535:
        raise ConfigError(f"port must be a whole number from 0 to 65535, not {given.port}")
    environment = dict(os.environ)
    own = checkout()
    if not _there("initscope_dashboard.serve"):
        if own is None:
            raise ConfigError("this installation has no dashboard: pip install 'initscope[dashboard]'")
        # A checkout that nobody installed: its two source roots, before whatever else is to be searched.
        roots = [str(own / "core"), str(own / "dashboard"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, roots))
    runs = Runs(given.runs or default_root())
    environment["INITSCOPE_RUNS"] = shown = runs.shown if runs.shared else str(runs.root.absolute())
    told: dict[str, Any] = {"url": "{url}", "runs": shown}
    said = (
        json.dumps(told) if given.json else f"InitScope: {{url}} shows the runs in {shown} (Ctrl-C ends it)"
    )
    command = module_command(
        "initscope_dashboard.server.start",
        "--said",
        said,
        *(() if given.port is None else ("--port", given.port)),
    )
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False
