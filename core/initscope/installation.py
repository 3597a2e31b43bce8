"""Where this installation is: its checkout if it has one, and how a module of it is started as a process."""

from __future__ import annotations

import sys
from pathlib import Path


def checkout() -> Path | None:
    """The root of the checkout that this package is imported from; None for one installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return (
        root if (root / "pyproject.toml").is_file() and (root / "dashboard" / "Home.py").is_file() else None
    )


def module_command(module: str, *arguments: object) -> list[str]:
    """The command that runs ``module`` with this Python.

    ``-P`` keeps the working folder off ``sys.path``: a project's own ``queue.py`` or ``core/`` must not be
    imported.
    """
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]
