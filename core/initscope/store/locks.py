"""Locks of a run folder: one process works on a run, one person at a time edits or deletes it.

``filelock`` locks an open file: by ``flock`` on Linux and macOS, by ``LockFileEx`` on Windows. Either way the
lock goes when the file is closed or its process ends. On Windows a folder with an open file in it can be
neither locked nor renamed, so the locks lie beside it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import lock_descriptor

from initscope.errors import RunFolderError, RunNotFound, RunStateError
from initscope.store.bucket.folder import held
from initscope.store.files import NO_INHERITANCE, NO_LINK

if TYPE_CHECKING:
    from initscope.store.run import Run

POLL_SECONDS = 0.02
BESIDE = os.name == "nt"
"""Whether locks lie in ``.locks`` beside the run folders instead of inside."""


@contextlib.contextmanager
def claimed(run: Run, wait: float = 0.0, files: bool = True) -> Iterator[None]:
    """Hold the run's lock: one process a run, whoever starts it. A process that ends holds it a moment longer
    than its last word: ``wait`` so many seconds for it. A run of an object store becomes this machine's, with
    all its ``files``.

    Raises RunStateError if it is held, RunNotFound if the run is gone, RunFolderError if the folder cannot be
    written.
    """
    with (
        held(run.path, files),
        _locked(run, _file(run, "worker.lock"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, wait),
    ):
        yield


@contextlib.contextmanager
def editing(run: Run, wait: float = 5.0) -> Iterator[None]:
    """Hold the folder itself while a small file in it is read, changed and written. Raises as ``claimed``."""
    path, flags = (
        (_file(run, "edit.lock"), os.O_WRONLY | os.O_CREAT)
        if BESIDE
        else (run.path, os.O_RDONLY | os.O_DIRECTORY)
    )
    with _locked(run, path, flags, wait):
        yield


def _file(run: Run, name: str) -> Path:
    return run.path.parent / ".locks" / f"{run.id}.{name}" if BESIDE else run.path / name


@contextlib.contextmanager
def _locked(run: Run, path: Path, flags: int, wait: float) -> Iterator[None]:
    try:
        if BESIDE:
            os.stat(run.path)
            path.parent.mkdir(exist_ok=True)
        handle = os.open(path, flags | NO_LINK | NO_INHERITANCE, 0o666)
    except FileNotFoundError:
        raise RunNotFound(f"run {run.id} is gone: somebody has deleted it; choose another one") from None
    except OSError as error:
        raise RunFolderError(
            f"run {run.id} cannot be locked: {error.strerror or error}; check who may write into its folder"
        ) from None
    try:
        deadline = time.monotonic() + wait
        while not _lock(run, handle):
            if time.monotonic() >= deadline:
                raise RunStateError(
                    f"another process is working on run {run.id}; wait for it, or stop the run"
                )
            time.sleep(POLL_SECONDS)
        if not (run.path.is_dir() if BESIDE else _still_there(handle, path)):
            raise RunNotFound(f"run {run.id} is gone: somebody has deleted it; choose another one")
        yield
    finally:
        os.close(handle)


def _lock(run: Run, handle: int) -> bool:
    try:
        return lock_descriptor(handle, blocking=False)
    except OSError as error:
        raise RunFolderError(
            f"run {run.id} cannot be locked: {error.strerror or error}; put the folder of runs on a disk of "
            "this machine"
        ) from None


def _still_there(handle: int, path: Path) -> bool:
    """Whether ``path`` is still what was opened: a run deleted meanwhile took its lock along."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False
