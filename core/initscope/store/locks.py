"""Locks of a run folder: one process works on a run, one person at a time edits or deletes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from initscope.errors import RunFolderError, RunNotFound, RunStateError
from initscope.store.bucket.folder import held

if TYPE_CHECKING:
    from initscope.store.run import Run

POLL_SECONDS = 0.02


@contextlib.contextmanager
def claimed(run: Run, wait: float = 0.0, files: bool = True) -> Iterator[None]:
    """Hold the run's lock: one process a run, whoever starts it. A process that ends holds it a moment longer than its
    last word: ``wait`` so many seconds for it. A run of an object store becomes this machine's, with all its ``files``.

    Raises RunStateError if it is held, RunNotFound if the run is gone, RunFolderError if the folder cannot be written.
    """
    with held(run.path, files), _locked(run, run.path / "worker.lock", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, wait):
        yield


@contextlib.contextmanager
def editing(run: Run, wait: float = 5.0) -> Iterator[None]:
    """Hold the folder itself while a small file in it is read, changed and written. Raises as ``claimed``."""
    with _locked(run, run.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, wait):
        yield


@contextlib.contextmanager
def _locked(run: Run, path: Path, flags: int, wait: float) -> Iterator[None]:
    try:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        raise RunNotFound(f"run {run.id} is gone: somebody has deleted it; choose another one") from None
    except OSError as error:
        raise RunFolderError(f"run {run.id} cannot be locked: {error.strerror or error}; check who may write into its folder") from None
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RunStateError(f"another process is working on run {run.id}; wait for it, or stop the run") from None
                time.sleep(POLL_SECONDS)
        if not _still_there(handle, path):
            raise RunNotFound(f"run {run.id} is gone: somebody has deleted it; choose another one")
        yield
    finally:
        os.close(handle)


def _still_there(handle: int, path: Path) -> bool:
    """Whether ``path`` is still what was opened: a run deleted meanwhile took its lock along."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False
