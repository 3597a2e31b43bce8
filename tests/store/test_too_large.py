"""Tables that arrive from elsewhere: small files of very many rows, links, more names than a network has."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from initscope.errors import RunFolderError
from initscope.schema import Status
from initscope.store import Run, Runs, files, parts
from initscope.store.parts import MAX_LAYERS, SCHEMAS


@pytest.fixture
def arrived(runs: Runs, tiny) -> Run:
    return runs.create(tiny(), Status.FINISHED)


def rows(count: int, layers: pa.Array | None = None, steps: pa.Array | None = None) -> pa.Table:
    """Rows of ``layers`` that say nothing, all of one step and layer unless told."""
    made = []
    for field in SCHEMAS["layers"]:
        if field.name == "layer" and layers is not None:
            made.append(layers.dictionary_encode().cast(field.type))
        elif field.name == "step" and steps is not None:
            made.append(steps.cast(field.type))
        elif pa.types.is_dictionary(field.type):
            made.append(pa.array(["conv1"] * count).dictionary_encode().cast(field.type))
        else:
            made.append(pa.nulls(count, field.type).fill_null(1))
    return pa.table(made, schema=SCHEMAS["layers"])


def test_a_small_file_of_very_many_rows_is_refused_before_it_is_read(arrived: Run) -> None:
    piece, path = rows(1_000_000), arrived.path / "layers.parquet"
    with pq.ParquetWriter(path, SCHEMAS["layers"], compression="zstd") as writer:
        for _ in range(40):
            writer.write_table(piece)
    del piece
    assert path.stat().st_size < 10_000_000
    before, began = psutil.Process().memory_info().rss, time.process_time()
    for look in (lambda: arrived.read("layers"), lambda: arrived.tail("layers")):
        with pytest.raises(RunFolderError, match=r"40,000,000 rows would take .* GB of memory") as caught:
            look()
        assert "damaged" not in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert psutil.Process().memory_info().rss - before < 100e6 and time.process_time() - began < 5
    assert arrived.count("layers") == 40_000_000, "what needs no rows goes on"
    assert len(arrived.read("layers", ["step"])) == 40_000_000, "nor do few columns need so much"
    assert len(next(iter(arrived.scan("layers", ("step", "grad_norm"))))) >= 1_000_000, (
        "in pieces, any length"
    )


def test_a_row_group_that_is_too_large_is_refused(arrived: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(rows(1_000_000), arrived.path / "layers.parquet")
    monkeypatch.setattr(parts, "READ_BYTES", 5_000_000)
    with pytest.raises(RunFolderError, match="1,000,000 rows would take"):
        list(arrived.scan("layers", ("step", "grad_norm")))
    assert len(arrived.head("layers")), "a few rows are"


def test_more_names_than_a_network_has(arrived: Run) -> None:
    names = pa.array([f"layer {i}" for i in range(MAX_LAYERS + 1)])
    pq.write_table(rows(len(names), names), arrived.path / "layers.parquet")
    for look in (
        lambda: arrived.read("layers"),
        lambda: arrived.head("layers"),
        lambda: list(arrived.grids("grad_norm")),
    ):
        with pytest.raises(RunFolderError, match="50,001 names, and at most 50,000 are read"):
            look()


def test_a_grid_that_is_nearly_empty(arrived: Run) -> None:
    count = 40_000
    names = pa.array([f"layer {i}" for i in range(count)])
    pq.write_table(rows(count, names, pa.array(range(count))), arrived.path / "layers.parquet")
    assert len(arrived.read("layers")) == count
    with pytest.raises(RunFolderError, match="39,999 layers at 39,999 steps"):
        list(arrived.grids("grad_norm"))


@pytest.mark.parametrize("what", ["table", "part", "folder of parts"])
def test_rows_are_not_read_through_a_link(arrived: Run, tmp_path: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere" / "layers-00000000-00000000.parquet"
    elsewhere.parent.mkdir()
    pq.write_table(rows(3), elsewhere)
    folder = arrived.path / "parts"
    if what == "table":
        os.symlink(elsewhere, arrived.path / "layers.parquet")
    elif what == "part":
        folder.mkdir(exist_ok=True)
        os.symlink(elsewhere, folder / elsewhere.name)
    else:
        if folder.exists():
            folder.rmdir()
        os.symlink(elsewhere.parent, folder)
    with pytest.raises(RunFolderError, match="through a link"):
        arrived.read("layers")


def test_a_status_larger_than_ours_can_be(arrived: Run, runs: Runs) -> None:
    (arrived.path / "status.json").write_bytes(
        b'{"status": "finished", "x": "' + b"y" * files.LARGEST + b'"}'
    )
    began = time.process_time()
    (info,) = runs.list()
    assert info.status == "unreadable" and "larger than a file of ours" in info.error
    assert time.process_time() - began < 5
