"""The process that answers one question: DuckDB over the rows of a folder of runs, under limits of the
operating system.

It is forked from one that has DuckDB loaded. It reads a question (JSON) from its line and says "ready" once
it has the list of runs; then one line of JSON, ``cut`` or ``error`` with its message, and the rows as an
Arrow stream. DuckDB opens no file at all: Arrow hands it the rows of the folders' own parquet files, those
columns and runs that a question needs. No extension, no setting, no file can be named in a question.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pds

from initscope.errors import InitScopeError, QueryError, RunFolderError
from initscope.store import Runs
from initscope.store.files import number
from initscope.store.parts import holds_through, parts
from initscope.store.query import (
    MEMORY,
    MOVED,
    READY,
    RUNS,
    STATE,
    VIEWS,
    Answer,
    described,
    too_large,
    too_slow,
)
from initscope.store.run import RunInfo

if TYPE_CHECKING:
    import duckdb

THREADS = 2
HEADROOM = 1_000_000_000
"""Bytes of address space beyond what the process has when it is ready: DuckDB's memory, twice, for the answer
is there once more as Arrow.
"""
NICENESS = 10
"""Whoever looks at a page goes before whoever asks."""
LOOK_MILLISECONDS = 50
_FROM_ARROW = " failed: "
"""Where DuckDB's message on a stream that broke goes over into Arrow's."""


def serve(channel: socket.socket) -> None:
    """Fork a process for each line that comes through ``channel``; end it when its line is closed, and all of
    them with the channel.
    """
    with contextlib.suppress(ImportError):
        import duckdb  # noqa: F401  (loaded once, before the first fork; a question says that it is missing)
    gc.freeze()
    os.nice(NICENESS)
    children: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        for handle, _ in poll.poll(LOOK_MILLISECONDS if children else None):
            if handle in children:  # registered for nothing: only the end of a line wakes us
                os.kill(children[handle][0], signal.SIGKILL)
                continue
            data, numbers, _, _ = socket.recv_fds(channel, 1, 1)
            if not data:
                for pid, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                return
            line = socket.socket(fileno=numbers[0])
            if (pid := os.fork()) == 0:
                try:
                    for other in (channel, *(there for _, there in children.values())):
                        other.close()
                    answer(line)
                finally:
                    os._exit(1)  # no thread of DuckDB's is waited for
            children[line.fileno()] = pid, line
            poll.register(line, 0)
        for handle, (pid, line) in list(children.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                poll.unregister(line)
                with contextlib.suppress(
                    OSError
                ):  # whoever waits is told by this, if the process did not live to
                    line.shutdown(socket.SHUT_RDWR)
                line.close()
                del children[handle]


def answer(line: socket.socket) -> None:
    """Read the question, answer it on the same line."""
    with line.makefile("rwb") as file:
        asked = json.loads(file.read())

        def confine() -> None:
            file.write(READY)
            file.flush()
            limit(asked["seconds"])

        try:
            found = ask(Runs(asked["root"]), asked["sql"], asked["seconds"], asked["most"], confine)
            if found.rows.nbytes > asked["most_bytes"]:
                raise QueryError(
                    f"the answer takes {found.rows.nbytes / 1e6:,.0f} MB of at most "
                    f"{asked['most_bytes'] / 1e6:,.0f}; ask for fewer rows or columns"
                )
            file.write(json.dumps({"cut": found.cut}).encode() + b"\n")
            with pa.ipc.new_stream(file, found.rows.schema) as stream:
                stream.write_table(found.rows)
        except FileNotFoundError:
            file.write(json.dumps({MOVED: True}).encode())
        except InitScopeError as error:
            file.write(json.dumps({"error": type(error).__name__, "message": str(error)}).encode())
        except MemoryError:  # Arrow's own is one too
            file.write(json.dumps({"error": "QueryError", "message": str(too_large())}).encode())
    line.shutdown(socket.SHUT_RDWR)


def limit(seconds: float) -> None:
    """From now on: so much memory and processor time, and no file written."""
    limits = {
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: math.ceil(THREADS * seconds) + 5,
    }
    with contextlib.suppress(OSError, ValueError):  # not Linux: DuckDB's own bound, and the deadline
        limits[resource.RLIMIT_AS] = (
            int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + HEADROOM
        )
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def ask(runs: Runs, text: str, seconds: float, most: int, ready: Callable[[], None] = lambda: None) -> Answer:
    """The answer, within this process. ``ready`` is called before a word of the question is read. Raises as
    ``query`` does, and FileNotFoundError if a file went away meanwhile.
    """
    infos = runs.list()
    database = _database()
    import duckdb

    alarm = threading.Timer(seconds, database.interrupt)
    alarm.daemon = True
    ready()
    try:
        alarm.start()
        statements = database.extract_statements(text)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError(f"one SELECT is answered, nothing else; the views are {described()}")
        for name in VIEWS:
            if name in text.lower():  # the others cost a look into every folder
                database.register(name, _table(infos) if name == "runs" else _rows(runs, infos, name))
        return _cut(database.sql(text).to_arrow_reader(1024), most)
    except duckdb.InterruptException:
        raise too_slow(seconds) from None
    except duckdb.OutOfMemoryException:
        raise too_large() from None
    except (duckdb.Error, pa.ArrowException) as error:
        if "No such file" in str(error):
            raise FileNotFoundError from None
        what, _, more = str(error).partition("\n")
        said = (f"{what} {more.splitlines()[0]}" if more.startswith("Candidate bindings") else what).replace(
            f"{runs.root.absolute()}/", ""
        )[:300]
        if isinstance(error, pa.ArrowException) or _FROM_ARROW in said:
            raise RunFolderError(
                f"the rows of a run cannot be read: {said.rpartition(_FROM_ARROW)[2]}; the list of runs may "
                "say which"
            ) from None
        raise QueryError(f"{said}; the views are {described()}") from None
    finally:
        alarm.cancel()
        database.close()


def _database() -> duckdb.DuckDBPyConnection:
    """An empty database in memory that can reach no file, no network and no variable of this program."""
    try:
        import duckdb
    except ImportError:
        raise QueryError("a query needs DuckDB, which is not installed: pip install duckdb") from None
    off = (
        "autoinstall_known_extensions",
        "autoload_known_extensions",
        "allow_community_extensions",
        "allow_persistent_secrets",
    )
    settings: dict[str, Any] = {
        "memory_limit": MEMORY,
        "threads": THREADS,
        "temp_directory": "",
        "secret_directory": "none",
        **dict.fromkeys(off, False),
    }
    database = duckdb.connect(":memory:", config={**settings, "python_enable_replacements": False})
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _cut(reader: pa.RecordBatchReader, most: int) -> Answer:
    batches: list[pa.RecordBatch] = []
    for batch in reader:
        batches.append(batch)
        if sum(map(len, batches)) > most:
            break
    found = pa.Table.from_batches(batches, reader.schema)
    names = [
        name if name not in found.column_names[:i] else f"{name}_{i}"
        for i, name in enumerate(found.column_names)
    ]
    return Answer(found.rename_columns(names).slice(0, most), len(found) > most)


def _table(infos: Iterable[RunInfo]) -> pa.Table:
    """The view ``runs``. A value that a foreign folder has of another kind than ours is null."""
    rows = []
    for info in infos:
        values = {**info.config, **{key: info.state.get(key) for key in STATE}}
        values |= {
            key: getattr(info, key)
            for key in ("run", "name", "status", "outcome", "loss", "accuracy", "error")
        } | {"tags": list(info.tags)}
        rows.append(values)
    return pa.table(
        [pa.array([_value(row.get(f.name), f.type) for row in rows], f.type) for f in RUNS], schema=RUNS
    )


def _value(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind):
        return (
            dt.datetime.fromtimestamp(value, dt.UTC).replace(tzinfo=None)
            if number(value) is not None
            else None
        )
    wanted: Any = {pa.int64(): int, pa.float64(): (int, float), pa.bool_(): bool, pa.string(): str}.get(
        kind, (list, tuple)
    )
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != pa.bool_()):
        return None
    return value if not isinstance(value, str) else value.encode("utf-8", "replace").decode()


def _rows(runs: Runs, infos: Iterable[RunInfo], table: str) -> pds.Dataset | pa.Table:
    """The rows of a table of all runs, with the run they belong to; nothing is opened before DuckDB asks for
    it.
    """
    schema, root = VIEWS[table], runs.root.absolute()
    files: list[str] = []
    for info in infos:
        folder = root / info.run
        live = parts(folder / "parts", table)  # before the compacted file, as every reader does
        final = folder / f"{table}.parquet"
        if final.is_file() and not final.is_symlink():
            files.append(str(final))
        if live and not (folder / "parts").is_symlink():
            through = holds_through(final)
            files += [str(path) for _, last, path in live if last > through and not path.is_symlink()]
    if not files:
        return schema.empty_table()
    checked = pds.ParquetFileFormat(
        default_fragment_scan_options=pds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )
    folders = pds.DirectoryPartitioning(pa.schema([schema.field("run")]))
    return pds.dataset(files, schema, format=checked, partitioning=folders, partition_base_dir=str(root))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
