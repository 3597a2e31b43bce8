"""The table of runs as a CSV file: one row a run, the whole configuration beside what became of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from initscope.config.run_config import OPTIONS
from initscope.store import RunInfo
from initscope.store.export import csv_text

FIRST = ("run", "name", "status", "outcome", "error", "loss", "accuracy", "tags", "created")


def text(infos: Sequence[RunInfo]) -> str:
    """CSV in the order of ``infos``. Configuration fields follow ``FIRST``; a loop's own configuration as
    ``own.NAME``.
    """
    own = sorted({key for info in infos for key in _own(info)})
    fields = [name for name in OPTIONS if name not in FIRST]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FIRST, *fields, *(f"own.{key}" for key in own)])
    for info in infos:
        loss, accuracy = info.scores
        when = datetime.fromtimestamp(info.created, UTC).isoformat(timespec="seconds")
        row = [info.run, info.name, info.status, info.outcome, info.error, loss, accuracy, info.tags, when]
        row += [info.config.get(field) for field in fields] + [_own(info).get(key) for key in own]
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def _own(info: RunInfo) -> dict[str, Any]:
    own = info.config.get("own")
    return own if isinstance(own, dict) else {}


def _cell(value: Any) -> Any:
    """Numbers as they are; words so that no spreadsheet computes them."""
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return value
    words = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return csv_text(words)
