"""Questions over all runs in SQL: DuckDB reads the views ``runs``, ``steps``, ``epochs`` and ``layers``, and can reach nothing else.

DuckDB opens no file at all: Arrow hands it the rows of the folders' own parquet files, those columns and runs that a question
needs. One SELECT a question, in bounded memory and time; no extension, no setting, no file can be named in it.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pds

from initscope.config.run_config import OPTIONS
from initscope.errors import QueryError, RunFolderError, choose_from
from initscope.store.bucket.folder import look
from initscope.store.files import number
from initscope.store.parts import SCHEMAS, holds_through, parts
from initscope.store.run import RunInfo

if TYPE_CHECKING:
    import duckdb

    from initscope.store import Runs

SECONDS = 60.0
MEMORY = "512MB"
ROWS = 10_000
"""More rows of an answer are cut off, and the answer says so."""
ATTEMPTS = 5
_FROM_ARROW = " failed: "
"""Where DuckDB's message on a stream that broke goes over into Arrow's."""


@dataclass(frozen=True)
class Recipe:
    """A question that is asked often."""

    title: str
    sql: str


RECIPES = {
    "rates": Recipe(
        "Rate by initialization",
        """SELECT init, count(*) FILTER (outcome = 'converged') AS converged, count(*) AS of_runs, converged / of_runs AS rate
FROM runs WHERE outcome IN ('converged', 'not_converged', 'diverged')
GROUP BY init ORDER BY rate DESC, of_runs DESC, init""",
    ),
    "worst": Recipe(
        "Worst layer by run",
        """WITH final AS (SELECT run, max(step) AS step FROM layers GROUP BY run)
SELECT run, step, arg_min(layer, grad_rms) AS layer, min(grad_rms) AS grad_rms, arg_min(signal_std, grad_rms) AS signal_std
FROM layers JOIN final USING (run, step)
GROUP BY run, step ORDER BY grad_rms, run LIMIT 1000""",
    ),
    "slowest": Recipe(
        "Slowest runs",
        """SELECT run, name, model, seconds, 1000 * seconds / step AS ms_per_step
FROM runs WHERE seconds > 0 AND step > 0
ORDER BY seconds DESC LIMIT 20""",
    ),
}

_STATE = {
    "step": pa.int64(), "total_steps": pa.int64(), "epoch": pa.int64(), "seconds": pa.float64(), "images_per_second": pa.float64(),
    "train_loss": pa.float64(), "train_accuracy": pa.float64(), "val_loss": pa.float64(), "val_accuracy": pa.float64(),
    "chance": pa.float64(), "parameters": pa.int64(), "host": pa.string(),
    "created": pa.timestamp("us"), "started": pa.timestamp("us"), "ended": pa.timestamp("us"),
}  # fmt: skip
_KIND = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string(), tuple: pa.list_(pa.string())}
RUNS = pa.schema(
    [("run", pa.string()), ("name", pa.string()), ("status", pa.string()), ("outcome", pa.string()), ("loss", pa.float64()), ("accuracy", pa.float64()),
     *_STATE.items(), ("error", pa.string()), ("tags", pa.list_(pa.string())),
     *((key, _KIND[option.kind]) for key, option in OPTIONS.items() if key not in ("name", "tags"))]
)  # fmt: skip
"""``runs``: what the list shows, what ``status.json`` says, and every field of the configuration. Times are UTC."""
VIEWS: dict[str, pa.Schema] = {"runs": RUNS} | {
    name: pa.schema([("run", pa.string()), *((f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema)])
    for name, schema in SCHEMAS.items()
}


@dataclass(frozen=True)
class Answer:
    """What a question gave. ``cut``: there are more rows than ``rows`` has."""

    rows: pa.Table
    cut: bool


def described() -> str:
    """The views with their columns, on one line."""
    return "; ".join(f"{name}({', '.join(schema.names)})" for name, schema in VIEWS.items())


def query(runs: Runs, sql: str, seconds: float = SECONDS, most: int = ROWS) -> Answer:
    """The answer to one SELECT over all runs, or to the recipe of that name; its first ``most`` rows.

    Raises QueryError for SQL that is wrong, more than one SELECT, or beyond the bounds; RunFolderError for a damaged file.
    """
    text = sql.strip()
    if text in RECIPES:
        text = RECIPES[text].sql
    elif text.isidentifier():
        raise QueryError(f"{choose_from('recipe', text, RECIPES)}; or a SELECT over {described()}")
    for _ in range(ATTEMPTS):
        try:
            return _ask(runs, text, seconds, most)
        except FileNotFoundError:  # a live run's parts became one, or a run was deleted: look again
            continue
    raise RunFolderError("the runs keep changing while they are read; ask again")


def _ask(runs: Runs, text: str, seconds: float, most: int) -> Answer:
    database = _database()
    import duckdb

    alarm = threading.Timer(seconds, database.interrupt)
    try:
        statements = database.extract_statements(text)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError(f"one SELECT is answered, nothing else; the views are {described()}")
        infos = runs.list()
        for name in VIEWS:
            if name in text.lower():  # the others cost a look into every folder
                database.register(name, _table(infos) if name == "runs" else _rows(runs, infos, name))
        alarm.start()
        return _cut(database.sql(text).to_arrow_reader(1024), most)
    except duckdb.InterruptException:
        raise QueryError(f"no answer within {seconds:g} seconds; ask for fewer runs or columns, such as WHERE run = '...'") from None
    except duckdb.OutOfMemoryException:
        raise QueryError(f"the answer needs more than {MEMORY} of memory; ask for fewer runs or columns") from None
    except (duckdb.Error, pa.ArrowException) as error:
        if "No such file" in str(error):
            raise FileNotFoundError from None
        what, _, more = str(error).partition("\n")
        said = (f"{what} {more.splitlines()[0]}" if more.startswith("Candidate bindings") else what).replace(f"{runs.root.absolute()}/", "")[:300]
        if isinstance(error, pa.ArrowException) or _FROM_ARROW in said:
            raise RunFolderError(f"the rows of a run cannot be read: {said.rpartition(_FROM_ARROW)[2]}; the list of runs may say which") from None
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
    off = ("autoinstall_known_extensions", "autoload_known_extensions", "allow_community_extensions", "allow_persistent_secrets")
    settings = {"memory_limit": MEMORY, "threads": 2, "temp_directory": "", "secret_directory": "none", **dict.fromkeys(off, False)}
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
    names = [name if name not in found.column_names[:i] else f"{name}_{i}" for i, name in enumerate(found.column_names)]
    return Answer(found.rename_columns(names).slice(0, most), len(found) > most)


def _table(infos: Iterable[RunInfo]) -> pa.Table:
    """The view ``runs``. A value that a foreign folder has of another kind than ours is null."""
    rows = []
    for info in infos:
        values = {**info.config, **{key: info.state.get(key) for key in _STATE}}
        values |= {key: getattr(info, key) for key in ("run", "name", "status", "outcome", "loss", "accuracy", "error")} | {"tags": list(info.tags)}
        rows.append(values)
    return pa.table([pa.array([_value(row.get(f.name), f.type) for row in rows], f.type) for f in RUNS], schema=RUNS)


def _value(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind):
        return dt.datetime.fromtimestamp(value, dt.UTC).replace(tzinfo=None) if number(value) is not None else None
    wanted = {pa.int64(): int, pa.float64(): (int, float), pa.bool_(): bool, pa.string(): str}.get(kind, (list, tuple))
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != pa.bool_()):
        return None
    return value if not isinstance(value, str) else value.encode("utf-8", "replace").decode()


def _rows(runs: Runs, infos: Iterable[RunInfo], table: str) -> pds.Dataset | pa.Table:
    """The rows of a table of all runs, with the run they belong to; nothing is opened before DuckDB asks for it."""
    schema, root = VIEWS[table], runs.root.absolute()
    files: list[str] = []
    for info in infos:
        folder = root / info.run
        if runs.shared:
            look(folder)  # what another machine has of it
        live = parts(folder / "parts", table)  # before the compacted file, as every reader does
        final = folder / f"{table}.parquet"
        if final.is_file():
            files.append(str(final))
        if live:
            through = holds_through(final)
            files += [str(path) for _, last, path in live if last > through]
    if not files:
        return schema.empty_table()
    checked = pds.ParquetFileFormat(default_fragment_scan_options=pds.ParquetFragmentScanOptions(page_checksum_verification=True))
    folders = pds.DirectoryPartitioning(pa.schema([schema.field("run")]))
    return pds.dataset(files, schema, format=checked, partitioning=folders, partition_base_dir=str(root))
