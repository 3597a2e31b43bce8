"""SQL over all runs: the answers are what the readers say, and nothing but the runs can be reached with
it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pytest

from initscope.errors import QueryError, RunFolderError
from initscope.schema import Status
from initscope.store import Runs, RunWriter, own_process
from initscope.store.query import RECIPES, query
from tests.store.test_store import write_step


def recorded(runs: Runs, run_id: str, steps: int, compact: bool = True, **config: object):
    """A run with ``steps`` steps of rows; live, in parts, unless ``compact``."""
    run = runs.create(
        {"init": "default", "model": "vgg16", **config}, Status.RUNNING, run_id=run_id, **own_process()
    )
    writer = RunWriter(run)
    for step in range(steps):
        write_step(writer, step)
        if step % 7 == 0:
            writer.flush()
    writer.flush()
    if compact:
        writer.compact()
        writer.update(
            status="finished",
            outcome="converged",
            step=steps,
            seconds=steps / 10,
            loss=math.nan,
            ended=time.time(),
        )
    return run


def rows(runs: Runs, sql: str) -> list[tuple]:
    return [tuple(row.values()) for row in query(runs, sql).rows.to_pylist()]


def test_answers_are_what_the_readers_say(runs):
    made = {
        f"run-{n}": recorded(runs, f"run-{n}", 40 * (n + 1), compact=n != 2, init_seed=n, tags=["x", "y"])
        for n in range(3)
    }
    # A compaction that did not live to delete its parts: they are not counted twice.
    copy = shutil.copytree(made["run-2"].path, runs.root.parent / "parts-of-a-run")
    RunWriter(made["run-2"]).compact()
    shutil.copytree(copy / "parts", made["run-2"].path / "parts", dirs_exist_ok=True)
    for table in ("steps", "epochs", "layers"):
        counted = dict(rows(runs, f"SELECT run, count(*) FROM {table} GROUP BY run"))
        assert counted == {run_id: run.count(table) for run_id, run in made.items()}
    sums = dict(
        rows(runs, "SELECT run, sum(grad_norm) FROM layers WHERE layer = 'conv1_1' AND step > 5 GROUP BY run")
    )
    for run_id, run in made.items():
        table = run.read("layers")
        wanted = table.filter(
            pc.and_(pc.equal(table["layer"].cast("string"), "conv1_1"), pc.greater(table["step"], 5))
        )
        assert sums[run_id] == pytest.approx(pc.sum(wanted["grad_norm"]).as_py())
    assert rows(
        runs,
        "SELECT run, status, init_seed, tags, isnan(loss), started IS NULL FROM runs ORDER BY run LIMIT 1",
    ) == [("run-0", "finished", 0, ["x", "y"], True, True)]
    assert rows(runs, "SELECT count(*) FROM runs WHERE loss > 5") == [
        (2,)
    ]  # NaN is larger than any number, in every view
    odd = RunWriter(made["run-0"])
    for step, loss in ((900, math.nan), (901, math.inf), (902, 1.0)):
        odd.step(step, 0, loss, 0.1, 1e-3, 1.0)
    odd.flush()
    assert rows(runs, "SELECT step FROM steps WHERE loss > 5 ORDER BY step") == [(900,), (901,)]
    assert rows(runs, "SELECT a.run FROM RUNS a JOIN steps s USING (run) WHERE s.step = 100") == [("run-2",)]
    assert rows(runs, "rates") == [("default", 2, 2, 1.0)]
    assert {row[0]: row[2] for row in rows(runs, "worst")} == dict.fromkeys(made, "conv1_1")
    assert [row[0] for row in rows(runs, "slowest")] == ["run-1", "run-0"]
    assert query(runs, "SELECT 1 AS a, 2 AS a").rows.column_names == ["a", "a_1"]


def test_an_empty_folder_answers_too(runs):
    for name in RECIPES:
        assert rows(runs, name) == []


def test_nothing_else_can_be_reached(runs, tmp_path, monkeypatch):
    run = recorded(runs, "run-0", 20)
    secret = tmp_path / "secret.csv"
    secret.write_text("password\nhunter2\n")
    parquet = run.path / "steps.parquet"
    before = parquet.read_bytes()
    for sql in [
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM read_text('{secret}')",
        f"SELECT * FROM read_blob('{run.path}/log.txt')",
        f"SELECT * FROM read_parquet('{parquet}')",
        f"SELECT * FROM glob('{tmp_path}/*')",
        "SELECT * FROM secret",
        "SELECT * FROM made",
        "SELECT getenv('HOME')",
        f"COPY (SELECT 1) TO '{parquet}'",
        f"COPY runs TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/new.db'",
        f"EXPORT DATABASE '{tmp_path}/all'",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{parquet}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '100GB'",
        "SET enable_external_access = true",
        "DROP VIEW runs",
        "CREATE TABLE t AS SELECT 1",
        "PRAGMA threads = 64",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY (SELECT 1) TO 'x'",
        "",
        "-- nothing",
        "hunter2",
        "SELECT ((((",
        "SELECT no_such_column FROM runs",
        "SELECT CAST('a' AS INT) FROM runs",
    ]:
        made = sql  # noqa: F841  (a variable of this program with a name that SQL could take)
        with pytest.raises(QueryError) as told:
            query(runs, sql)
        message = str(told.value)
        assert "\n" not in message and (str(tmp_path) not in message or str(tmp_path) in sql), (
            sql
        )  # no path but what was asked for
        assert "runs(run, name, status" in message and "layers(run, step" in message, message
    with pytest.raises(QueryError, match=r'"inti" not found.* Candidate bindings: "init"'):
        query(runs, "SELECT inti FROM runs")
    for sql in (
        "SELECT * FROM duckdb_secrets()",
        "SELECT name, value FROM duckdb_settings()",
    ):  # what may be seen names no folder of this machine
        assert not [
            row
            for row in rows(runs, sql)
            if any(str(folder) in str(row) for folder in (Path.home(), tmp_path))
        ]
    assert parquet.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == [
        "runs",
        "secret.csv",
    ]


def test_memory_time_and_rows_are_bounded(runs):
    recorded(runs, "run-0", 20)
    with pytest.raises(QueryError, match="no answer within 0"):
        query(
            runs,
            "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range = 7",
            seconds=0.2,
        )
    with pytest.raises(QueryError, match="512MB of memory"):
        query(runs, "SELECT list(repeat('x', 1000000) || range) FROM range(5000)")
    with pytest.raises(QueryError, match="the answer takes 2 MB of at most 1;"):
        query(runs, "SELECT repeat('x', 2000000)", most_bytes=1_000_000)
    endless = query(runs, "SELECT range FROM range(1000000000000)")
    assert (endless.rows.num_rows, endless.cut) == (10_000, True)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "SELECT length(lpad('a', 2000000000, 'b'))",
            "512MB of memory|no answer within",
        ),  # in one call of a function, where DuckDB looks at no bound
        (
            "SELECT sum(length(lpad('a', 300000000 + range::INT, 'b'))) FROM range(1000)",
            "no answer within|512MB of memory",
        ),
        (
            "SELECT count(*) FROM range(10000000) WHERE regexp_matches(repeat('a', 3000) || range, "
            "'(a*)*(a*)*(a*)*b')",
            "no answer within|512MB of memory",
        ),
        ("SELECT " + "(" * 9_000 + "1" + ")" * 9_000, "views are|512MB of memory|no answer within"),
        (
            "SELECT " + "(" * 490_000 + "1" + ")" * 490_000,
            "a question may have 20,000 characters, not 980,008",
        ),
    ],
)
def test_no_question_outlives_its_bounds(runs, sql, said):
    """In memory and time of this process or any other: measured on the processes that answer, and ended by
    force if need be.
    """
    query(runs, "SELECT 1")  # what answers is loaded
    [server] = [
        child for child in psutil.Process().children() if "initscope.store.query_process" in child.cmdline()
    ]
    before, most, done = psutil.Process().memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for child in server.children():
                with contextlib.suppress(psutil.Error):
                    most[0] = max(most[0], child.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        with pytest.raises(QueryError, match=said):
            query(runs, sql, seconds=3.0)
    finally:
        done.set()
        watcher.join()
    assert time.monotonic() - began < 3.0 + 1.0 + 8, (
        "its seconds, a second of grace, and what a busy machine takes beside"
    )
    assert most[0] < 1_600_000_000 and psutil.Process().memory_info().rss - before < 400_000_000
    assert query(runs, "SELECT 1 AS one").rows.to_pylist() == [{"one": 1}]
    deadline = time.monotonic() + 30
    while server.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server.children(), "a process of an answered question is left"


def test_what_answers_is_started_again_when_it_is_killed_and_writes_nothing(runs, tmp_path):
    query(runs, "SELECT 1")
    for _ in range(2):
        [server] = [
            child
            for child in psutil.Process().children()
            if "initscope.store.query_process" in child.cmdline()
        ]
        server.kill()
        server.wait(30)
        assert rows(runs, "SELECT 7") == [(7,)]
    environment = {
        key: value
        for child in psutil.Process().children()
        if "initscope.store.query_process" in child.cmdline()
        for key, value in child.environ().items()
    }
    assert "INITSCOPE_READ_ONLY" in environment and not [
        name for name in environment if "PASSWORD" in name or "AWS" in name or "HOME" in name
    ]


def test_one_long_question_keeps_no_other_waiting(runs):
    recorded(runs, "run-0", 20)
    query(runs, "SELECT 1")

    def ask_much() -> None:
        with pytest.raises(QueryError):
            query(
                runs,
                "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range = 7",
                8.0,
            )

    long = threading.Thread(target=ask_much)
    long.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert rows(runs, "SELECT count(*) FROM steps") == [(20,)]
    took = time.monotonic() - began
    assert long.is_alive() and took < 7, took
    long.join()


def test_a_damaged_file_is_named(runs):
    run = recorded(runs, "run-0", 20)
    recorded(runs, "run-1", 20)
    path = run.path / "layers.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        RunFolderError, match=r"^the rows of a run cannot be read: .*'run-0/layers.parquet'"
    ) as told:
        query(runs, "SELECT max(grad_norm) FROM layers")
    assert str(runs.root) not in str(told.value)
    assert rows(runs, "SELECT count(*) FROM steps") == [(40,)]
    assert rows(runs, "SELECT count(*) FROM layers WHERE run = 'run-1'") == [(40,)]


def test_the_command(runs, cli):
    recorded(runs, "run-0", 20)
    found = cli("query", "SELECT run, loss, started, created FROM runs", "--json")
    assert found.status == 0, found.err
    [row] = found.json["rows"]
    assert (
        row["run"] == "run-0"
        and row["loss"] is None
        and row["started"] is None
        and row["created"].startswith("20")
    )
    shown = cli("query", "SELECT run, max(step) AS last FROM steps GROUP BY run")
    assert shown.out.splitlines() == ["run    last", "run-0  19"] and shown.err == ""
    wrong = cli("query", "SELECT nothing FROM layers")
    assert (
        wrong.status == 2
        and wrong.out == ""
        and len(wrong.err.splitlines()) == 1
        and "layers(run, step" in wrong.err
    )
