"""A run in other tools' formats: CSV files, one JSON file, TensorBoard events.

What was not measured (null on disk) is an empty cell in CSV, ``null`` in JSON and no point in TensorBoard. A
measured NaN or infinity stays what it is: ``nan``, ``inf``, ``-inf`` in CSV and TensorBoard, the same words
as strings in JSON, which has no such numbers.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from initscope.errors import ConfigError, RunFolderError, choose_from
from initscope.schema import LAYER_METRICS, OPTIONAL_TABLES, TABLES
from initscope.store import Run, write_json
from initscope.store.files import number


def export(run: Run, form: str, output: str | Path) -> Path:
    """Write ``run`` as ``form`` to ``output``: a folder of three files for ``csv``, a file for ``json``, a
    log folder for ``tensorboard``.

    Whole or not at all. Raises ConfigError if ``output`` exists or the format is unknown, RunFolderError if
    nothing can be written there.
    """
    if form not in FORMATS:
        raise ConfigError(choose_from("format", form, FORMATS))
    output = Path(output).expanduser()
    if os.path.lexists(output):
        raise ConfigError(f"{output} exists already; choose another --output")
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        FORMATS[form](run, temporary)
        os.rename(temporary, output)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {output}: {error.strerror or error}; free space, or choose another --output"
        ) from None
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary)
        elif os.path.exists(temporary):
            temporary.unlink()
    return output


def csv_text(words: str) -> str:
    """A cell that no spreadsheet takes for a formula: names may come from a stranger."""
    return f"'{words}" if words.startswith(("=", "+", "-", "@", "\t", "\r")) else words


def to_csv(run: Run, folder: Path) -> None:
    """``steps.csv``, ``epochs.csv`` and ``layers.csv``, and ``metrics.csv`` if there are any, columns as in
    ``initscope.schema``.
    """
    folder.mkdir()
    for name, table in _tables(run).items():
        plain = pa.table({column: _for_csv(table[column]) for column in table.column_names})
        pa.csv.write_csv(plain, folder / f"{name}.csv")


def to_json(run: Run, path: Path) -> None:
    """One object: run, config, status, and each table as {column: values}."""
    tables = {
        name: {column: _plain(table[column]).to_pylist() for column in table.column_names}
        for name, table in _tables(run).items()
    }
    write_json(path, {"run": run.id, "config": run.json_file("config.json"), "status": run.state(), **tables})


def to_tensorboard(run: Run, folder: Path) -> None:
    """Scalars ``steps/loss`` …, ``epochs/val_loss`` …, and for each layer ``grad_norm/conv1_1`` …, each at
    its step.

    A row of ``epochs`` stands at the last step of its epoch. Time is the run's start plus the training time.
    """
    try:
        import tensorboard  # noqa: F401  (torch's own message on its absence names no remedy)
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("TensorBoard's package is not installed: pip install tensorboard") from None
    state = run.state()
    began = number(state.get("started")) or number(state.get("created")) or 0.0
    steps = run.read("steps").to_pylist()
    seconds = {row["step"]: row["seconds"] or 0.0 for row in steps}
    last_of = {row["epoch"]: row["step"] for row in steps}
    with SummaryWriter(str(folder), max_queue=10_000) as writer:

        def add(tag: str, value: float | None, step: int) -> None:
            if value is not None:
                writer.add_scalar(tag, value, step, walltime=began + seconds.get(step, 0.0))

        for row in steps:
            for name in ("loss", "accuracy", "learning_rate"):
                # A loop that told no accuracy left NaN: nothing was measured.
                add(
                    f"steps/{name}",
                    None if name != "loss" and row[name] != row[name] else row[name],
                    row["step"],
                )
        for row in run.read("epochs").to_pylist():
            for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
                add(f"epochs/{name}", row[name], last_of.get(row["epoch"], row["epoch"]))
        for row in run.read("metrics").to_pylist():
            add(f"metrics/{row['name']}", row["value"], row["step"])
        for row in run.read("layers").to_pylist():
            for name in LAYER_METRICS:
                add(f"{name}/{row['layer']}", row[name], row["step"])


def _tables(run: Run) -> dict[str, pa.Table]:
    found = {name: run.read(name) for name in TABLES}
    return {name: table for name, table in found.items() if table.num_rows or name not in OPTIONAL_TABLES}


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary encoding, which neither CSV nor JSON knows."""
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _for_csv(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_dictionary(column.type):
        return column
    return pa.chunked_array(
        [
            pa.DictionaryArray.from_arrays(
                chunk.indices, [csv_text(name) for name in chunk.dictionary.to_pylist()]
            ).cast(pa.string())
            for chunk in column.chunks
        ],
        pa.string(),
    )


FORMATS: dict[str, Callable[[Run, Path], None]] = {
    "csv": to_csv,
    "json": to_json,
    "tensorboard": to_tensorboard,
}
