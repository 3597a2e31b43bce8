"""Small files, written whole or not at all, and the facts about this process and machine that go into them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

FOREIGN_HEARTBEAT_SECONDS = 60
"""A run of another host counts as crashed after so long without a heartbeat."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes ``path``'s place on success and vanishes on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically. Non-finite floats are written as the strings "nan", "inf" and "-inf"."""
    text = json.dumps(_jsonable(value), ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))  # a lone surrogate as JSON's own escape


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def number(value: Any) -> float | None:
    """A JSON number; the strings "nan", "inf" and "-inf" stand for the values that JSON lacks."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    except OSError:
        return None


def alive(state: Mapping[str, Any]) -> bool:
    """Whether the process that wrote this state still runs. A zombie, or another process of the same pid, is not it."""
    if state.get("host") not in (None, socket.gethostname()):
        return time.time() - (number(state.get("heartbeat")) or 0) < FOREIGN_HEARTBEAT_SECONDS
    return process_alive(state.get("pid"), state.get("pid_created"))


def process_alive(pid: int | None, created: float | None) -> bool:
    """Whether process ``pid``, born at ``created`` (seconds, as psutil tells), still runs and is no zombie."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        process = psutil.Process(pid)
        same = not isinstance(created, (int, float)) or abs(process.create_time() - created) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def own_process() -> dict[str, Any]:
    """pid, birth time and host of this process, as ``status.json`` keeps them."""
    return {"pid": os.getpid(), "pid_created": psutil.Process().create_time(), "host": socket.gethostname()}


def environment() -> dict[str, Any]:
    """Versions of Python and the packages that decide a run, and the git revision if there is one."""
    versions = {}
    for package in ("torch", "torchvision", "numpy", "scikit-learn", "pyarrow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"versions": {"python": platform.python_version(), **versions}, "platform": platform.platform(), "git": git_revision()}


def git_revision(root: Path | None = None) -> str | None:
    """The commit that ``root`` stands on, read from ``.git`` itself; None outside a repository."""
    git = (root or Path(__file__).resolve().parents[2]) / ".git"
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
