"""How many processor threads may train at once on this machine, and how many of them a run takes."""

from __future__ import annotations

import os

from initscope.errors import ConfigError


def slots() -> int:
    """How many processor threads may train at once: ``INITSCOPE_SLOTS``, else the cores this process may
    use. Raises ConfigError for a setting that is no whole number from 1.
    """
    wanted = os.environ.get("INITSCOPE_SLOTS", "").strip()
    if wanted:
        if not (wanted.isascii() and wanted.isdecimal() and int(wanted[:9]) > 0):
            raise ConfigError(f"INITSCOPE_SLOTS must be a whole number from 1, not {wanted[:40]!r}")
        return int(wanted[:9])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_of(config: object) -> int:
    """Processes that train a run with this config (a mapping) together."""
    wanted = config.get("processes") if isinstance(config, dict) else 1
    return wanted if isinstance(wanted, int) and wanted > 0 else 1


def threads_of(config: object, whole: int | None = None) -> int:
    """Threads that a run with this config (a mapping) takes from a machine of ``whole`` threads (None: this
    one), over all its processes.
    """
    whole = slots() if whole is None else whole
    wanted = config.get("threads") if isinstance(config, dict) else 0
    return min(wanted * processes_of(config), whole) if isinstance(wanted, int) and wanted > 0 else whole
