"""Reading one run folder, and what a person may do to it: edit, stop, delete."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.config import OPTIONS, RunConfig
from core.errors import ConfigError, RunFolderError, RunNotFound, RunStateError, one_line
from core.schema import LIVE, Status
from core.store.files import alive, number, stamp, write_json
from core.store.parts import SCHEMAS, held, parts


@dataclass(frozen=True)
class RunInfo:
    """What a list shows of a run. ``config`` is the plain mapping from disk; numbers are the last known, or None."""

    run: str
    name: str
    status: str
    outcome: str | None
    init: str
    loss: float | None
    accuracy: float | None
    created: float
    config: Mapping[str, Any]
    state: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    error: str | None = None

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def progress(self) -> float:
        """Share of the planned steps that are done, 0 to 1."""
        done, total = number(self.state.get("step")) or 0.0, number(self.state.get("total_steps")) or 0.0
        return min(1.0, done / total) if total else 0.0


class Cursor(NamedTuple):
    """How far a reader has come in a table: the last part it opened and the last step (or epoch) it saw."""

    part: int = -1
    key: int = -1


class Run:
    """One run folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def id(self) -> str:
        return self.path.name

    # -- what it is

    def config(self) -> RunConfig:
        """The validated configuration. Raises RunFolderError if the file is broken."""
        try:
            return RunConfig.from_dict(self.json_file("config.json").get("config"))
        except ConfigError as error:
            raise RunFolderError(f"run {self.id}: config.json is not valid: {error}") from None

    def state(self) -> dict[str, Any]:
        """``status.json`` as readers should see it: ``stopping`` once asked to stop, ``crashed`` once its process is gone."""
        state = self.json_file("status.json")
        if state.get("status") == Status.RUNNING:
            if not alive(state):
                # The end may have been written between our two looks.
                state = self.json_file("status.json")
                if state.get("status") == Status.RUNNING:
                    state["status"] = str(Status.CRASHED)
                    state["error"] = state.get("error") or "the training process is gone; the end of log.txt may say why"
            elif self.stop_requested():
                state["status"] = str(Status.STOPPING)
        return state

    def info(self) -> RunInfo:
        """The listing entry. Broken files become an entry with ``error``."""
        try:
            saved = self.json_file("config.json").get("config")
            config = saved if isinstance(saved, dict) else {}
            state = self.state()
            meta = self.meta()
            return RunInfo(
                run=self.id,
                name=str(meta.get("name") or config.get("name") or f"{config.get('init')} · seed {config.get('init_seed')}"),
                status=str(state.get("status")),
                outcome=state.get("outcome"),
                init=str(config.get("init")),
                loss=number(state.get("loss")),
                accuracy=number(state.get("accuracy")),
                created=number(state.get("created")) or 0.0,
                config=config,
                state=state,
                tags=tuple(str(tag) for tag in meta.get("tags", config.get("tags")) or ()),
                error=state.get("error"),
            )
        except (RunFolderError, TypeError, AttributeError) as error:
            return RunInfo(self.id, self.id, "unreadable", None, "", None, None, 0.0, {}, {}, (), str(error))

    def meta(self) -> dict[str, Any]:
        """What a person wrote on the run after it began: name, tags, notes."""
        return self.json_file("meta.json") if (self.path / "meta.json").exists() else {}

    def edit(self, **changes: Any) -> None:
        """Change name, tags or notes; validated like the config's own. Raises ConfigError."""
        for key in ("name", "tags"):
            if key in changes:
                parsed = OPTIONS[key].parse(changes[key])
                changes[key] = list(parsed) if isinstance(parsed, tuple) else parsed
        write_json(self.path / "meta.json", {**self.meta(), **changes})

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of ``log.txt``, or an empty string."""
        try:
            with open(self.path / "log.txt", "rb") as file:
                file.seek(max(0, os.path.getsize(self.path / "log.txt") - 200 * lines))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def revision(self) -> tuple:
        """Changes whenever anything a reader sees may have changed; cheap enough for a cache key."""
        return tuple(stamp(self.path / name) for name in ("status.json", "meta.json", "parts", "layers.parquet", "stop"))

    # -- what it does

    def request_stop(self) -> None:
        """Ask the run to stop after the current step. A queued run is stopped at once. Raises RunStateError if it has ended."""
        status = self.state()["status"]
        if status not in LIVE:
            raise RunStateError(f"run {self.id} is {status}; only a queued or running run can be stopped")
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    def delete(self) -> None:
        """Remove the folder. Raises RunStateError while the run is live."""
        status = self.info().status
        if status in LIVE:
            raise RunStateError(f"run {self.id} is {status}; stop it first")
        if self.path.is_symlink():
            raise RunFolderError(f"{self.path} is a link, not a run folder; nothing deleted")
        # Renamed first, so that no reader sees half a run.
        grave = self.path.with_name(f".deleted-{self.id}-{secrets.token_hex(3)}")
        try:
            os.rename(self.path, grave)
            shutil.rmtree(grave)
        except FileNotFoundError:
            raise RunNotFound(f"run {self.id} is gone already") from None
        except OSError as error:
            raise RunFolderError(f"cannot delete {self.path}: {error.strerror or error}") from None

    # -- what it measured

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of ``steps``, ``epochs`` or ``layers`` so far, in order; live runs too.

        Raises RunFolderError if a file is damaged.
        """
        return self._retrying(table, lambda: self._read(table, -1, columns)[0])

    def tail(self, table: str, after: Cursor | None = None) -> tuple[pa.Table, Cursor]:
        """Rows that came since ``after`` (a cursor of an earlier call; None: all), and the cursor for the next call."""
        seen = after or Cursor()
        rows, part = self._retrying(table, lambda: self._read(table, seen.part, None))
        key = rows["epoch" if table == "epochs" else "step"]
        rows = rows.filter(pc.greater(key, seen.key))  # a merged part begins with rows that were seen in its pieces
        last = pc.max(rows["epoch" if table == "epochs" else "step"]).as_py()
        return rows, Cursor(part, seen.key if last is None else last)

    def _retrying(self, table: str, look: Any) -> Any:
        for _ in range(8):  # a part may be merged away between listing and opening: list again
            try:
                return look()
            except FileNotFoundError:
                continue
            except (pa.ArrowException, OSError) as error:
                raise RunFolderError(f"run {self.id}: {table} cannot be read: {one_line(str(error))}") from None
        raise RunFolderError(f"run {self.id}: {table} cannot be read: its parts keep moving")

    def _read(self, table: str, after: int, columns: Sequence[str] | None) -> tuple[pa.Table, int]:
        tables, last = [], after
        # Parts are listed before the compacted file is looked at: compaction writes that file first and deletes parts
        # after, so rows that leave one are already in the other.
        listed = parts(self.path / "parts", table)
        final = self.path / f"{table}.parquet"
        if final.exists():
            file = pq.ParquetFile(final)  # opened once: a resumed run replaces it, and rows must fit the number they go with
            through = held(file.schema_arrow)
            if after < max(through, 0):
                tables.append(file.read(columns=columns))
            last = max(last, through)
        for _, end, path in listed:
            if end > last:
                tables.append(pq.ParquetFile(path).read(columns=columns))
                last = end
        wanted = SCHEMAS[table] if columns is None else pa.schema([SCHEMAS[table].field(name) for name in columns])
        bare = [table.replace_schema_metadata(None) for table in tables]
        return (pa.concat_tables(bare).unify_dictionaries() if bare else wanted.empty_table()), last

    def json_file(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder. Raises RunFolderError if it is missing or broken."""
        try:
            value = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            raise RunFolderError(f"run {self.id}: {name} is missing") from None
        except (ValueError, RecursionError):
            raise RunFolderError(f"run {self.id}: {name} is not valid JSON") from None
        except OSError as error:
            raise RunFolderError(f"run {self.id}: {name} cannot be read: {error.strerror}") from None
        if not isinstance(value, dict):
            raise RunFolderError(f"run {self.id}: {name} holds no JSON object")
        return value
