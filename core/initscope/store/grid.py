"""One metric of the ``layers`` table as layers x steps, read piece by piece: a run of a million steps needs
no more memory than one of its row groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from initscope.errors import RunTooLarge
from initscope.store.parts import READ_BYTES, rows_of

PIECE_ROWS = 1_000_000
"""Small files are read together until they have so many rows."""


class Grid(NamedTuple):
    """Some steps of one metric. ``values`` and ``present`` have the shape (layers, steps); ``depths`` has one
    entry a layer.

    ``present`` is False where a row is missing or its value null (not measured); NaN and infinities are
    present.
    """

    layers: list[str]
    depths: np.ndarray
    steps: np.ndarray
    values: np.ndarray
    present: np.ndarray


class Scan:
    """The rows of a table so far, in order and in pieces. Its files are open from the start: a run that is
    compacted meanwhile takes nothing away.
    """

    def __init__(self, files: Sequence[pq.ParquetFile], table: str, columns: Sequence[str]):
        self.files = files
        self.table = table
        self.columns = list(columns)
        self.rows = sum(file.metadata.num_rows for file in files)

    def __iter__(self) -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        for file in self.files:
            for group in range(file.num_row_groups):
                waiting.append(rows_of(file, self.table, self.columns, group))
                if sum(map(len, waiting)) >= PIECE_ROWS:
                    yield _one(waiting)
                    waiting = []
        if sum(map(len, waiting)):
            yield _one(waiting)


def grids(scan: Scan, metric: str) -> Iterator[Grid]:
    """The pieces of ``scan`` (columns step, layer, depth and ``metric``) as grids; no step is in two of
    them.
    """
    held: pa.Table | None = None
    for piece in scan:
        table = piece if held is None else _one([held, piece])
        steps = table["step"].to_numpy()
        whole = int(np.searchsorted(steps, steps[-1]))  # the last step may go on in the next piece
        held = table.slice(whole)
        if whole:
            yield grid(table.slice(0, whole), metric)
    if held is not None and held.num_rows:
        yield grid(held, metric)


def measured(pieces: Iterable[Grid]) -> Iterator[Grid]:
    """``pieces`` without the steps at which no layer's value was taken; a piece without any other is left
    out.
    """
    for piece in pieces:
        taken = piece.present.any(axis=0)
        if taken.any():
            yield Grid(
                piece.layers,
                piece.depths,
                piece.steps[taken],
                piece.values[:, taken],
                piece.present[:, taken],
            )


def grid(table: pa.Table, metric: str) -> Grid:
    """The rows of some steps as one grid, layers in the order of their depth."""
    table = table.unify_dictionaries().combine_chunks()
    names = table["layer"].chunk(0)
    codes = names.indices.to_numpy()
    steps, depth = table["step"].to_numpy(), table["depth"].to_numpy()
    column = table[metric]
    values = column.to_numpy().astype(np.float32, copy=False)
    there = column.is_valid().to_numpy() if column.null_count else None
    used, first = np.unique(codes[: _period(codes)], return_index=True)
    count = len(used)
    if _regular(
        codes, steps, count
    ):  # every step has the same layers in the same order: no row needs to be looked up
        order = np.argsort(depth[:count], kind="stable")
        shown = values.reshape(-1, count).T[order]
        present = np.ones(shown.shape, bool) if there is None else there.reshape(-1, count).T[order]
        at, ids, depths = steps[::count], codes[:count][order], depth[:count][order]
    else:
        used, first = np.unique(codes, return_index=True)
        order = np.argsort(depth[first], kind="stable")
        ids, depths = used[order], depth[first][order]
        row = np.empty(int(used.max()) + 1, np.int64)
        row[ids] = np.arange(len(ids))
        at, place = np.unique(steps, return_inverse=True)
        if 8 * len(ids) * len(at) > READ_BYTES:
            raise RunTooLarge(
                f"{len(ids):,} layers at {len(at):,} steps, most of them without a row: a grid holds at most "
                f"{READ_BYTES // 8:,} values"
            )
        shown = np.full((len(ids), len(at)), np.nan, np.float32)
        present = np.zeros(shown.shape, bool)
        shown[row[codes], place] = values
        present[row[codes], place] = True if there is None else there
    words = names.dictionary.to_pylist()
    return Grid([words[code] for code in ids], depths, at, shown, present)


def _period(codes: np.ndarray) -> int:
    """Rows until the first row's layer comes again."""
    again = (
        np.flatnonzero(codes[1:] == codes[0])
        if len(codes) < 10_000
        else np.flatnonzero(codes[1:10_000] == codes[0])
    )
    return int(again[0]) + 1 if again.size else len(codes)


def _regular(codes: np.ndarray, steps: np.ndarray, count: int) -> bool:
    if len(codes) % count:
        return False
    table, when = codes.reshape(-1, count), steps.reshape(-1, count)
    return bool(
        (table == table[0]).all() and (when[:, 0] == when[:, -1]).all() and len(np.unique(table[0])) == count
    )


def _one(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
