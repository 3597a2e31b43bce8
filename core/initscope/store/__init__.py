"""The only reader and writer of ``runs/``. No torch.

A run is a folder: JSON files that are replaced atomically, and parquet parts that become one file a table at
the end. ``Runs`` is all of them, ``Run`` reads one, ``RunWriter`` writes one.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from initscope.config.run_config import OPTIONS, RunConfig
from initscope.errors import ConfigError, RunFolderError, RunNotFound, RunStateError, choose_from, one_line
from initscope.installation import checkout
from initscope.permission import require
from initscope.schema import Status
from initscope.store import origin
from initscope.store.bucket.folder import folder_of, refresh, store_of
from initscope.store.bucket.remote import remote_url
from initscope.store.files import environment, own_process, process_alive, write_json
from initscope.store.index import Index
from initscope.store.locks import claimed
from initscope.store.run import Cursor, Run, RunInfo
from initscope.store.writer import RunWriter

__all__ = [
    "RECORDED",
    "RUN_ID",
    "Cursor",
    "Run",
    "RunInfo",
    "RunWriter",
    "Runs",
    "claimed",
    "default_root",
    "new_id",
    "own_process",
    "process_alive",
    "write_json",
]

RECORDED = "custom"
"""What runs of somebody's own loop have for an initialization: a name that no config may choose."""
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


def default_root() -> str:
    """``INITSCOPE_RUNS``, a folder or the address of one in an object store.

    Without it: inside of InitScope's own checkout that checkout's ``runs/``, elsewhere ``runs`` in the
    working folder.
    """
    own, here = checkout(), Path.cwd()
    inside = own is not None and (here == own or own in here.parents)
    return os.environ.get("INITSCOPE_RUNS") or str((own if inside and own else here) / "runs")


# Within ``Runs`` the name ``list`` is its method.
_Infos = list[RunInfo]
_Selected = list[Run]


class Runs:
    """All runs in one folder, or below an address such as ``s3://bucket/runs``
    (``initscope.store.bucket.folder``).

    ``shown`` is what messages call it, where its path is nobody's business.
    """

    def __init__(self, root: str | Path | None = None, shown: str = ""):
        given = str(root or default_root())
        url = remote_url(given)
        self.root = (
            folder_of(url)
            if url
            else Path(unquote(given.removeprefix("file://")) if given.startswith("file://") else given)
        )
        try:
            str(self.root).encode()
        except UnicodeEncodeError:  # parquet files have their paths in UTF-8
            raise ConfigError(f"the folder of runs must have a name in UTF-8, not {given!r}") from None
        self.shown = shown or url or str(self.root)
        self._store = store_of(self.root)
        self._index = Index(self.root)

    @property
    def shared(self) -> bool:
        """Whether they are in an object store, and here only for those who work on them."""
        return self._store is not None

    def create(
        self,
        config: RunConfig | Mapping[str, Any],
        status: Status = Status.QUEUED,
        run_id: str | None = None,
        **extra: Any,
    ) -> Run:
        """A new run folder with config and status, complete from the moment it is seen.

        Raises RunFolderError if the folder cannot be written, RunStateError if the id is taken.
        """
        require("launch a run")
        values = config.to_dict() if isinstance(config, RunConfig) else dict(config)
        run_id = run_id or new_id(values)
        if not RUN_ID.fullmatch(run_id):
            raise RunFolderError(
                f"a run id is 1 to 120 letters, digits, '.', '_' or '-', not {one_line(run_id)}"
            )
        if self._store:
            self._store.claim(run_id)
        temporary = self.root / f".new-{secrets.token_hex(6)}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (temporary / "parts").mkdir(parents=True)
            write_json(temporary / "config.json", {"config": values, **environment()})
            now = time.time()
            with suppress(
                RunFolderError
            ):  # without a home folder a loop is recorded all the same; what is queued says so
                extra = {origin.MARK: origin.mark(run_id, values), **extra}
            first = {
                "status": str(status),
                "outcome": None,
                "step": 0,
                "total_steps": None,
                "heartbeat": now,
                "created": now,
            }
            write_json(temporary / "status.json", {**first, "error": None, **extra})
            (temporary / "log.txt").touch()
            if (self.root / run_id).exists():
                raise RunStateError(
                    f"there is a run {run_id} already in {self.shown}; choose another id or delete it"
                )
            os.rename(temporary, self.root / run_id)
        except OSError as error:
            raise RunFolderError(
                f"cannot write a run into {self.shown}: {error.strerror or error}; free space, or check who "
                "may write there"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well
        if self._store:
            self._store.ensure_shipper()
        return Run(self.root / run_id)

    def ids(self) -> list[str]:
        """Ids of all run folders, newest first."""
        return sorted((name for name in self._folders() if self._is_run(name)), reverse=True)

    def _folders(self) -> list[str]:
        """Names of the folders that may be runs. Raises RunFolderError."""
        refresh(self.root)
        try:
            with os.scandir(self.root) as entries:
                return [
                    e.name for e in entries if RUN_ID.fullmatch(e.name) and e.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunFolderError(
                f"cannot read {self.shown}: {error.strerror or error}; check INITSCOPE_RUNS and who may "
                "read it"
            ) from None

    def _is_run(self, name: str) -> bool:
        """Whether the folder is a run's, damaged or not: one of its two JSON files is there."""
        return any(
            os.path.lexists(os.path.join(self.root, name, file)) for file in ("status.json", "config.json")
        )

    def list(self) -> list[RunInfo]:
        """What a table of runs needs, newest first. A folder that cannot be read is listed with its error."""
        return sorted(
            self._index.infos(self._folders()), key=lambda info: (info.created, info.run), reverse=True
        )

    def own(self) -> _Infos:
        """Those that processes of this machine work on: all but what an object store has of other
        machines.
        """
        return [info for info in self.list() if self._store is None or self._store.owns(info.run)]

    def settle(self, run_id: str) -> None:
        """Wait until an object store has all of a run of this machine's; in a folder it is there already."""
        if self._store:
            self._store.wait_until_shipped(run_id)

    def info(self, run_id: str) -> RunInfo:
        """The listing entry of one run; broken files become an entry with ``error``, never an exception."""
        refresh(self.root)
        return self._index.info(run_id)

    def get(self, run_id: str) -> Run:
        """The run of that id. Raises RunNotFound, naming the newest runs there are."""
        refresh(self.root)
        if RUN_ID.fullmatch(run_id) and self._is_run(run_id):
            if os.path.islink(self.root / run_id):
                raise RunFolderError(
                    f"{run_id} in {self.shown} is a link, not a run folder; nothing is done through it. "
                    "Move what it leads to here"
                )
            return Run(self.root / run_id)
        newest = self.ids()[:5]
        there = "the newest are " + ", ".join(newest) if newest else "there are none yet"
        raise RunNotFound(f"no run {one_line(run_id)} in {self.shown}; {there}")

    def select(self, expression: str, among: Sequence[RunInfo] | None = None) -> _Selected:
        """A run id, or a group such as ``init=default,sweep=ID``: every run whose config has these values,
        the oldest first. Archived runs are in no group.

        Values may hold commas.

        ``among``: the list of runs, newest first, for whoever has it already.

        Raises RunNotFound if nothing fits, ConfigError for a field that does not exist or comes twice.
        """
        if "=" not in expression:
            return [self.get(expression)]
        infos = [info for info in (self.list() if among is None else among) if not info.hidden]
        if named := [info.run for info in infos if expression == f"name={info.name}"]:
            return [
                Run(self.root / run_id) for run_id in reversed(named)
            ]  # a name may hold commas and equal signs
        wanted: dict[str, Any] = {}
        for term in re.split(r",(?=[^,]*=)", expression):
            key, _, value = (part.strip() for part in term.partition("="))
            if key not in OPTIONS:
                raise ConfigError(choose_from("config field", key, OPTIONS))
            if key in wanted:
                raise ConfigError(f"{one_line(expression)}: {key} is given twice; a run has one", key)
            wanted[key] = value if (key, value) == ("init", RECORDED) else OPTIONS[key].parse(value)
        found = [
            info.run
            for info in infos
            if info.config and all(_fits(_shown(info, key), value) for key, value in wanted.items())
        ]
        if not found:
            raise RunNotFound(f"no run in {self.shown} fits {expression[:200]}; `initscope runs` lists them")
        return [Run(self.root / run_id) for run_id in reversed(found)]


def _shown(info: RunInfo, key: str) -> Any:
    """A field as lists show it: name and tags may have been changed after the run began."""
    return {"name": info.name, "tags": list(info.tags)}.get(key, info.config.get(key))


def _fits(have: Any, wanted: Any) -> bool:
    return set(wanted) <= set(have or ()) if isinstance(wanted, tuple) else have == wanted


def new_id(config: Mapping[str, Any]) -> str:
    """A sortable id: UTC time, initialization, seed and six random characters."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{config.get('init', 'custom')}-s{config.get('init_seed', 0)}-{secrets.token_hex(3)}"
