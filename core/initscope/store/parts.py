"""Rows as parquet: numbered parts while a run is live, one compacted file a table at its end.

A part is written beside its name and renamed, so a reader never sees a torn file. ``MERGE_AT`` neighbours of
equal size become one, so their number grows as a logarithm. A compacted file says in its metadata up to which
part it holds the rows, so a crash between writing it and deleting those parts duplicates nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from initscope.errors import RunFolderError, RunTooLarge, one_line
from initscope.schema import TABLES
from initscope.store.files import replacing

MERGE_AT = 32
"""So many neighbouring parts of equal size become one."""
ROW_GROUP = 1_000_000
READ_BYTES = 2 << 30
"""No more than this is read into memory at once, as its footer tells before."""
MAX_LAYERS = 50_000
"""Names in a table; the largest networks have a few thousand weights."""

_ARROW = {
    "int32": pa.int32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.dictionary(pa.int32(), pa.string()),
}
SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema([(column.name, _ARROW[column.dtype]) for column in columns])
    for name, columns in TABLES.items()
}
_HOLDS = b"initscope.parts"
_KEYS = ("step", "epoch", "layer", "depth", "name")
"""Columns without which a row says nothing."""
_PART = re.compile(rf"({'|'.join(TABLES)})-(\d{{8}})-(\d{{8}})\.parquet")


def part_name(table: str, first: int, last: int) -> str:
    return f"{table}-{first:08d}-{last:08d}.parquet"


def parts(folder: Path, table: str) -> list[tuple[int, int, Path]]:
    """(first, last, path) of the parts of a table in order, without those that a merged part covers."""
    kept: list[tuple[int, int, Path]] = []
    for part in sorted(_listed(folder, table), key=lambda part: (part[0], -part[1])):
        if not kept or part[1] > kept[-1][1]:
            kept.append(part)
    return kept


def drop_parts(folder: Path, table: str, through: int) -> None:
    """Delete the parts whose rows are elsewhere: all up to number ``through``, those a merged part covers
    too.
    """
    for _, last, path in _listed(folder, table):
        if last <= through:
            path.unlink(missing_ok=True)


def _listed(folder: Path, table: str) -> list[tuple[int, int, Path]]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = [_PART.fullmatch(name) for name in names if name.startswith(table)]
    return [
        (int(match[2]), int(match[3]), folder / match[0]) for match in matches if match and match[1] == table
    ]


def holds_through(final: Path) -> int:
    """Number of the last part that a compacted file holds, -1 if there is no file."""
    if not final.exists():
        return -1
    try:
        return held(opened(final).schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunFolderError(
            f"{final.parent.name}/{final.name} cannot be read, the file is damaged: {one_line(str(error))}; "
            "put back a copy of it, or delete the run"
        ) from None


def held(schema: pa.Schema) -> int:
    """The same, from the file's schema."""
    return int((schema.metadata or {}).get(_HOLDS, b"-1"))


def opened(path: Path) -> pq.ParquetFile:
    """A parquet file whose pages are checked against their checksums: a flipped bit is an error, not a
    number.
    """
    if os.path.islink(path) or os.path.islink(path.parent):
        raise OSError(f"{path.name} is reached through a link")
    if not path.is_file():
        raise FileNotFoundError(path) if not path.exists() else OSError(f"{path.name} is not a regular file")
    return pq.ParquetFile(path, page_checksum_verification=True)


def rows_of(
    file: pq.ParquetFile,
    table: str,
    columns: Sequence[str] | None = None,
    group: int | None = None,
    first: int = 0,
) -> pa.Table:
    """The columns of ``table`` that are asked for, of the whole file, of one row group or of its ``first``
    rows, of the schema's types; a measurement that an older version did not make is null. Raises KeyError
    without the columns that say which row it is, pyarrow's errors if a type does not fit, RunTooLarge.
    """
    wanted = (
        SCHEMAS[table] if columns is None else pa.schema([SCHEMAS[table].field(name) for name in columns])
    )
    there = [name for name in wanted.names if name in file.schema_arrow.names]
    if len(there) < len(wanted) and (strange := set(file.schema_arrow.names) - set(SCHEMAS[table].names)):
        raise KeyError(
            f"a column is called {sorted(strange)[0]!r}"
        )  # damaged: an older version has fewer columns, not others
    if missing := [name for name in wanted.names if name not in there and name in _KEYS]:
        raise KeyError(f"it has no column {missing[0]}")
    refuse_what_is_too_large([file], wanted, group, first)
    if first:
        found = pa.Table.from_batches(
            [next(file.iter_batches(first, columns=there), pa.RecordBatch.from_pylist([], file.schema_arrow))]
        )
    else:
        found = file.read(columns=there) if group is None else file.read_row_group(group, columns=there)
    footer = file.metadata
    if not footer.num_rows == sum(footer.row_group(i).num_rows for i in range(footer.num_row_groups)) or (
        not first and len(found) != (footer.num_rows if group is None else footer.row_group(group).num_rows)
    ):
        raise ValueError("its parts do not add up to its rows")  # no checksum covers the footer
    made = [found[f.name].cast(f.type) if f.name in there else pa.nulls(len(found), f.type) for f in wanted]
    for column in made:
        chunked = isinstance(column, pa.ChunkedArray) and pa.types.is_dictionary(column.type)
        for chunk in column.chunks if chunked else ():
            if len(chunk.dictionary) > MAX_LAYERS:
                raise RunTooLarge(f"{len(chunk.dictionary):,} names, and at most {MAX_LAYERS:,} are read")
            chunk.dictionary.validate(full=True)  # names must be text
    return pa.table(made, schema=wanted)


def refuse_what_is_too_large(
    files: Sequence[pq.ParquetFile], wanted: pa.Schema, group: int | None = None, first: int = 0
) -> None:
    """Raise RunTooLarge where columns, of whole files, of one row group of each or of their ``first`` rows,
    would take more than READ_BYTES: a small file may hold very many equal rows, or very long names.

    Row groups alone are asked: pyarrow ends the process over the columns of a footer that is damaged.
    """
    rows = names = 0
    for file in files:
        groups = range(file.metadata.num_row_groups) if group is None else (group,)
        for found in (file.metadata.row_group(i) for i in groups):
            rows += min(found.num_rows, first or found.num_rows)
            names += max(0, found.total_byte_size - found.num_rows * 8 * found.num_columns)
            if first:
                break
    needed = rows * _width(wanted) + names
    if needed > READ_BYTES:
        raise RunTooLarge(
            f"{rows:,} rows would take {needed / 1e9:.1f} GB of memory, and at most {READ_BYTES / 1e9:.1f} "
            "GB are read at once"
        )


def _width(schema: pa.Schema) -> int:
    """Bytes of a row without its names."""
    return sum(4 if pa.types.is_dictionary(field.type) else field.type.bit_width // 8 for field in schema)


def concatenate(
    sources: Sequence[Path],
    target: Path,
    holds: int = -1,
    schema: pa.Schema | None = None,
    durable: bool = False,
) -> None:
    """Stream ``sources`` into ``target``, row group by row group, so that memory stays bounded."""
    schema = (schema or pq.read_schema(sources[0])).with_metadata({_HOLDS: str(holds).encode()})
    with (
        replacing(target, durable) as temporary,
        pq.ParquetWriter(temporary, schema, **_format(schema)) as writer,
    ):
        waiting: list[pa.Table] = []
        for batch in _batches(sources):
            waiting.append(batch)
            if sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(_joined(waiting, schema))
                waiting = []
        if waiting:
            writer.write_table(_joined(waiting, schema))


def _batches(sources: Iterable[Path]) -> Iterator[pa.Table]:
    for source in sources:
        file = opened(source)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    bare = [table.replace_schema_metadata(None) for table in tables]
    return (
        pa.concat_tables(bare).unify_dictionaries().combine_chunks().replace_schema_metadata(schema.metadata)
    )


def write_table(table: pa.Table, path: Path, holds: int = -1, durable: bool = False) -> None:
    """Write a parquet file whole or not at all."""
    table = table.replace_schema_metadata({_HOLDS: str(holds).encode()})
    with replacing(path, durable) as temporary:
        pq.write_table(table, temporary, **_format(table.schema))


def _format(schema: pa.Schema) -> dict[str, Any]:
    """Encodings by type: dictionary for names, DELTA for counters, BYTE_STREAM_SPLIT for floats, all under
    zstd.
    """
    encodings, names = {}, []
    for field in schema:
        if pa.types.is_dictionary(field.type):
            names.append(field.name)
        elif pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        else:
            encodings[field.name] = "DELTA_BINARY_PACKED"
    return {
        "compression": "zstd",
        "use_dictionary": names,
        "column_encoding": encodings,
        "write_page_checksum": True,
    }
