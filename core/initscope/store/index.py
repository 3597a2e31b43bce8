"""What is remembered of ended runs, so that ten thousand are listed without opening twenty thousand files.

``runs/.index.sqlite`` may be deleted at any time; nothing in it is the truth. An entry counts while the files
it was read from have the change time, size and inode they had then, none of which a program can set. A file
changed less than ``SETTLED_SECONDS`` before it was read could change again within one tick of the file
system's clock, and is not remembered yet. Live runs, damaged ones and those whose files are links are read
anew every time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from initscope import outcome, schema
from initscope.config import catalog, factory, run_config
from initscope.permission import read_only
from initscope.schema import Status
from initscope.store import run, validation
from initscope.store.run import Run, RunInfo

NAME = ".index.sqlite"
FILES = ("config.json", "status.json", "meta.json")
"""All that a listing entry is made from."""
SETTLED_SECONDS = 2.0
BUSY_SECONDS = 0.2
"""So long a reader waits for another one's writing; what it could not write it writes the next time."""
_NEVER = 2**63
"""A change time that does not settle."""
_PASSING = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR,
)
"""Errors that say nothing against the file."""
_STAMPS = struct.Struct(f"<{3 * len(FILES)}Q")
_ENTRY = (
    "name",
    "status",
    "outcome",
    "init",
    "loss",
    "accuracy",
    "created",
    "tags",
    "error",
    "archived",
)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS made_by (digest TEXT)",
    "CREATE TABLE IF NOT EXISTS entries (run TEXT PRIMARY KEY, stamps BLOB, entry BLOB, config BLOB, state "
    "BLOB, checksum INTEGER)",
)

Result = TypeVar("Result")
Stamps = tuple[int, ...]
"""Change time (ns), size and inode of each of ``FILES``; zeros where there is none."""


class LazyJson(Mapping[str, Any]):
    """A mapping that stays compressed JSON until somebody looks into it."""

    def __init__(self, packed: bytes):
        self._packed: bytes | None = packed
        self._values: dict[str, Any] = {}

    def _opened(self) -> dict[str, Any]:
        packed = self._packed
        if packed is not None:  # two threads at once unpack it to the same values
            self._values = json.loads(zlib.decompress(packed))
            self._packed = None
        return self._values

    def __getitem__(self, key: str) -> Any:
        return self._opened()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened())

    def __len__(self) -> int:
        return len(self._opened())

    def __repr__(self) -> str:
        return repr(self._opened())


class Index:
    """Listing entries of the runs in one folder, kept in memory and in ``NAME``. Threads may share it."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Stamps, RunInfo]] | None = None
        self._unwritten: set[str] = set()

    def infos(self, names: Iterable[str]) -> list[RunInfo]:
        """The entries of those folders that are runs, as their files are now."""
        with self._lock:
            known = self._loaded()
            found = [info for name in names if (info := self._look(known, name)) is not None]
            gone = known.keys() - {info.run for info in found}
            for name in gone:
                del known[name]
            if (self._unwritten or gone) and not read_only():
                self._try("rwc", lambda database: self._write(database, known, gone))
            return found

    def info(self, name: str) -> RunInfo:
        """The entry of one run; of one that is not there, an entry that says so."""
        with self._lock:
            return self._look(self._loaded(), name) or Run(self.root / name).info()

    def _loaded(self) -> dict[str, tuple[Stamps, RunInfo]]:
        if self._known is None:
            self._known = self._try("ro", _entries) or {}
        return self._known

    def _look(self, known: dict[str, tuple[Stamps, RunInfo]], name: str) -> RunInfo | None:
        now = time.time_ns()
        stamps = _stamps(f"{self.root}/{name}/")
        entry = known.get(name)
        if entry is not None and entry[0] == stamps:
            return entry[1]
        if not any(stamps[:6]):
            return None  # neither a config nor a status: no run
        info = Run(self.root / name).info()
        if _lasting(info) and max(stamps[::3]) < now - SETTLED_SECONDS * 1e9:
            known[name] = stamps, info
            self._unwritten.add(name)
        else:
            known.pop(name, None)
        return info

    def _write(
        self, database: sqlite3.Connection, known: Mapping[str, tuple[Stamps, RunInfo]], gone: Iterable[str]
    ) -> None:
        for table in _TABLES:
            database.execute(table)
        if database.execute("SELECT digest FROM made_by").fetchall() != [(_code_digest(),)]:
            database.execute("DELETE FROM entries")
            database.execute("DELETE FROM made_by")
            database.execute("INSERT INTO made_by VALUES (?)", (_code_digest(),))
            self._unwritten |= known.keys()
        database.executemany("DELETE FROM entries WHERE run = ?", [(name,) for name in gone])
        rows = [_row(name, *known[name]) for name in self._unwritten if name in known]
        database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.commit()
        self._unwritten.clear()

    def _try(self, mode: str, action: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """``action`` on the file; None where that cannot be, and the folders are read instead. A damaged file
        is deleted.
        """
        path = self.root / NAME
        try:
            if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                return None  # a link or a pipe: nothing is read or written through it
            with closing(
                sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS)
            ) as database:
                database.execute("PRAGMA trusted_schema = OFF")
                database.execute("PRAGMA synchronous = OFF")  # what a power cut spoils is read again
                return action(database)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
                with suppress(OSError):
                    path.unlink()
        except OSError:
            pass  # the folder itself is gone or closed to us: whoever lists it says so
        return None


def _stamps(folder: str) -> Stamps:
    found: list[int] = []
    for file in FILES:
        try:
            seen = os.lstat(folder + file)
        except OSError:
            found += (0, 0, 0)
        else:
            found += (seen.st_ctime_ns if stat.S_ISREG(seen.st_mode) else _NEVER, seen.st_size, seen.st_ino)
    return tuple(found)


def _lasting(info: RunInfo) -> bool:
    """Whether the entry says what the files say: ``crashed`` without an end is a guess from a process that is
    gone.
    """
    return info.status in (Status.FINISHED, Status.STOPPED, Status.FAILED) or (
        info.status == Status.CRASHED and bool(info.state.get("ended"))
    )


def _entries(database: sqlite3.Connection) -> dict[str, tuple[Stamps, RunInfo]]:
    if database.execute("SELECT digest FROM made_by").fetchall() != [(_code_digest(),)]:
        return {}
    found = {}
    for name, stamps, entry, settings, state, checksum in database.execute("SELECT * FROM entries"):
        try:
            if _checksum(name, stamps, entry, settings, state) != checksum:
                continue
            values = json.loads(entry)
            values["tags"] = tuple(values["tags"])
            found[name] = (
                _STAMPS.unpack(stamps),
                RunInfo(run=name, config=LazyJson(settings), state=LazyJson(state), **values),
            )
        except (TypeError, ValueError, AttributeError, struct.error):  # not a row of ours
            continue
    return found


def _row(name: str, stamps: Stamps, info: RunInfo) -> tuple:
    shown = {key: getattr(info, key) for key in _ENTRY}
    packed = (_STAMPS.pack(*stamps), json.dumps(shown).encode(), _pack(info.config), _pack(info.state))
    return name, *packed, _checksum(name, *packed)


def _pack(values: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(dict(values)).encode(), 1)


def _checksum(name: str, *columns: bytes) -> int:
    found = zlib.crc32(name.encode())
    for column in columns:
        found = zlib.crc32(column, found)
    return found


@cache
def _code_digest() -> str:
    """A digest of the code that reads run folders: what another version made of them is not used."""
    made_by = (
        Path(__file__),
        *(
            Path(module.__file__ or "")
            for module in (catalog, run_config, factory, outcome, schema, validation, run)
        ),
    )
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in made_by)).hexdigest()
