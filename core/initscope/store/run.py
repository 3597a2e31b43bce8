"""Reading one run folder, and what a person may do to it: edit, stop, delete."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from initscope.config.run_config import OPTIONS, RunConfig, title_of
from initscope.errors import ConfigError, RunFolderError, RunNotFound, RunStateError, RunTooLarge, one_line
from initscope.outcome import Basis, Decision, decide, settled
from initscope.permission import require
from initscope.schema import LIVE, Outcome, Status
from initscope.store import validation
from initscope.store.bucket import folder
from initscope.store.files import alive, number, open_regular, read_small, stamp, touch, write_json
from initscope.store.grid import Grid, Scan, grids
from initscope.store.locks import claimed, editing
from initscope.store.parts import (
    SCHEMAS,
    held,
    opened,
    parts,
    refuse_what_is_too_large,
    rows_of,
)

CLAIM_SECONDS = 5.0
"""So long a deletion waits for a process that has said its last word and is about to end."""

HEAD_ROWS = 65_536
"""More than any network has layers."""


@dataclass(frozen=True)
class RunInfo:
    """What a list shows of a run. ``config`` is the plain mapping from disk; numbers are the last known, or
    None.
    """

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
    archived: bool = False

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def hidden(self) -> bool:
        """Whether lists leave it out: archived, and not resumed since."""
        return self.archived and not self.live

    @property
    def progress(self) -> float:
        """Share of the planned steps that are done, 0 to 1."""
        done, total = number(self.state.get("step")) or 0.0, number(self.state.get("total_steps")) or 0.0
        return min(1.0, done / total) if total else 0.0

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """(loss, accuracy) as a list shows them, both of the same images: those of validation once an epoch
        is over, before that, and where the loss is no number any more, the last batch's.
        """
        validated = number(self.state.get("val_loss")), number(self.state.get("val_accuracy"))
        unusable = None in validated or (self.loss is not None and not math.isfinite(self.loss))
        return (self.loss, self.accuracy) if unusable else validated


def with_loss(steps: pa.Table) -> pa.Table:
    """The rows of ``steps`` whose loss was told: null says that it was not (a batch was left out), NaN that
    it was no number.
    """
    told = (
        "loss" not in steps.column_names or not steps["loss"].null_count
    )  # of a damaged file there are no columns at all
    return steps if told else steps.filter(steps["loss"].is_valid())


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
            found: Any = self.json_file("config.json").get("config")
            return RunConfig.from_dict(found)
        except ConfigError as error:
            raise RunFolderError(
                f"run {self.id}: config.json is not valid: {error}; delete the run, or correct the file"
            ) from None

    def state(self) -> dict[str, Any]:
        """``status.json`` as readers should see it: ``stopping`` once asked to stop, ``crashed`` once its
        process is gone.
        """
        state = self._written_state()
        if state.get("status") == Status.RUNNING:
            if not alive(state):
                # The end may have been written between our two looks.
                state = self._written_state()
                if state.get("status") == Status.RUNNING:
                    state["status"] = str(Status.CRASHED)
                    state["error"] = (
                        state.get("error") or "the training process is gone; the end of log.txt may say why"
                    )
            elif self.stop_requested():
                state["status"] = str(Status.STOPPING)
        return state

    def _written_state(self) -> dict[str, Any]:
        folder.refresh(self.path.parent)
        try:
            return validation.state(self.json_file("status.json"))
        except validation.Wrong as error:
            raise RunFolderError(
                f"run {self.id}: status.json is damaged: {error}; delete the run, or correct the file"
            ) from None

    def info(self) -> RunInfo:
        """The listing entry. Broken files become an entry with ``error``."""
        try:
            config = self._written_config()
            state = self._with_outcome(self.state())
            meta = self.meta()
            return RunInfo(
                run=self.id,
                name=meta.get("name") or title_of(config),
                status=state["status"],
                outcome=state.get("outcome"),
                init=str(config.get("init")),
                loss=number(state.get("loss")),
                accuracy=number(state.get("accuracy")),
                created=number(state.get("created")) or 0.0,
                config=config,
                state=state,
                tags=tuple(meta.get("tags", config.get("tags")) or ()),
                error=state.get("error"),
                archived=bool(meta.get("archived")),
            )
        except RunFolderError as error:
            return RunInfo(self.id, self.id, "unreadable", None, "", None, None, 0.0, {}, {}, (), str(error))

    def judged(self, state: Mapping[str, Any]) -> Decision:
        """What became of the run by its rows so far (``initscope.outcome.decide``). Raises RunFolderError if
        they are damaged.
        """
        steps, epochs = self.read("steps", ["loss"]), self.read("epochs", ["val_loss", "val_accuracy"])
        return decide(
            with_loss(steps)["loss"].to_numpy(),
            steps=int(number(state.get("step")) or 0),
            state=state,
            val_losses=epochs["val_loss"].to_pylist(),
            val_accuracies=epochs["val_accuracy"].to_pylist(),
        )

    def _with_outcome(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with the outcome as every page and command shows it: that of an ended loop of somebody's
        own, which an older version or a process that is gone did not write, is decided by its rows; that of a
        run that broke off is no more than its rows show.
        """
        status, written = str(state.get("status")), state.get("outcome")
        if status in LIVE:
            return state
        if (
            state.get("source") == "recorder"
            and state.get("outcome_by") is None
            and written != Outcome.DIVERGED
        ):
            try:
                found = settled(self.judged(state), status)
            except RunFolderError:
                return state  # the rows are damaged, and whoever shows them says so
        elif written is None:
            return state
        else:
            by = state.get("outcome_by") or (
                Basis.TRAINING_LOSS
                if written == Outcome.DIVERGED
                else None
                if written == Outcome.UNDECIDED
                else Basis.VALIDATION
            )
            found = settled(Decision(Outcome(written), by, str(state.get("outcome_because") or "")), status)
        return {
            **state,
            "outcome": str(found.outcome),
            "outcome_by": found.by and str(found.by),
            "outcome_because": found.because,
        }

    def _written_config(self) -> dict[str, Any]:
        try:
            return validation.config(self.json_file("config.json").get("config"))
        except validation.Wrong as error:
            raise RunFolderError(
                f"run {self.id}: config.json is damaged: {error}; delete the run, or correct the file"
            ) from None

    def meta(self) -> dict[str, Any]:
        """What a person wrote on the run after it began: name, tags, notes, and whether it is archived."""
        if not os.path.lexists(self.path / "meta.json"):
            return {}
        try:
            return validation.meta(self.json_file("meta.json"))
        except validation.Wrong as error:
            raise RunFolderError(
                f"run {self.id}: meta.json is damaged: {error}; correct or remove the file"
            ) from None

    def edit(self, **changes: Any) -> None:
        """Change name, tags or notes; validated like the config's own. Two people at once: both changes are
        kept.

        Raises ConfigError, RunNotFound if the run is gone, NotAllowed.
        """
        require("change a run")
        for key in ("name", "tags"):
            if key in changes:
                parsed = OPTIONS[key].parse(changes[key])
                changes[key] = list(parsed) if isinstance(parsed, tuple) else parsed
        with editing(self), self._writing("change"):
            store = folder.store_of(self.path.parent)
            write_json(
                self.path / "meta.json", store.edit(self.id, changes) if store else {**self.meta(), **changes}
            )

    def archive(self, archived: bool = True) -> None:
        """Hide an ended run from lists and groups, or show it again; nothing of it is deleted.

        ``meta.json`` says so, in which every version keeps what it does not know.

        Raises RunStateError while the run is live, RunNotFound if it is gone, NotAllowed.
        """
        require("change a run")
        status = self.state()["status"]
        if archived and status in LIVE:
            raise RunStateError(f"run {self.id} is {status}; stop it first, then archive it")
        self.edit(archived=archived)

    @contextlib.contextmanager
    def _writing(self, action: str) -> Iterator[None]:
        """What the disk says against ``action``, as one of our errors."""
        try:
            yield
        except FileNotFoundError:
            raise RunNotFound(f"run {self.id} is gone: somebody has deleted it; choose another one") from None
        except OSError as error:
            reason = error.strerror or error
            raise RunFolderError(
                f"cannot {action} run {self.id}: {reason}; free space, or check who may write there"
            ) from None

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of ``log.txt``, or an empty string."""
        try:
            with open_regular(self.path / "log.txt") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 200 * lines))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""

    def revision(self) -> tuple:
        """Changes whenever anything a reader sees may have changed; cheap enough for a cache key."""
        folder.look(self.path)
        return tuple(
            stamp(self.path / name)
            for name in ("status.json", "meta.json", "parts", "layers.parquet", "stop")
        )

    # -- what it does

    def request_stop(self) -> None:
        """Ask the run to stop after the current step. A queued run is stopped at once. Raises RunStateError
        if it has ended.
        """
        require("stop a run")
        status = self.state()["status"]
        if status not in LIVE:
            raise RunStateError(f"run {self.id} is {status}; only a queued or running run can be stopped")
        with editing(self), self._writing("stop"):
            touch(self.path / "stop")
        if store := folder.store_of(self.path.parent):
            store.stop(self.id)

    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    def delete(self) -> None:
        """Remove the folder; links in it are removed, what they lead to is left alone.

        Raises RunStateError while the run is live or a process works on it, RunNotFound if it is gone,
        NotAllowed.
        """
        require("delete a run")
        if self.path.is_symlink() or not self.path.parent.name or self.path.name in ("", ".", ".."):
            raise RunFolderError(
                f"{self.id} is a link, not a run folder; nothing deleted. Remove it by hand if you mean to"
            )
        # Claimed, so that nobody resumes it meanwhile; renamed first, so that no reader sees half a run.
        grave = self.path.with_name(f".deleted-{self.id}-{secrets.token_hex(3)}")
        store = folder.store_of(self.path.parent)
        # Not while somebody writes a small file into it: that would be left behind.
        with claimed(self, wait=CLAIM_SECONDS, files=False), editing(self), self._writing("delete"):
            status = self.info().status
            if status in LIVE:
                raise RunStateError(f"run {self.id} is {status}; stop it first")
            if store:
                store.forget(self.id)
            os.rename(self.path, grave)
        with self._writing("delete"):
            shutil.rmtree(grave)
        if store:
            store.remove(self.id)

    def discard(self) -> None:
        """Remove a run that was made a moment ago and could not be queued. Only for whoever made it."""
        with self._writing("remove"):
            os.rename(self.path, grave := self.path.with_name(f".deleted-{self.id}-{secrets.token_hex(3)}"))
            shutil.rmtree(grave)
        if store := folder.store_of(self.path.parent):
            store.forget(self.id)
            store.remove(self.id)

    # -- what it measured

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of ``steps``, ``epochs`` or ``layers`` so far, in order; live runs too.

        Raises RunFolderError if a file is damaged.
        """
        return self._retrying(table, lambda: self._read(table, -1, columns)[0])

    def tail(self, table: str, after: Cursor | None = None) -> tuple[pa.Table, Cursor]:
        """Rows that came since ``after`` (a cursor of an earlier call; None: all), and the cursor for the
        next call.
        """
        seen = after or Cursor()
        rows, part = self._retrying(table, lambda: self._read(table, seen.part, None))
        key = rows["epoch" if table == "epochs" else "step"]
        rows = rows.filter(
            pc.greater(key, seen.key)
        )  # a merged part begins with rows that were seen in its pieces
        last = pc.max(rows["epoch" if table == "epochs" else "step"]).as_py()
        return rows, Cursor(part, seen.key if last is None else last)

    def head(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of the first recorded step (or epoch), without reading the others. Raises RunFolderError
        if a file is damaged.
        """

        def look() -> pa.Table:
            for file, _ in self._files(table, -1):
                rows = rows_of(file, table, columns, first=HEAD_ROWS)
                if rows.num_rows:
                    key = rows["epoch" if table == "epochs" else "step"]
                    return rows.filter(pc.equal(key, key[0]))
            return self._read(table, -1, columns)[0]

        return self._retrying(table, look)

    def count(self, table: str) -> int:
        """How many rows a table has so far."""
        return self.scan(table, ()).rows

    def scan(self, table: str, columns: Sequence[str]) -> Scan:
        """The same rows in pieces, for runs that may be too long to hold. Raises RunFolderError if a file is
        damaged.
        """
        return self._retrying(
            table, lambda: Scan([file for file, _ in self._files(table, -1)], table, columns)
        )

    def grids(self, metric: str) -> Iterator[Grid]:
        """One metric of ``layers`` as layers x steps, piece by piece. Raises RunFolderError if a file is
        damaged.
        """
        found = grids(self.scan("layers", ("step", "layer", "depth", metric)), metric)
        while (piece := self._retrying("layers", lambda: next(found, None))) is not None:
            yield piece

    def _retrying(self, table: str, look: Any) -> Any:
        cannot = f"run {self.id}: {table} cannot be read"
        for _ in range(8):  # a part may be merged away between listing and opening: list again
            try:
                return look()
            except FileNotFoundError:
                continue
            except RunTooLarge as error:
                raise RunTooLarge(f"{cannot}: {error}; query it, or export it as it is") from None
            except (MemoryError, pa.ArrowMemoryError):
                raise RunFolderError(
                    f"{cannot}: this machine has too little memory left for it; try again when "
                    "other programs have ended"
                ) from None
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
                # Damaged bytes come out of a parquet reader as almost anything.
                raise RunFolderError(
                    f"{cannot}, the file is damaged: {one_line(str(error))}; put back a copy of it, or "
                    "delete the run"
                ) from None
        raise RunFolderError(f"{cannot}: its parts keep moving; try again")

    def _files(self, table: str, after: int) -> list[tuple[pq.ParquetFile, int]]:
        """The files that hold rows beyond part number ``after``, in order, each with the number of its last
        part.
        """
        found, last = [], after
        folder.look(self.path)
        # Parts are listed before the compacted file is looked at: compaction writes that file first and
        # deletes parts after, so rows that leave one are already in the other.
        listed = parts(self.path / "parts", table)
        final = self.path / f"{table}.parquet"
        if final.exists():
            file = opened(
                final
            )  # opened once: a resumed run replaces it, and rows must fit the number they go with
            through = held(file.schema_arrow)
            if after < max(through, 0):
                found.append((file, through))
            last = max(last, through)
        for _, end, path in listed:
            if end > last:
                found.append((opened(path), end))
                last = end
        return found

    def _read(self, table: str, after: int, columns: Sequence[str] | None) -> tuple[pa.Table, int]:
        files = self._files(table, after)
        wanted = (
            SCHEMAS[table] if columns is None else pa.schema([SCHEMAS[table].field(name) for name in columns])
        )
        refuse_what_is_too_large([file for file, _ in files], wanted)
        bare = [rows_of(file, table, columns) for file, _ in files]
        return (pa.concat_tables(bare).unify_dictionaries() if bare else wanted.empty_table()), max(
            [after, *(end for _, end in files)]
        )

    def json_file(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder. Raises RunFolderError if it is missing or broken."""
        try:
            value = json.loads(read_small(self.path / name))
        except FileNotFoundError:
            raise RunFolderError(
                f"run {self.id}: {name} is missing; the run cannot be shown, delete it if you do not know why"
            ) from None
        except (ValueError, RecursionError):
            raise RunFolderError(
                f"run {self.id}: {name} is not valid JSON; delete the run, or correct the file"
            ) from None
        except OSError as error:
            advice = "put the file itself there" if error.errno == errno.ELOOP else "check who may read it"
            raise RunFolderError(
                f"run {self.id}: {name} cannot be read: {error.strerror}; {advice}"
            ) from None
        if not isinstance(value, dict):
            raise RunFolderError(
                f"run {self.id}: {name} holds no JSON object; delete the run, or correct the file"
            )
        return value
