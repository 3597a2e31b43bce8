"""Kill a training process at a chosen moment, and say what the run folder lost: shared by the suite and the
benchmark.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import struct
import time
from pathlib import Path
from typing import NamedTuple

from initscope.schema import TABLES, Status
from initscope.store import Run

NOTE = struct.Struct("dq")
MOMENTS = {
    "writing a part": r"parts/\.steps-.*",
    "writing layers": r"parts/\.layers-.*",
    "merging parts": r"parts/\.layers-(\d{8})-(?!\1).*",
    "writing the checkpoint": r"\.checkpoint\.pt\..*",
    "writing the status": r"\.status\.json\..*",
    "compacting": r"\.(steps|layers|epochs)\.parquet\..*",
}
"""A kill as soon as a temporary file of this name is seen."""


class Kill(NamedTuple):
    """What one kill did: when (words), seconds of rows lost, steps done and kept, seconds until readers saw
    ``crashed``.
    """

    moment: str
    lost_seconds: float
    done: int
    kept: int
    seen_seconds: float


def start(run: Run, notes: Path, largest: int = 0) -> int:
    """Fork a process that trains ``run`` and notes the moment of every step; returns its pid. ``largest``:
    bytes a file may have.
    """
    notes.unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from initscope.training.worker import work

        if largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        work(run, lambda position, total: os.write(out, NOTE.pack(time.monotonic(), position.step)))
        status = 0
    finally:
        os._exit(status)


def steps_done(notes: Path, until: float) -> int:
    """Steps that were done by a moment of the monotonic clock."""
    try:
        data = notes.read_bytes()
    except FileNotFoundError:
        return 0
    done = [
        step for when, step in NOTE.iter_unpack(data[: len(data) // NOTE.size * NOTE.size]) if when <= until
    ]
    return done[-1] if done else 0


def temporaries(run: Run) -> list[str]:
    """Names of the temporary files in a run folder, below it."""
    found = []
    for folder, prefix in ((run.path, ""), (run.path / "parts", "parts/")):
        with contextlib.suppress(OSError):
            found += [prefix + name for name in os.listdir(folder) if name.startswith(".")]
    return found


def kill(run: Run, pid: int, notes: Path, *, after: float | None = None, at: str = "") -> Kill | None:
    """Kill ``pid`` after so many seconds, or at one of ``MOMENTS``; None if it ended by itself before. Checks
    what is left.
    """
    pattern = re.compile(MOMENTS[at]) if at else None
    old = set(temporaries(run))  # of an earlier kill
    began = time.monotonic()
    while True:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        if after is not None and time.monotonic() - began >= after:
            break
        if pattern and any(pattern.fullmatch(name) for name in temporaries(run) if name not in old):
            break
        if not pattern:
            time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    was = run.json_file("status.json")["status"]
    while (
        was == Status.RUNNING and run.state()["status"] != Status.CRASHED
    ):  # nobody has collected it yet: a zombie is dead
        assert time.monotonic() - killed < 60, "never shown as crashed"
        time.sleep(0.005)
    seen = time.monotonic() - killed
    os.waitpid(pid, 0)
    tables = {table: run.read(table) for table in TABLES}
    kept = tables["steps"].num_rows
    assert tables["steps"]["step"].to_pylist() == list(range(kept)), "no gap, nothing twice"
    assert run.info().status in (Status.CRASHED, Status.QUEUED, Status.FINISHED), run.info()
    done = steps_done(notes, killed)
    sure = steps_done(notes, killed - 1.0)
    first_lost = (
        next((when for when, step in NOTE.iter_unpack(notes.read_bytes()) if step > kept), killed)
        if notes.exists() and done > kept
        else killed
    )
    assert kept >= sure, f"killed {at or after}: {sure} steps were older than a second, {kept} are on disk"
    return Kill(at or f"after {after:.2f} s", killed - first_lost, done, kept, seen)


def same_curve(one: Run, other: Run) -> bool:
    """Whether two runs measured the same to the bit; only the clock's column may differ."""

    def measured(run: Run) -> list:
        tables = [run.read(table) for table in TABLES]
        return [
            table.drop_columns("seconds") if "seconds" in table.column_names else table for table in tables
        ]

    return all(a.equals(b) for a, b in zip(measured(one), measured(other), strict=True))
