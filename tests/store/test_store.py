"""The run folder: readers see live runs whole at every moment, nothing is lost or doubled, and bad folders
harm nobody.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from pathlib import Path
from unittest import mock

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError, RunFolderError, RunNotFound, RunStateError
from initscope.schema import LAYER_METRICS, TABLES, Status
from initscope.store import Cursor, Run, Runs, RunWriter, files, own_process, write_json
from initscope.store import writer as writing

NAMES = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), ["conv1_1", "fc3"])
KINDS = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), ["conv2d", "linear"])
DEPTHS = pa.array([0, 1], pa.int32())


def write_step(writer: RunWriter, step: int) -> None:
    """One row of steps, two of layers; an epoch every ten."""
    writer.step(step, step // 10, 2.3, 0.1, 1e-3, 0.01 * step)
    writer.layers(step, NAMES, KINDS, DEPTHS, [[float(step), None]] * (len(LAYER_METRICS) - 1) + [[0, 1]])
    if step % 10 == 9:
        writer.epoch(step // 10, 2.3, 0.1, 2.3, 0.1, 0.01 * step)


def assert_whole(run: Run, steps: int) -> None:
    """Exactly the rows of ``steps`` steps, in order, in every table."""
    assert run.read("steps")["step"].to_pylist() == list(range(steps))
    layers = run.read("layers")
    assert layers["step"].to_pylist() == [step for step in range(steps) for _ in range(2)]
    assert layers["layer"].to_pylist() == ["conv1_1", "fc3"] * steps
    assert layers["grad_norm"].to_pylist() == [value for step in range(steps) for value in (step, None)]
    assert run.read("epochs")["epoch"].to_pylist() == list(range(steps // 10))


@pytest.fixture
def run(runs: Runs) -> Run:
    return runs.create(RunConfig(), Status.RUNNING, **own_process())


# ---------------------------------------------------------------- rows, whatever happens in between

operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 5)),
        st.sampled_from(
            [
                (name, 0)
                for name in (
                    "flush",
                    "flush",
                    "flush",
                    "tail",
                    "compact",
                    "die",
                    "die while compacting",
                    "die while merging",
                )
            ]
        ),
    ),
    max_size=60,
)


class Death(BaseException):
    pass


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations)
def test_no_row_is_lost_or_doubled(runs, operations):
    """Any order of writing, flushing, merging, compacting and dying; a tail that looks now and then sees each
    row once.
    """
    run = runs.create(RunConfig())
    seen: dict[str, list[int]] = {name: [] for name in TABLES}
    cursors: dict[str, Cursor | None] = dict.fromkeys(TABLES)

    def tail() -> None:
        for table in TABLES:
            rows, cursors[table] = run.tail(table, cursors[table])
            seen[table] += rows["epoch" if table == "epochs" else "step"].to_pylist()

    def dying(action) -> None:
        """Lets the writer die at the first file it would delete."""
        with (
            mock.patch.object(Path, "unlink", side_effect=Death),
            pytest.raises(Death) if will_delete else mock.MagicMock(),
        ):
            action()

    with mock.patch.object(writing, "MERGE_AT", 3):
        writer, written, safe = RunWriter(run), 0, 0
        for name, count in operations:
            if name == "write":
                for _ in range(count):
                    write_step(writer, written)
                    written += 1
            elif name == "flush":
                writer.flush()
                safe = written
            elif name == "tail":
                tail()
            elif name == "compact":
                writer.compact()
                safe = written
                assert not list((run.path / "parts").iterdir())
            else:
                if name == "die while compacting":
                    writer.flush()
                    safe = written
                    will_delete = bool(list((run.path / "parts").iterdir()))
                    dying(writer.compact)
                elif name == "die while merging" and written > safe:
                    try:
                        with mock.patch.object(Path, "unlink", side_effect=Death):
                            writer.flush()
                        safe = written
                    except Death:  # the part is written; the state may be older; the next tables are lost
                        safe = None
                writer = RunWriter(run)
                if safe is None:  # as a resume does: forget what not every table has
                    have = [len(run.read("steps")), len(run.read("layers")) // 2]
                    safe = min(have)
                    safe = min(safe, 10 * len(run.read("epochs")) + 9)
                    writer.keep_until(step=safe, epoch=safe // 10)
                    for table in TABLES:
                        limit = safe // 10 if table == "epochs" else safe
                        seen[table] = [key for key in seen[table] if key < limit]
                        cursors[table] = (
                            Cursor(cursors[table].part, min(cursors[table].key, limit - 1))
                            if cursors[table]
                            else None
                        )
                written = safe
            assert_whole(run, safe)
        tail()
        assert seen["steps"] == list(range(safe))
        assert seen["layers"] == [step for step in range(safe) for _ in range(2)]
        assert seen["epochs"] == list(range(safe // 10))


def test_the_number_of_parts_grows_as_a_logarithm(run, monkeypatch):
    monkeypatch.setattr(writing, "MERGE_AT", 4)
    writer, most = RunWriter(run), 0
    for step in range(4**4):
        writer.step(step, 0, 2.3, 0.1, 1e-3, 0.0)
        writer.flush()
        most = max(most, len(list((run.path / "parts").iterdir())))
    assert most <= 4 * 3 and [p.name for p in (run.path / "parts").iterdir()] == [
        "steps-00000000-00000255.parquet"
    ]
    assert run.read("steps")["step"].to_pylist() == list(range(4**4))


WRITER = """
import sys
sys.path.insert(0, ".")
from initscope.store import Run, RunWriter, writer as writing
from tests.store.test_store import write_step
writing.MERGE_AT = 8
run = Run(sys.argv[1])
writer, step = RunWriter(run), 0
while step < 600:  # small parts, merged three times over, one compaction at the end
    write_step(writer, step)
    writer.flush()
    step += 1
writer.compact()
for _ in range(40):  # a run that goes on after its files were compacted, again and again
    writer = RunWriter(run)
    for _ in range(5):
        write_step(writer, step)
        writer.flush()
        step += 1
    writer.compact()
writer.update(status="finished")
"""


@pytest.mark.timeout(180)
def test_a_reader_in_another_process_sees_a_live_run_whole(run, runs, python):
    """While parts are written, merged, compacted: no error, no gap, nothing twice, and never fewer rows than
    before.
    """
    process = python(WRITER, run.path)
    looks, most, cursor, followed = 0, {"steps": 0, "layers": 0, "epochs": 0}, None, []
    deadline = time.monotonic() + 120
    while (running := process.poll() is None) or looks == 0 or most["steps"] < 800:
        for table, key in (("steps", "step"), ("layers", "step"), ("epochs", "epoch")):
            rows = run.read(table, [key])[key].to_pylist()
            width = 2 if table == "layers" else 1
            assert (
                rows[::width] == list(range(len(rows) // width)) and rows[width - 1 :: width] == rows[::width]
            ), table
            assert len(rows) >= most[table], f"{table} lost rows"
            most[table] = len(rows)
        fresh, cursor = run.tail("steps", cursor)
        followed += fresh["step"].to_pylist()
        assert next(info.status for info in runs.list()) in ("running", "finished", "crashed")
        looks += 1
        assert time.monotonic() < deadline and (running or process.returncode == 0), process.stderr.read()
    assert looks > 50 and followed == list(range(800))
    assert_whole(run, 800)


def test_rows_wait_at_most_half_a_second_and_one_step_and_the_first_not_at_all(run):
    now = [0.0]
    writer = RunWriter(run, clock=lambda: now[0])
    write_step(writer, 0)
    assert writer.flush_if_due() and len(run.read("steps")) == 1
    write_step(writer, 1)
    now[0] = writing.FLUSH_SECONDS - 0.01
    assert not writer.flush_if_due() and len(run.read("steps")) == 1
    now[0] += 0.02
    assert writer.flush_if_due() and len(run.read("steps")) == 2
    assert writing.FLUSH_SECONDS <= 1


def test_keep_until_forgets_what_a_resumed_run_makes_again(run):
    writer = RunWriter(run)
    for step in range(47):
        write_step(writer, step)
        writer.flush()
    RunWriter(run).keep_until(step=33, epoch=3)
    assert_whole(run, 33)
    again = RunWriter(run)
    for step in range(33, 60):
        write_step(again, step)
    again.compact()
    assert_whole(run, 60)
    RunWriter(run).keep_until(step=0, epoch=0)
    assert_whole(run, 0)


# ---------------------------------------------------------------- files for others


def test_pandas_reads_the_files_of_the_contract(run):
    writer = RunWriter(run)
    for step in range(25):
        write_step(writer, step)
        writer.flush()
    writer.compact()
    kinds = {"int32": "int32", "float32": "float32", "float64": "float64", "string": "category"}
    assert not (run.path / "metrics.parquet").exists(), "no row, no file"
    writer.metrics(3, {"my f1": 0.5, "lr": 0.1})
    writer.compact()
    for table, columns in sorted(TABLES.items(), key=lambda item: item[0] == "layers"):
        frame = pd.read_parquet(run.path / f"{table}.parquet")
        assert list(frame.columns) == [column.name for column in columns]
        assert [str(dtype) for dtype in frame.dtypes] == [kinds[column.dtype] for column in columns]
    assert (
        len(frame) == 50
        and frame["grad_norm"].isna().sum() == 25
        and list(frame["layer"][:2]) == ["conv1_1", "fc3"]
    )
    file = pq.ParquetFile(run.path / "layers.parquet")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert run.read("layers", ["step", "grad_rms"]).column_names == ["step", "grad_rms"]


def test_an_unstarted_run_reads_as_empty_tables(run):
    for table, columns in TABLES.items():
        assert (
            run.read(table).column_names == [column.name for column in columns] and len(run.read(table)) == 0
        )
        rows, cursor = run.tail(table)
        assert len(rows) == 0 and run.tail(table, cursor)[1] == cursor


def test_json_is_written_whole_and_without_nan(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"ö\ud800": (1, None)}})
    assert json.loads(file.read_bytes()) == {"a": "nan", "b": ["inf", 1.5], "c": {"ö\ud800": [1, None]}}
    assert [files.number(value) for value in ("nan", "inf", 3, None, True, "x")][1:] == [
        float("inf"),
        3.0,
        None,
        None,
        None,
    ]
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_bytes())["b"] and list(tmp_path.iterdir()) == [file], (
        "a failed write leaves the old file and no other"
    )


def test_a_run_is_complete_from_the_moment_it_is_seen(runs):
    run = runs.create(
        RunConfig(init="zeros", init_seed=7, name="ä · 名"), status=Status.QUEUED, source="test"
    )
    assert {p.name for p in run.path.iterdir()} == {"config.json", "status.json", "log.txt", "parts"}
    assert (
        "-zeros-s7-" in run.id
        and runs.ids() == [run.id]
        and run.config() == RunConfig(init="zeros", init_seed=7, name="ä · 名")
    )
    assert (run.state()["status"], run.state()["outcome"], run.state()["source"]) == ("queued", None, "test")
    saved = run.json_file("config.json")
    assert {"python", "torch", "numpy"} <= set(saved["versions"]) and (
        saved["git"] is None or len(saved["git"]) == 40
    )
    assert [p.name for p in runs.root.iterdir()] == [run.id], "no temporary folder is left"

    with pytest.raises(RunStateError, match="already"):
        runs.create(RunConfig(), run_id=run.id)
    with pytest.raises(TypeError):
        runs.create({"a": object()})
    assert [p.name for p in runs.root.iterdir()] == [run.id]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError) as caught:
            Runs(root).create(RunConfig())
        assert str(root) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(RunFolderError):
        Runs(tmp_path / "file").list()
    assert Runs(tmp_path / "not yet").list() == []


# ---------------------------------------------------------------- broken and foreign folders


def test_broken_runs_are_listed_with_a_reason_and_harm_no_other(runs):
    good = runs.create(RunConfig(init="zeros"))
    damages = {
        "config torn": ("config.json", b'{"config": {"ini'),
        "config gone": ("config.json", None),
        "config list": ("config.json", b"[1, 2]"),
        "config odd": ("config.json", b'{"config": {"tags": 7, "name": ["x"]}}'),
        "status torn": ("status.json", b'{"status": "fin'),
        "status empty": ("status.json", b""),
        "status number": ("status.json", b"3"),
        "status binary": ("status.json", b"\xff\xfe\x00"),
        "status odd": (
            "status.json",
            b'{"status": "running", "pid": "x", "heartbeat": "y", "host": "elsewhere", "created": [], '
            b'"tags": 1}',
        ),
        "status deep": ("status.json", b"[" * 100_000),
        "meta torn": ("meta.json", b"{"),
        "meta odd": ("meta.json", b'{"tags": 5}'),
        "numbers odd": (
            "status.json",
            b'{"status": "finished", "loss": {}, "accuracy": "high", "created": "1e999", "step": "x", '
            b'"total_steps": "y"}',
        ),
    }
    broken = {}
    for what, (name, content) in damages.items():
        run = runs.create(RunConfig())
        (run.path / name).unlink(missing_ok=True)
        if content is not None:
            (run.path / name).write_bytes(content)
        broken[run.id] = what
    # Things that are no runs at all.
    (runs.root / "notes.txt").write_text("mine")
    (runs.root / "an empty folder").mkdir()
    (runs.root / "foreign").mkdir()
    (runs.root / "foreign" / "data.csv").write_text("1,2")
    (runs.root / ".hidden").mkdir()
    os.symlink(good.path, runs.root / "a-link")

    infos = {info.run: info for info in runs.list()}
    assert set(infos) == {good.id, *broken}
    assert infos[good.id].status == "queued" and infos[good.id].error is None
    for run_id, what in broken.items():
        info = infos[run_id]
        assert isinstance(info.progress, float)
        if what not in ("config odd", "status odd", "meta odd", "numbers odd"):
            assert info.status == "unreadable" and info.error and len(info.error.splitlines()) == 1, what
        if not info.live:
            runs.get(run_id).delete()
    assert good.path.exists()


def test_damaged_tables_are_an_error_in_one_line(run):
    writer = RunWriter(run)
    write_step(writer, 0)
    writer.compact()
    for content in (b"", b"PAR1 no parquet PAR1", (run.path / "layers.parquet").read_bytes()[:-20]):
        (run.path / "layers.parquet").write_bytes(content)
        with pytest.raises(RunFolderError) as caught:
            run.read("layers")
        assert len(str(caught.value).splitlines()) == 1 and run.id in str(caught.value)
    (run.path / "parts" / "layers-x.parquet").write_text("")
    (run.path / "parts" / ".layers-00000001-00000001.parquet.123.abc").write_text(
        "torn"
    )  # a writer that died
    assert len(run.read("steps")) == 1


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../x", "a/b", "/etc", "a b", "-a", ".hidden", "a\n", "ä", "x" * 121, "a\x00b", "*", "~"],
)
def test_ids_that_are_no_ids(runs, name):
    outside = runs.root.parent / "x"
    outside.mkdir()
    (outside / "status.json").write_text('{"status": "finished"}')
    with pytest.raises(RunNotFound) as caught:
        runs.get(name)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(RunFolderError):
        runs.create(RunConfig(), run_id=name or " ")
    assert outside.exists()


# ---------------------------------------------------------------- what a person does to a run


def test_delete(runs, tmp_path):
    run = runs.create(RunConfig(), Status.RUNNING, **own_process())
    for status in (Status.QUEUED, Status.RUNNING):
        RunWriter(run).update(status=str(status))
        with pytest.raises(RunStateError, match=f"is {status}; stop it first"):
            run.delete()
    run.request_stop()
    with pytest.raises(RunStateError, match="is stopping"):
        run.delete()

    RunWriter(run).update(status="finished")
    real = tmp_path / "elsewhere"
    run.path.rename(real)
    os.symlink(real, run.path)
    with pytest.raises(RunFolderError, match="is a link"):
        runs.get(run.id).delete()
    assert (real / "config.json").exists()
    run.path.unlink()
    real.rename(run.path)

    (run.path / "linked").symlink_to(tmp_path)
    run.delete()
    assert list(runs.root.iterdir()) == [] and tmp_path.exists()
    with pytest.raises(RunNotFound):
        run.delete()


def test_a_run_whose_process_is_gone_is_crashed(runs, python):
    process = python("import time; time.sleep(100)")
    born = psutil.Process(process.pid).create_time()
    state = {"pid": process.pid, "pid_created": born, "host": socket.gethostname()}
    run = runs.create(RunConfig(), Status.RUNNING, **state)
    assert run.state()["status"] == "running"
    run.request_stop()
    assert run.state()["status"] == "stopping"
    RunWriter(run).update(pid_created=born - 100)
    assert run.state()["status"] == "crashed", "another process of the same number is not it"
    RunWriter(run).update(pid_created=born)
    os.kill(process.pid, 9)
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert run.state()["status"] == "crashed" and "log.txt" in run.state()["error"], "a zombie trains no more"
    with pytest.raises(RunStateError, match="only a queued or running run"):
        run.request_stop()

    away = runs.create(RunConfig(), Status.RUNNING, pid=1, pid_created=0.0, host="another-machine")
    assert away.state()["status"] == "running", "of another machine only the heartbeat is known"
    write_json(
        away.path / "status.json",
        {**away.state(), "heartbeat": time.time() - files.FOREIGN_HEARTBEAT_SECONDS - 1},
    )
    assert away.state()["status"] == "crashed"


def test_edit_and_revision(runs):
    run = runs.create(RunConfig(name="first", tags=("a",)))
    revisions = [run.revision()]

    def changed() -> None:
        revisions.append(run.revision())
        assert revisions[-1] not in revisions[:-1]

    run.edit(name="ä new name", tags="x, y")
    info = runs.info(run.id)
    assert (info.name, info.tags) == ("ä new name", ("x", "y")) and run.config().name == "first"
    changed()
    run.edit(notes="why\nnot \ud800")
    assert run.meta()["notes"].startswith("why\nnot") and run.meta()["name"] == "ä new name"
    changed()
    for bad in ({"name": "x" * 121}, {"tags": ["a,b"]}, {"name": "a\nb"}):
        with pytest.raises(ConfigError):
            run.edit(**bad)
    writer = RunWriter(run)
    write_step(writer, 0)
    writer.flush()
    changed()
    writer.compact()
    changed()
    run.request_stop()
    changed()
    run.edit(tags=())
    assert runs.info(run.id).tags == ()


def test_log_tail(run):
    (run.path / "log.txt").write_bytes(b"".join(b"line %d \xff\n" % i for i in range(1000)))
    assert run.log_tail(3).splitlines() == [f"line {i} \ufffd" for i in (997, 998, 999)]
    (run.path / "log.txt").unlink()
    assert run.log_tail() == ""


def test_select(runs):
    made = [
        runs.create(RunConfig(init=init, init_seed=seed, sweep="S 1", tags=("a", "b") if seed else ("a",)))
        for init in ("default", "kaiming_normal")
        for seed in (0, 1)
    ]
    other = runs.create(RunConfig(learning_rate=0.01))
    mine = runs.create({"init": "custom", "name": "my net, wide"})

    def ids(expression):
        return {run.id for run in runs.select(expression)}

    assert ids(made[0].id) == {made[0].id}
    assert ids("init=default,sweep=S 1") == {made[0].id, made[1].id}
    assert ids("init = kaiming_normal , init_seed = 1") == {made[3].id}
    assert ids("tags=b") == {made[1].id, made[3].id} and ids("learning_rate=1e-2") == {other.id}
    assert ids("tags=a,b") == ids("tags=b") and ids("name=my net, wide") == ids("init=custom") == {mine.id}
    assert ids("max_steps=none,batch_norm=false") == {run.id for run in [*made, other]}
    for expression, error, said in (
        ("nope", RunNotFound, "no run 'nope'"),
        ("init=zeros", RunNotFound, "fits init=zeros"),
        ("init=nope", ConfigError, "unknown init"),
        ("inot=default", ConfigError, 'did you mean "init"'),
        ("init=default,", ConfigError, "unknown init 'default,'"),
        ("init=default,init=zeros", ConfigError, "init is given twice"),
        ("=", ConfigError, "config field"),
    ):
        with pytest.raises(error, match=said):
            runs.select(expression)


def test_files_are_as_private_as_the_user_asks(runs):
    before = os.umask(0o077)
    try:
        run = runs.create(RunConfig())
    finally:
        os.umask(before)
    assert stat.S_IMODE((run.path / "config.json").stat().st_mode) == 0o600


def test_git_revision(tmp_path):
    git = tmp_path / ".git"
    assert files.git_revision(tmp_path) is None
    git.mkdir()
    (git / "HEAD").write_text("a" * 40 + "\n")
    assert files.git_revision(tmp_path) == "a" * 40
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert files.git_revision(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\n" + "b" * 40 + " refs/heads/main\n")
    assert files.git_revision(tmp_path) == "b" * 40
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("c" * 40 + "\n")
    assert files.git_revision(tmp_path) == "c" * 40
