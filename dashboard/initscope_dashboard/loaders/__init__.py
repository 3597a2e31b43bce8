"""What pages read, cached. The only place with ``st.cache_*``; every key holds what the files looked like.

Frames are shared between sessions: treat them as read-only.
"""

from initscope_dashboard.loaders.answers import (
    comparison,
    diagnosis,
    latest_comparison,
    left_chance,
    query,
    theory,
    theory_rows,
)
from initscope_dashboard.loaders.folder import everything, info, listed, listing, runs
from initscope_dashboard.loaders.processes import NO_PROCESSES, check, check_key, probes, torchinfo
from initscope_dashboard.loaders.rows import (
    cells,
    damage,
    first_break,
    first_layers,
    frame,
    frames,
    kinds,
    last_layers,
    log_tail,
    notes,
    one_layer,
    progress,
)

__all__ = [
    "NO_PROCESSES",
    "cells",
    "check",
    "check_key",
    "comparison",
    "damage",
    "diagnosis",
    "everything",
    "first_break",
    "first_layers",
    "frame",
    "frames",
    "info",
    "kinds",
    "last_layers",
    "latest_comparison",
    "left_chance",
    "listed",
    "listing",
    "log_tail",
    "notes",
    "one_layer",
    "probes",
    "progress",
    "query",
    "runs",
    "theory",
    "theory_rows",
    "torchinfo",
]
