"""Writing a run: rows into parts, facts into ``status.json``, and one compacted file a table at the end."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from initscope.errors import RunFolderError
from initscope.schema import LAYER_METRICS, MISSING, OPTIONAL_TABLES, TABLES
from initscope.store.files import overwrite_json, write_json
from initscope.store.parts import (
    MERGE_AT,
    SCHEMAS,
    concatenate,
    drop_parts,
    holds_through,
    part_name,
    parts,
    write_table,
)
from initscope.store.run import Run

FLUSH_SECONDS = 0.5
"""Rows wait at most this long plus one step before they are on disk; the first one does not."""
PAUSE_SECONDS = 30.0
"""A disk that takes nothing is asked again after twice the pause before, at most after this long."""
WAITING_NUMBERS = 4_000_000
"""So many numbers of a table (32 MB at most) wait in memory for a disk that takes nothing; of more the oldest
go.
"""


class RunWriter:
    """Buffers rows and writes them as parts; keeps ``status.json``. One writer a run."""

    def __init__(self, run: Run, clock: Any = time.monotonic):
        refuse_links(run)
        self.run = run
        self._clock = clock
        self._state = run.json_file("status.json")
        self._rows: dict[str, list[tuple]] = {name: [] for name in TABLES}
        self._next = {name: self._first_free(name) for name in TABLES}
        self._live = {name: [part[:2] for part in parts(run.path / "parts", name)] for name in TABLES}
        self._flushed = clock() - FLUSH_SECONDS  # the first row at once: somebody waits for it
        self._pause = 0.0
        self.rows_lost = 0
        """Rows that found no room in memory while the disk took none."""

    def _first_free(self, table: str) -> int:
        """Number of the next part. Parts that a compaction wrote down but did not live to delete go first:
        merged with a new one they would be read twice.
        """
        holds = holds_through(self.run.path / f"{table}.parquet")
        drop_parts(self.run.path / "parts", table, holds)
        return max([holds, *(end for _, end, _ in parts(self.run.path / "parts", table))]) + 1

    def step(self, *values: float | None) -> None:
        """One row of ``steps``, in the schema's column order."""
        self._rows["steps"].append(values)

    def epoch(self, *values: float) -> None:
        """One row of ``epochs``, in the schema's column order."""
        self._rows["epochs"].append(values)

    def layers(
        self, step: int, names: pa.DictionaryArray, kinds: pa.DictionaryArray, depths: pa.Array, values: Any
    ) -> None:
        """One row a layer. ``values``: (metrics, layers), one row for each of ``LAYER_METRICS``; None or
        ``MISSING`` is not measured.
        """
        if not isinstance(values, np.ndarray):
            values = [[MISSING if value is None else value for value in row] for row in values]
        self._rows["layers"].append((step, names, kinds, depths, np.array(values, np.float32)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One row of ``metrics`` for each of ``values``."""
        self._rows["metrics"] += [(step, name, value) for name, value in values.items()]

    def due(self) -> bool:
        """Whether ``FLUSH_SECONDS`` have passed since the last flush; more, if the last ones failed."""
        return self._clock() - self._flushed >= max(FLUSH_SECONDS, self._pause)

    def flush_if_due(self) -> bool:
        """Write what waits if it is time; whether it did."""
        if not self.due():
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write waiting rows as parts, and the status with a fresh heartbeat.

        Raises OSError or RunFolderError if the disk takes nothing: the rows wait on, and the next flush
        writes them.
        """
        try:
            if self._pause:
                self._find_again()
            for table in TABLES:
                self._flush(table)
            self.update()
            self._pause = 0.0
        except (OSError, RunFolderError):
            self._pause = min(PAUSE_SECONDS, max(2 * self._pause, 2 * FLUSH_SECONDS))
            for table in TABLES:
                self._forget_beyond(table)
            raise
        finally:
            self._flushed = self._clock()

    def _flush(self, table: str) -> None:
        rows = self._rows[table]
        if not rows:
            return
        number = self._next[table]
        try:
            write_table(self._table(table, rows), self._part(table, number, number))
        except OSError:
            raise  # the rows wait
        except Exception:
            self._rows[table] = []  # no rows of this table: they would fail again
            raise
        self._rows[table] = []
        self._next[table] += 1
        self._live[table].append((number, number))
        self._merge(table)

    def _find_again(self) -> None:
        """After a failure: the folder must still be this run's, not one that has taken its place. Raises
        OSError, RunFolderError.
        """
        if self.run.json_file("status.json").get("created") != self._state.get("created"):
            raise RunFolderError(
                f"run {self.run.id}: another run has taken the place of its folder; nothing is written into "
                "it"
            )
        (self.run.path / "parts").mkdir(exist_ok=True)

    def _forget_beyond(self, table: str) -> None:
        rows = self._rows[table]
        if not rows:
            return
        width = rows[-1][4].size if table == "layers" else len(rows[-1])
        if len(rows) * width > WAITING_NUMBERS:
            self.rows_lost += len(rows) - len(rows) // 2
            self._rows[table] = rows[-(len(rows) // 2) :]

    def _table(self, table: str, rows: Sequence[tuple]) -> pa.Table:
        if table == "layers":
            return _layer_rows(rows)
        schema = SCHEMAS[table]
        return pa.table(
            [
                pa.array(column, field.type)
                for column, field in zip(zip(*rows, strict=True), schema, strict=True)
            ],
            schema=schema,
        )

    def _part(self, table: str, first: int, last: int) -> Path:
        return self.run.path / "parts" / part_name(table, first, last)

    def _merge(self, table: str) -> None:
        """Make one part of the last ``MERGE_AT`` if they are equally large: the number of parts grows as a
        logarithm.
        """
        live = self._live[table]
        while len(live) >= MERGE_AT and len({last - first for first, last in live[-MERGE_AT:]}) == 1:
            pieces = [self._part(table, *span) for span in live[-MERGE_AT:]]
            whole = live[-MERGE_AT][0], live[-1][1]
            concatenate(pieces, self._part(table, *whole))
            live[-MERGE_AT:] = [whole]
            for piece in pieces:
                piece.unlink(missing_ok=True)

    def note(self, **changes: Any) -> None:
        """Change the status in memory; the next flush writes it."""
        self._state.update(changes)

    def update(self, **changes: Any) -> None:
        """Merge ``changes`` into ``status.json`` and beat the heart."""
        self._state.update(changes, heartbeat=time.time())
        write_json(self.run.path / "status.json", self._state)

    def end(self, **changes: Any) -> None:
        """The last ``update``, also on a disk that has no room for a second file. Raises OSError or
        RunFolderError if not even the old one can be written.
        """
        if self._pause:
            self._find_again()
        self._state.update(changes, heartbeat=time.time())
        _write_status(self.run, self._state)

    def log(self, text: str) -> None:
        """Append to ``log.txt``. Raises OSError."""
        with open(self.run.path / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)

    @property
    def state(self) -> Mapping[str, Any]:
        return self._state

    def keep_until(self, step: int, epoch: int) -> None:
        """Forget rows from ``step`` and ``epoch`` on: what a resumed run will write again."""
        for table in TABLES:
            key, limit = ("epoch", epoch) if table == "epochs" else ("step", step)
            rows = self.run.read(table)
            if table in OPTIONAL_TABLES and not rows.num_rows:
                continue
            self._compact(table, rows.filter(pc.less(rows[key], limit)))

    def compact(self) -> None:
        """Turn all parts into one file a table. Readers see the same rows before, during and after."""
        self.flush()
        for table in TABLES:
            self._compact(table)

    def _compact(self, table: str, rows: pa.Table | None = None) -> None:
        final = self.run.path / f"{table}.parquet"
        live = parts(self.run.path / "parts", table)
        holds = max([holds_through(final), *(end for _, end, _ in live)])
        if rows is not None:
            write_table(rows, final, holds, durable=True)
        elif live or not (final.exists() or table in OPTIONAL_TABLES):
            sources = [final] if final.exists() else []
            covered = holds_through(final)
            concatenate(
                sources + [path for _, end, path in live if end > covered],
                final,
                holds,
                SCHEMAS[table],
                durable=True,
            )
        drop_parts(self.run.path / "parts", table, holds)
        self._live[table] = []


def _layer_rows(rows: Sequence[tuple]) -> pa.Table:
    """Rows of ``layers`` from what ``RunWriter.layers`` was given, step by step."""
    # Arrow objects cost more than the numbers in them, so they are made once for all steps that have the same
    # layers.
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: tuple(map(id, row[1:4])))]
    return pa.Table.from_batches(list(map(_layer_batch, groups))).unify_dictionaries()


def _layer_batch(rows: Sequence[tuple]) -> pa.RecordBatch:
    (names, kinds, depths), schema = rows[0][1:4], SCHEMAS["layers"]
    columns = [
        np.repeat(np.array([row[0] for row in rows], np.int32), len(depths)),
        _repeated(names, len(rows)),
        np.tile(depths, len(rows)),
        _repeated(kinds, len(rows)),
    ]
    for name, numbers in zip(LAYER_METRICS, np.stack([row[4] for row in rows], axis=1), strict=True):
        flat = numbers.reshape(-1)
        missing = flat == np.float32(MISSING)
        kind = schema.field(name).type
        columns.append(
            pa.array(np.where(missing, 0, flat) if pa.types.is_integer(kind) else flat, kind, mask=missing)
        )
    return pa.record_batch(columns, schema=schema)


def _repeated(words: pa.DictionaryArray, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.tile(words.indices, times), words.dictionary)


def set_status(run: Run, **changes: Any) -> None:
    """Merge ``changes`` into ``status.json`` without looking at the rows, which may be what is damaged.

    On a disk that takes nothing more the file is written over itself. Only for whoever holds the run's claim.
    """
    refuse_links(run)
    _write_status(run, run.json_file("status.json") | {"heartbeat": time.time()} | changes)


def _write_status(run: Run, state: Mapping[str, Any]) -> None:
    try:
        write_json(run.path / "status.json", state)
    except OSError:
        overwrite_json(run.path / "status.json", state)


def refuse_links(run: Run) -> None:
    """A link in a run folder would have us write, or delete parts, somewhere else; a pipe would have us wait
    for ever. Raises RunFolderError.
    """
    try:
        with os.scandir(run.path) as entries:
            strange = {
                entry.name: entry.is_symlink()
                for entry in entries
                if entry.is_symlink() or not (entry.is_file() or entry.is_dir())
            }
    except OSError as error:
        raise RunFolderError(
            f"run {run.id} cannot be read: {error.strerror or error}; check who may read its folder"
        ) from None
    for name, linked in strange.items():
        if linked:
            raise RunFolderError(
                f"run {run.id}: {name} is a link; nothing is written through it. Replace it by the file it "
                "stands for"
            )
        raise RunFolderError(f"run {run.id}: {name} is neither a file nor a folder; remove it")
