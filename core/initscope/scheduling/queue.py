"""The queue on disk: a marker in ``runs/.queue/`` for each run that waits, and the engine that the queue is
for.

It outlives every process: a supervisor that comes after a killed one, a restarted machine or a restarted
cluster goes on with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from initscope.errors import RunFolderError
from initscope.scheduling.engine import ENGINES
from initscope.schema import Status
from initscope.store import RUN_ID, Run, Runs, origin, write_json
from initscope.store.files import alive, read_small
from initscope.store.writer import set_status

LOCK = ".supervisor.lock"
"""One supervisor a folder: whoever holds it."""
QUEUE = ".queue"
ENGINE = "engine.json"
TOLD = "supervisor.json"
_MARK = re.compile(r"(\d{20})~" + RUN_ID.pattern)


def marks(runs: Runs) -> list[str]:
    """Names of the queue's markers in order: a time in nanoseconds, "~", the run's id. Anything else is not
    ours.
    """
    try:
        return sorted(name for name in os.listdir(runs.root / QUEUE) if _MARK.fullmatch(name))
    except OSError:
        return []


def queued(runs: Runs) -> list[str]:
    """Ids of the runs that wait, first come first."""
    return [name.partition("~")[2] for name in marks(runs)]


def enqueue(runs: Runs, made: Sequence[Run], first: bool = False) -> None:
    """Put runs behind those that wait, or with ``first`` before them; among each other they keep their
    order.
    """
    folder = _folder(runs)
    numbers = [int(name.split("~")[0]) for name in marks(runs)]
    before = min(numbers, default=time.time_ns()) - len(made)
    behind = max(time.time_ns(), max(numbers, default=0) + 1)  # even if the clock has been set back since
    for number, run in enumerate(made, before if first else behind):
        (folder / f"{number:020d}~{run.id}").touch()


def _folder(runs: Runs) -> Path:
    """The queue's folder, made if it is not there; a group that shares the folder of runs shares this one
    too.
    """
    folder = runs.root / QUEUE
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        share(folder, runs.root)
    return folder


def share(path: Path, root: Path) -> None:
    """Give the group the rights on ``path`` that it has on the folder of runs, whatever the umask of whoever
    is first.
    """
    with contextlib.suppress(OSError):  # another's, who has done so
        group = root.stat().st_mode & (0o070 if path.is_dir() else 0o060)
        os.chmod(
            path,
            (path.stat().st_mode & ~0o077)
            | group
            | (root.stat().st_mode & 0o005 if path.is_dir() else root.stat().st_mode & 0o004),
        )


def open_lock(root: Path) -> int:
    """A handle of the folder's lock; one that another user made may be readable only, which is enough to hold
    it.
    """
    path = root / LOCK
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        share(path, root)
        return handle
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def own_waiting(runs: Runs) -> bool:
    """Whether a run waits that this installation queued."""
    for run_id in queued(runs):
        with contextlib.suppress(RunFolderError):
            state = Run(runs.root / run_id).json_file("status.json")
            if state.get("status") == Status.QUEUED and origin.named_here(state):
                return True
    return False


ASKED_SECONDS = 5.0
"""So long a request for a turn holds; it is made anew every second."""
_ASKS = re.compile(r"([0-9a-f]{16})\.asks")


def ask_for_a_turn(runs: Runs) -> None:
    """Have the supervisor of another installation let this folder go when it has nothing to do, or has had
    its turn.
    """
    with contextlib.suppress(OSError):
        (_folder(runs) / f"{origin.name()}.asks").touch()


def others_ask(runs: Runs) -> bool:
    """Whether another installation's supervisor waits for this folder at present."""
    try:
        with os.scandir(runs.root / QUEUE) as entries:
            asking = [
                entry
                for entry in entries
                if (match := _ASKS.fullmatch(entry.name)) and match[1] != origin.name()
            ]
        return any(abs(time.time() - entry.stat().st_mtime) < ASKED_SECONDS for entry in asking)
    except OSError:
        return False


def check_writable(runs: Runs) -> None:
    """Raises RunFolderError if no run can be queued here, before one is made."""
    try:
        probe = _folder(runs) / f".{os.getpid()}.{secrets.token_hex(3)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_queue(runs, error) from None


def cannot_queue(runs: Runs, error: OSError) -> RunFolderError:
    """What is said if the queue's folder takes nothing."""
    reason = error.strerror or str(error)
    return RunFolderError(
        f"cannot write into {QUEUE} of {runs.shown}: {reason}; free space, or have its owner run chmod g+w "
        "on it if your group shares it"
    )


def unmark(runs: Runs, run_id: str) -> None:
    for name in marks(runs):
        if name.partition("~")[2] == run_id:
            (runs.root / QUEUE / name).unlink(missing_ok=True)


def end_queued(runs: Runs, run: Run) -> None:
    """Write down that a run which waits was stopped. Only for whoever holds its claim."""
    (run.path / "stop").unlink(missing_ok=True)
    set_status(run, status=str(Status.STOPPED), outcome="undecided", ended=time.time())
    unmark(runs, run.id)


# ---------------------------------------------------------------- which engine


def chosen(runs: Runs) -> tuple[str, str]:
    """(engine, address of its cluster): what whoever launched last wanted for this folder; local where nobody
    has said.
    """
    found = _read(runs.root / QUEUE / ENGINE)
    return str(found.get("engine", "local")), str(found.get("address", ""))


def choose(runs: Runs, engine: str, address: str) -> None:
    """Have the queue worked off by this engine, once what trains under another has ended."""
    if chosen(runs) != (engine, address):
        write_json(_folder(runs) / ENGINE, {"engine": engine, "address": address})


PREPARED_SECONDS = 300
"""So long after somebody looked at a launch form a supervisor waits for what may come."""


def prepared(runs: Runs) -> bool:
    """Whether somebody asked for a supervisor within ``PREPARED_SECONDS``; a time that lies ahead was set by
    another clock.
    """
    try:
        return abs(time.time() - os.path.getmtime(runs.root / LOCK)) < PREPARED_SECONDS
    except OSError:
        return False  # the folder is gone


def write_state(runs: Runs, words: dict[str, Any]) -> None:
    """The supervisor's word on its engine, for ``told``."""
    write_json(runs.root / QUEUE / TOLD, words)


def read_state(runs: Runs) -> dict[str, Any]:
    """The last word of the supervisor that is there; empty if none is."""
    found = _read(runs.root / QUEUE / TOLD)
    return found if found and alive(found) else {}


def abandoned(runs: Runs) -> bool:
    """Whether a supervisor that is gone had runs on a cluster, which went with it and are to be queued
    again.
    """
    found = _read(runs.root / QUEUE / TOLD)
    return found.get("engine") == "ray" and bool(found.get("running")) and not alive(found)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_small(path))
    except (OSError, ValueError):
        return {}  # never written, or damaged: as if nobody had said anything
    return found if isinstance(found, dict) and found.get("engine") in ENGINES else {}
