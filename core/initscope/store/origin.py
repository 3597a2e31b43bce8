"""Which runs this installation made: a mark in ``status.json`` that a folder from elsewhere cannot carry.

The mark is a keyed digest (HMAC-SHA256) of a run's id and configuration. The key is in the folder of state of
whoever runs InitScope, outside of every folder of runs: ``INITSCOPE_STATE``, else
``$XDG_STATE_HOME/initscope``, else ``~/.local/state/initscope``. Users who name one folder, which their group
can write, are one installation; else each user is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from initscope.errors import RunFolderError
from initscope.store.files import NO_INHERITANCE, NO_LINK, jsonable

STATE = "INITSCOPE_STATE"
KEY = "installation.key"
BYTES = 32
MARK = "made_by"
"""The field of ``status.json``: this installation's name, ":", and the digest."""


def state_folder() -> Path:
    """Where this installation keeps what no folder of runs may hold."""
    if named := os.environ.get(STATE, "").strip():
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME", "").strip()
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "initscope"


def _key() -> bytes:
    """The key, made when it is first needed. Raises RunFolderError if it can be neither read nor made, or if
    others may read it.
    """
    folder = state_folder()
    try:
        return _key_in(folder)
    except (OSError, RuntimeError) as error:  # no home folder is a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"cannot keep this installation's key in {folder}: {reason}; name a folder of your own in {STATE}"
        ) from None


@cache
def _key_in(folder: Path) -> bytes:
    path = folder / KEY
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    shared = folder.stat().st_mode & stat.S_IWGRP
    temporary = folder / f".{KEY}.{secrets.token_hex(4)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(BYTES))
            os.fchmod(file.fileno(), 0o640 if shared else 0o600)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the one
            os.link(temporary, path)
    finally:
        temporary.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | NO_LINK | NO_INHERITANCE), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        found = file.read(BYTES + 1)
    if mode & 0o007:
        raise OSError(
            0,
            f"everybody on this machine may use {KEY} (mode {stat.S_IMODE(mode):o}); run chmod o= on it, or "
            "delete it",
        )
    if len(found) != BYTES:
        raise OSError(0, f"{KEY} is damaged; delete it: what is queued must be resumed then")
    return found


def name() -> str:
    """What this installation is called in files that others read; says nothing of the key. Raises
    RunFolderError.
    """
    return hashlib.sha256(b"name of an installation of InitScope\0" + _key()).hexdigest()[:16]


def mark(run_id: str, config: Mapping[str, Any]) -> str:
    """The mark of a run with this id and configuration, as ``config.json`` holds it. Raises
    RunFolderError.
    """
    text = json.dumps([run_id, jsonable(config)], sort_keys=True, ensure_ascii=True)
    return f"{name()}:{hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()}"


def made_here(run_id: str, config: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether this installation made the run, with this very configuration. Raises RunFolderError if it has
    no key.
    """
    return hmac.compare_digest(str(state.get(MARK) or "").encode(), mark(run_id, config).encode())


def named_here(state: Mapping[str, Any]) -> bool:
    """Whether the run says that it was made here; with a mark that does not fit, its configuration is another
    one now.
    """
    return str(state.get(MARK) or "").partition(":")[0] == name()


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[int | None]:
    """The handle of a lock on ``root`` that one process of this installation holds at a time; None if another
    does.
    """
    name()  # the folder is there, or says why not
    folder = state_folder() / "supervisors"
    try:
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            folder.chmod(
                stat.S_IMODE(folder.parent.stat().st_mode)
            )  # a group that shares the state shares this too, whatever the umask
        path = folder / f"{place(root)}.lock"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
        handle = os.open(path, os.O_RDONLY | NO_INHERITANCE | NO_LINK)  # enough to hold it, whoever made it
    except OSError as error:
        raise RunFolderError(
            f"cannot write into {folder}: {error.strerror or error}; name a folder of your own in {STATE}"
        ) from None
    try:
        yield handle if lock_descriptor(handle, blocking=False) else None
    finally:
        os.close(handle)


def place(root: Path) -> str:
    """A folder of runs, in a few letters."""
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
