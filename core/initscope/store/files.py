"""Small files, written whole or not at all, and the facts about this process and machine that go into
them.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import psutil

# What Windows does not have, or only it has, is no flag there.
NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
AS_BYTES: int = getattr(os, "O_BINARY", 0)
NO_INHERITANCE: int = getattr(os, "O_CLOEXEC", 0)
NO_WAITING: int = getattr(os, "O_NONBLOCK", 0)

FOREIGN_HEARTBEAT_SECONDS = 60
"""A run of another host counts as crashed after so long without a heartbeat."""


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary sibling that takes ``path``'s place on success and vanishes on failure.

    ``durable``: on the disk itself before it replaces anything, so that a power cut leaves the old file or
    the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}")
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that brought us here is the one to tell
            temporary.unlink(missing_ok=True)
        raise


_TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{6}")


def remove_temporaries(*folders: Path) -> None:
    """Delete what ``replacing`` left when its process was killed. Only for whoever holds the run's claim."""
    for folder in folders:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if _TEMPORARY.fullmatch(name):
                    (folder / name).unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically. Non-finite floats are written as the strings "nan", "inf" and
    "-inf".
    """
    text = _encoded(value)
    with replacing(path) as temporary:
        temporary.write_bytes(text)


def overwrite_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in its own place, for a disk that has no room for a second one: its blocks are there
    already.
    """
    text = _encoded(value)
    with open(path, "r+b") as file:
        there = os.fstat(file.fileno())
        room = max(there.st_size, getattr(there, "st_blocks", 0) * 512)
        for spare in (
            "curve",
            "facts",
        ):  # what could be had from the rows, or done without, makes way for the reason
            if len(text) > room:
                text = _encoded({key: item for key, item in value.items() if key != spare})
        file.write(text.ljust(there.st_size))  # blanks over the rest: never the tail of the old text
        file.flush()
        file.truncate(len(text))


def _encoded(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON's own escape


def jsonable(value: Any) -> Any:
    """A value as it is after it was written as JSON and read again."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def number(value: Any) -> float | None:
    """A JSON number; the strings "nan", "inf" and "-inf" stand for the values that JSON lacks."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def optimizer_setting(facts: Mapping[str, Any], name: str) -> float | None:
    """A hyperparameter of the recorded optimizers by its name in torch (``lr``), at the start: the largest of
    all their groups; None if none of them has it as a number.
    """
    values: list[Any] = []
    for settings in facts.get("optimizers") or ():
        value = settings.get(name) if isinstance(settings, Mapping) else None
        values += value if isinstance(value, list) else [value]
    if not values:  # runs of earlier versions
        older = facts.get("optimizer_settings")
        values = [older.get("learning_rate" if name == "lr" else name)] if isinstance(older, Mapping) else []
    known = [x for x in map(number, values) if x is not None]
    return max(known) if known else None


LARGEST = 16_000_000
"""Bytes of a JSON file that is read: more is no file of ours."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is one: a pipe or a device in its place would keep the reader waiting for
    ever, and a link in a run folder from elsewhere would show whoever looks at the run what its owner may
    read. Raises OSError.
    """
    try:
        handle = os.open(path, os.O_RDONLY | AS_BYTES | NO_WAITING | NO_LINK | NO_INHERITANCE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(handle, "rb")


def read_small(path: Path) -> bytes:
    """The bytes of a regular file of at most ``LARGEST``. Raises OSError."""
    with open_regular(path) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, "larger than a file of ours can be")
    return data


def touch(path: Path) -> None:
    """Make an empty file, or leave the one that is there; never through a link. Raises OSError."""
    os.close(
        os.open(path, os.O_WRONLY | os.O_CREAT | AS_BYTES | NO_LINK | NO_WAITING | NO_INHERITANCE, 0o666)
    )


def stamp(path: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size
    except OSError:
        return None


def alive(state: Mapping[str, Any]) -> bool:
    """Whether the process that wrote this state still runs. A zombie, or another process of the same pid, is
    not it.
    """
    if state.get("host") not in (None, socket.gethostname()):
        return time.time() - (number(state.get("heartbeat")) or 0) < FOREIGN_HEARTBEAT_SECONDS
    return process_alive(state.get("pid"), state.get("pid_created"), state.get("pid_birth"))


def process_alive(pid: int | None, created: float | None, birth: str | None = None) -> bool:
    """Whether process ``pid`` still runs, is no zombie, and is the one that was meant.

    ``birth`` is ``birth_of`` that process; where it is not known, ``created`` (seconds, as psutil tells)
    stands for it, which a clock that is set anew moves along.
    """
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
        return False
    try:
        process = psutil.Process(pid)
        now = birth_of(pid) if isinstance(birth, str) else None
        if now is not None:
            same = now == birth
        else:
            same = not isinstance(created, (int, float)) or abs(process.create_time() - created) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def birth_of(pid: int) -> str | None:
    """When a process was born, in ticks since a boot that is named: what no clock can change. None where
    Linux does not tell.
    """
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def own_process() -> dict[str, Any]:
    """pid, birth and host of this process, as ``status.json`` keeps them."""
    born = {"pid_created": psutil.Process().create_time(), "pid_birth": birth_of(os.getpid())}
    return {"pid": os.getpid(), **born, "host": socket.gethostname()}


def environment() -> dict[str, Any]:
    """Versions of Python and the packages that decide a run, and the git revision if there is one."""
    versions = {}
    for package in ("torch", "torchvision", "numpy", "scikit-learn", "pyarrow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "git": git_revision(),
    }


def git_revision(root: Path | None = None) -> str | None:
    """The commit that the project in ``root`` (the working folder) stands on, read from ``.git``; None
    outside of one.
    """
    here = root or Path.cwd()
    git = next(
        (folder / ".git" for folder in (here, *here.parents) if (folder / ".git").exists()), here / ".git"
    )
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).exists():
            return (git / ref).read_text().strip()
        packed = (git / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(" " + ref)), None)
    except OSError:
        return None
