"""The index of the list: it says what the run folders say, at once, whatever was done to them or to it."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from initscope.config.run_config import RunConfig
from initscope.schema import Status
from initscope.store import Run, RunInfo, Runs, index, own_process
from initscope.store.writer import set_status

OPENED: list[str] = []
sys.addaudithook(lambda event, arguments: OPENED.append(str(arguments[0])) if event == "open" else None)


def plain(infos: list[RunInfo]) -> list[tuple]:
    return [
        (
            i.run,
            i.name,
            i.status,
            i.outcome,
            i.init,
            i.loss,
            i.accuracy,
            i.created,
            dict(i.config),
            dict(i.state),
            i.tags,
            i.error,
        )
        for i in infos
    ]


def truth(runs: Runs) -> list[tuple]:
    """What every folder says, read from its files."""
    return plain(
        sorted(
            (Run(runs.root / run_id).info() for run_id in runs.ids()),
            key=lambda info: (info.created, info.run),
            reverse=True,
        )
    )


def read(runs: Runs) -> set[str]:
    """Ids of the runs whose status a listing had to open."""
    OPENED.clear()
    runs.list()
    return {Path(name).parent.name for name in OPENED if name.endswith("status.json")}


@pytest.fixture
def settled(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Run]]:
    """Forty ended runs with a settled index; files settle after a fifth of a second here."""
    monkeypatch.setattr(index, "SETTLED_SECONDS", 0.2)

    def make() -> list[Run]:
        made = []
        for seed in range(40):
            run = runs.create(RunConfig(init_seed=seed, tags=("a",)), run_id=f"run-{seed:02}")
            status = [Status.FINISHED, Status.STOPPED, Status.FAILED, Status.CRASHED][seed % 4]
            loss = float("nan") if seed == 4 else seed / 10
            set_status(
                run,
                status=str(status),
                outcome="undecided",
                loss=loss,
                curve=[2.3, loss],
                error="\ud800 odd" if seed == 2 else None,
                ended=time.time(),
            )
            made.append(run)
        time.sleep(0.25)
        runs.list()
        return made

    return make


def test_entries_are_what_the_files_say(runs, settled):
    made = settled()
    Run(runs.root / "run-00").edit(name="renamed", tags=["b", "c"])
    runs.create(RunConfig(), Status.RUNNING, run_id="live", **own_process())
    runs.create(RunConfig(), Status.RUNNING, run_id="gone", **{**own_process(), "pid": 2**30})
    (runs.create(RunConfig(), run_id="damaged").path / "status.json").write_text("{")
    os.symlink(
        made[1].path / "config.json",
        runs.create(RunConfig(), Status.FINISHED, run_id="linked").path / "meta.json",
    )
    time.sleep(0.25)
    expected = truth(runs)
    assert {entry[2] for entry in expected} >= {"finished", "crashed", "running", "unreadable"}
    assert len(runs.list()) == 44
    for again in (runs, Runs(runs.root)):  # from memory, and from the file
        assert str(plain(again.list())) == str(expected)  # as text: NaN is not equal to itself
        assert plain([again.info("run-07")]) == plain([made[7].info()])
        # Only what may change without a file changing is read again: 40 ended runs are not.
        assert read(again) == {"live", "gone", "damaged", "linked"}


def test_every_change_is_seen_at_once(runs, settled):
    made = settled()
    other = Runs(runs.root)
    other.list()

    def same_size_and_time(run: Run) -> None:
        path = run.path / "status.json"
        before = path.stat()
        path.write_bytes(path.read_bytes().replace(b'"undecided"', b'"converged"'))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size

    changes: list[Callable[[], object]] = [
        lambda: same_size_and_time(made[0]),
        lambda: set_status(made[1], loss=9.0),
        lambda: made[2].edit(name="another"),
        lambda: (made[3].path / "config.json").write_text('{"config": {"init": "zeros"}}'),
        lambda: (made[4].path / "status.json").unlink(),
        lambda: made[5].delete(),
        lambda: runs.create(RunConfig(), run_id="new"),
        lambda: os.rename(made[6].path, runs.root / "moved"),
        lambda: os.replace(made[7].path / "status.json", made[8].path / "status.json"),
        lambda: set_status(made[10], status="queued"),
    ]
    for change in changes:
        before = truth(runs)
        change()
        now = truth(runs)
        assert str(now) != str(before)
        for reader in (runs, other, Runs(runs.root)):
            assert str(plain(reader.list())) == str(now)

    before = truth(runs)
    (made[9].path / "config.json").chmod(0o600)
    for reader in (runs, other, Runs(runs.root)):
        assert str(plain(reader.list())) == str(before), "other permissions change nothing that is listed"


def test_two_changes_within_one_tick_of_the_clock(runs):
    """A file is read and then written over, at the same size, faster than its times can tell."""
    run = runs.create(RunConfig(), run_id="quick")
    set_status(run, status="finished", ended=1.0, loss=0.5, step=0)
    text = (run.path / "status.json").read_bytes()
    for step in range(10, 90):
        (run.path / "status.json").write_bytes(text.replace(b'"step": 0', b'"step":%d' % step))
        assert [info.state["step"] for info in runs.list()] == [step]


def test_a_damaged_index_is_made_anew_and_never_believed(runs, settled):
    settled()
    expected, path = str(truth(runs)), runs.root / index.NAME
    whole, draw = path.read_bytes(), random.Random(0)

    def foreign() -> None:
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE entries (run, lies)")
        database.close()

    def a_lie(column: str, value: object) -> Callable[[], None]:
        def tell() -> None:
            with sqlite3.connect(path) as database:
                database.execute(f"UPDATE entries SET {column} = ?", (value,))
            database.close()

        return tell

    damages: list[Callable[[], object]] = [
        foreign,
        path.unlink,
        lambda: path.write_bytes(b""),
        lambda: path.write_text("no database" * 99),
    ]
    damages += [
        a_lie("entry", json.dumps({"name": "lie"}).encode()),
        a_lie("state", None),
        a_lie("checksum", 0),
        a_lie("stamps", b""),
    ]
    for _ in range(25):
        place, cut = draw.randrange(len(whole)), draw.randrange(len(whole))
        damages.append(
            lambda place=place: path.write_bytes(
                whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
            )
        )
        damages.append(lambda cut=cut: path.write_bytes(whole[:cut]))
    for damage in damages:
        path.write_bytes(whole)
        damage()
        assert str(plain(Runs(runs.root).list())) == expected
        assert str(plain(Runs(runs.root).list())) == expected
    path.unlink()
    Runs(runs.root).list()
    assert read(Runs(runs.root)) == set()  # made anew, and used


def test_what_is_no_index_is_left_alone(runs, settled, tmp_path, monkeypatch):
    settled()
    expected, path = str(truth(runs)), runs.root / index.NAME
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    for put in (lambda: os.symlink(elsewhere, path), lambda: os.mkfifo(path), path.mkdir):
        path.unlink()
        put()
        assert str(plain(Runs(runs.root).list())) == expected
        assert path.is_symlink() or not path.is_file()
        path.rmdir() if path.is_dir() else None
        path.touch()
    assert elsewhere.stat().st_nlink == 1 and sqlite3.connect(elsewhere).execute(
        "SELECT count(*) FROM entries"
    ).fetchone() == (40,)
    path.unlink()
    monkeypatch.setenv("INITSCOPE_READ_ONLY", "1")
    assert str(plain(Runs(runs.root).list())) == expected and not path.exists()


def test_another_version_reads_the_folders_itself(runs, settled, monkeypatch):
    settled()
    assert read(Runs(runs.root)) == set()
    monkeypatch.setattr(index, "_code_digest", lambda: "another version's code")
    assert len(read(Runs(runs.root))) == 40
    assert read(Runs(runs.root)) == set()  # it is that version's now
