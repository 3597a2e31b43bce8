"""Who may change `runs/`: everybody on this machine, unless ``INITSCOPE_READ_ONLY`` is set or a check
objects.

The store and the launcher ask here before anything is launched, changed, stopped or deleted, so that a page,
a route or a command that somebody adds later cannot forget to. The dashboard registers a check that knows who
is signed in.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from initscope.errors import NotAllowed

_checks: list[Callable[[str], None]] = []


def read_only() -> bool:
    """Whether ``INITSCOPE_READ_ONLY`` is set to anything but nothing, 0, no or false."""
    return os.environ.get("INITSCOPE_READ_ONLY", "").strip().lower() not in ("", "0", "no", "false")


def guard(check: Callable[[str], None]) -> None:
    """Have ``check(action)`` asked before every change; it raises NotAllowed to refuse. One check is
    registered once.
    """
    if check not in _checks:
        _checks.append(check)


def require(action: str) -> None:
    """Raises NotAllowed if whoever asks may not ``action`` ("launch a run", "delete a run")."""
    if read_only():
        raise NotAllowed(
            f"cannot {action}: this is read-only (INITSCOPE_READ_ONLY is set); ask its operator, or run "
            "your own"
        )
    for check in _checks:
        check(action)
