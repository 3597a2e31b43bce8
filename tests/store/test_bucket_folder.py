"""Runs in an object store: two machines (two scratch folders) and a real S3 server on loopback between
them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError, RunFolderError, RunStateError
from initscope.schema import Status
from initscope.store import Run, Runs, RunWriter, own_process
from initscope.store.bucket import download, folder, upload
from initscope.store.locks import claimed
from initscope.store.parts import MERGE_AT
from tests.conftest import ROOT
from tests.store.test_store import assert_whole, write_step

pytest_plugins = ("tests.s3",)


def shippers(runs: Runs) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:] == ["-P", "-m", "initscope.store.bucket.upload", str(runs.root)]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def keys(bucket) -> list[str]:
    return sorted(item.key for item in bucket.objects.all())


def command(environment: dict[str, str], *arguments: object) -> subprocess.Popen:
    """``initscope`` on a machine."""
    return subprocess.Popen(
        [sys.executable, "-m", "initscope", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_run_trains_here_and_is_watched_stopped_resumed_and_deleted_there(
    machine, bucket, s3, runs, tiny, trained, until, tmp_path
):
    undisturbed = trained(tiny(epochs=15))
    a, b = machine("a"), machine("b")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(undisturbed.config().to_dict()))
    training = command(s3.on(a), "train", "--config", config, "--json")
    until(lambda: [info for info in b.list() if info.state.get("step")], what="B sees it train")
    [info] = b.list()
    run = Run(b.root / info.run)
    assert info.status == "running"
    run.edit(name="renamed from B")
    run.request_stop()
    with pytest.raises(RunStateError, match="another machine is working"), claimed(run):
        pass
    out, err = training.communicate(timeout=120)
    assert training.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"
    # The command has waited until everything was in the store: what B reads now is what A has.
    time.sleep(download.REFRESH_SECONDS)
    [info] = b.list()
    assert (info.status, info.name) == ("stopped", "renamed from B") and a.info(
        info.run
    ).name == "renamed from B"
    mine = Run(a.root / info.run)
    done = mine.count("steps")
    assert 1 <= done < undisturbed.count("steps")
    for table in ("steps", "epochs", "layers"):
        assert run.read(table).equals(mine.read(table))
    assert run.log_tail() == mine.log_tail() != ""
    # Elsewhere, from the checkpoint, to the curve of a run that nobody stopped.
    resumed = command(s3.on(b), "resume", info.run, "--json")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    time.sleep(download.REFRESH_SECONDS)
    assert a.info(info.run).status == "finished"
    assert (
        Run(a.root / info.run)
        .read("steps", ["step", "loss"])
        .equals(undisturbed.read("steps", ["step", "loss"]))
    )
    assert not [
        key
        for key in keys(bucket)
        if "/parts/" in key or "checkpoint" in key or "/.claims/" in key or "/.stops/" in key
    ]
    # No secret in anything that was written, here or there.
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or s3.secret.encode() not in path.read_bytes(), path
    assert not [item.key for item in bucket.objects.all() if s3.secret.encode() in item.get()["Body"].read()]
    Run(a.root / info.run).delete()
    assert keys(bucket) == []
    time.sleep(download.REFRESH_SECONDS)
    assert b.list() == [] and not run.path.exists()


def test_readers_see_whole_runs_while_parts_merge_and_a_shipper_is_killed(machine, bucket, until):
    a, b = machine("a"), machine("b")
    written = a.create(RunConfig(), Status.RUNNING, run_id="run", **own_process())
    writer = RunWriter(written)
    writer.flush()
    until(lambda: b.ids(), what="B sees the run")
    read = Run(b.root / "run")
    steps, seen, killed, deadline = 0, 0, False, time.monotonic() + 200
    total = 2 * MERGE_AT + 5
    while seen < total and time.monotonic() < deadline:
        for _ in range(3):
            if steps < min(total, seen + 24):  # B sees it come, not only the end
                write_step(writer, steps)
                writer.flush()
                steps += 1
        if not killed and seen > MERGE_AT:
            killed = True
            [process] = shippers(a)
            process.kill()
            process.wait()
            a.list()
            a._store.ensure_shipper()  # as the next launch does
        rows = read.read("steps")["step"].to_pylist()
        assert rows == list(range(len(rows))) and len(rows) >= seen
        layers = read.read("layers")["step"].to_pylist()
        assert layers == [step for step in range(len(layers) // 2) for _ in range(2)]
        seen = len(rows)
    assert seen == total and killed
    writer.compact()
    writer.update(status="finished", outcome="undecided", ended=time.time())
    until(lambda: b.info("run").status == "finished", what="B sees the end")
    assert_whole(read, total)
    assert not list((read.path / "parts").iterdir())
    until(lambda: not a._store.owns("run"), what="A lets the run go")
    assert not [key for key in keys(bucket) if "/parts/" in key]


def test_a_store_that_is_away_and_listings_that_lag(machine, bucket, s3, tiny, until, tmp_path):
    """The run goes on, who watches sees what was there and no error, and the rest follows once the store is
    back.
    """
    a, b = machine("a"), machine("b")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(epochs=100_000).to_dict()))
    s3.lag = 2.0  # longer than between two looks
    seen: list[int] = []

    def watched() -> int:
        """How many rows B has: whole and never fewer, whatever the store does."""
        [info] = b.list()
        rows = Run(b.root / info.run).read("steps", ["step"])["step"].to_pylist()
        assert rows == list(range(len(rows))) and len(rows) >= (seen or [0])[-1]
        seen.append(len(rows))
        return len(rows)

    training = command(s3.on(a), "train", "--config", config, "--json")
    try:
        until(lambda: b.list() and watched(), what="B sees it train")
        [info] = b.list()
        mine = Run(a.root / info.run)
        s3.stop()
        before = mine.state()["step"]
        until(lambda: watched() and mine.state()["step"] > before + 150, what="it goes on without the store")
        assert b.info(info.run).status == "running" and seen[-1] <= before
        with pytest.raises(RunFolderError, match=r"^cannot write to .*: it cannot be reached"):
            a.create(RunConfig())
        s3.start()
        until(lambda: watched() > before + 150, what="B sees what was trained meanwhile")
        mine.request_stop()
        assert training.wait(120) == 0, training.stderr.read()
        until(
            lambda: watched() == mine.count("steps") and b.info(info.run).status == "stopped",
            what="B sees all of it",
        )
        assert Run(b.root / info.run).read("layers").equals(mine.read("layers"))
        assert s3.secret not in (a.root / ".shipper.log").read_text() != ""
    finally:
        s3.lag = 0.0
        training.kill()
        training.communicate()


def test_a_listing_that_forgets_a_run_takes_it_away_from_nobody(machine, bucket, s3):
    b = machine("b")
    try:
        s3.lag = 600.0
        assert b.list() == []
        s3.lag = 0.0
        bucket.put_object(
            Key="runs/.runs/run~card",
            Body=json.dumps({"config": {"config": {}}, "status": {"status": "finished", "created": 1.0}}),
        )
        bucket.put_object(Key="runs/run/log.txt", Body=b"hello")
        for lag in (0.0, 600.0):  # the second time it is as if nothing had come since the first listing
            s3.lag = lag
            time.sleep(download.REFRESH_SECONDS)
            assert b.ids() == ["run"] and b.get("run").revision() and b.get("run").log_tail() == "hello"
        s3.lag = 0.0
        bucket.delete_objects(Delete={"Objects": [{"Key": "runs/.runs/run~card"}]})
        time.sleep(download.REFRESH_SECONDS)
        assert b.list() == []
    finally:
        s3.lag = 0.0


def test_one_machine_works_on_a_run_and_both_edits_are_kept(machine, bucket):
    a, b = machine("a"), machine("b")
    for name in ("ended", "lost", "live"):
        heartbeat = time.time() - (100 if name == "lost" else 0)
        state = {
            "status": "finished" if name == "ended" else "running",
            "heartbeat": heartbeat,
            "host": "another",
            "created": heartbeat,
        }
        bucket.put_object(
            Key=f"runs/.runs/{name}~card", Body=json.dumps({"config": {"config": {}}, "status": state})
        )
        if name != "ended":
            bucket.put_object(Key=f"runs/.claims/{name}", Body=b"another machine's")
    assert {info.run: info.status for info in a.list()} == {
        "ended": "finished",
        "lost": "crashed",
        "live": "running",
    }
    b.list()

    def take(where: Runs, name: str) -> bool:
        try:
            where._store.take(name, files=True)
        except RunStateError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        for name, winners in (("ended", 1), ("lost", 1), ("live", 0)):
            assert sum(pool.map(lambda where, name=name: take(where, name), (a, b))) == winners, name
        with pytest.raises(RunStateError, match="there is a run live already"):
            a._store.claim("live")
        list(
            pool.map(
                lambda change: Run(change[0].root / "ended").edit(**change[1]),
                [(a, {"name": "new"}), (b, {"tags": "x,y"})],
            )
        )
    time.sleep(download.REFRESH_SECONDS)
    assert [(where.info("ended").name, where.info("ended").tags) for where in (a, b)] == [
        ("new", ("x", "y"))
    ] * 2
    # A machine that slept and lost its run stops at once, and writes nothing over the winner's.
    loser = a if b._store.owns("lost") else b
    (loser._store.root / download.OURS / "lost").touch()
    before = keys(bucket)
    upload.RunUpload(loser._store, "lost").ship()
    assert (
        not loser._store.owns("lost") and (loser.root / "lost" / "stop").exists() and keys(bucket) == before
    )


def test_requests_are_few_and_counted(machine, bucket, s3):
    b, count = machine("b"), 1050
    card = {
        "config": {"config": {"init": "default"}},
        "status": {"status": "finished", "outcome": "converged", "loss": 0.1, "created": 1.0, "ended": 2.0},
    }
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: bucket.put_object(Key=f"runs/.runs/run-{n:04}~card", Body=json.dumps(card)),
                range(count),
            )
        )

    rounds: list[int] = []

    def asked(action: Callable[[], object]) -> dict[str, int]:
        time.sleep(download.REFRESH_SECONDS)
        s3.requests.clear()
        began = time.monotonic()
        action()
        rounds.append(1 + int((time.monotonic() - began) / download.REFRESH_SECONDS))
        lists = sum("list-type" in request for request in s3.requests)
        return {
            "list": lists,
            "get": sum(request.startswith("GET") for request in s3.requests) - lists,
            "all": len(s3.requests),
        }

    first = asked(b.list)
    assert first["get"] == count and first["all"] - count == first["list"] <= 2 * rounds[-1]
    again = asked(lambda: [b.list() for _ in range(20)])
    assert again["all"] == again["list"] <= 2 * rounds[-1]  # all looks within a second are one
    bucket.put_object(
        Key="runs/.runs/run-0007~card", Body=json.dumps(card | {"status": {**card["status"], "loss": 0.5}})
    )
    bucket.put_object(Key="runs/run-0007/log.txt", Body=b"hello")
    changed = asked(lambda: b.info("run-0007"))
    assert (
        changed["all"] - 1 == changed["list"] <= 2 * rounds[-1]
        and changed["get"] == 1
        and b.info("run-0007").loss == 0.5
    )
    opened = asked(lambda: Run(b.root / "run-0007").revision())
    assert (
        opened["list"] <= 2 * rounds[-1] + 1
        and opened["get"] == 1
        and Run(b.root / "run-0007").log_tail() == "hello"
    )
    assert asked(lambda: [Run(b.root / "run-0007").revision() for _ in range(20)])["all"] <= 2 * rounds[-1]


def test_what_a_bucket_holds_beside_runs_reaches_no_file(machine, bucket, tmp_path):
    b = machine("b")
    card = json.dumps({"config": {"config": {}}, "status": {"status": "finished"}})
    for key in (
        "runs/.runs/../../evil~card",
        "runs/.runs/.queue~card",
        "runs/.runs/good~card",
        "runs/.runs/broken~card",
        "runs/.runs/odd",
    ):
        bucket.put_object(Key=key, Body="[" if "broken" in key else card)
    for key in (
        "runs/good/../../evil.txt",
        "runs/good/worker.lock",
        "runs/good/parts/../../../x",
        "runs/good/stop",
        "runs/good/log.txt",
    ):
        bucket.put_object(Key=key, Body=b"x")
    assert {info.run: info.status for info in b.list()} == {"good": "finished", "broken": "unreadable"}
    b.get("good").revision()
    assert sorted(path.name for path in (b.root / "good").iterdir()) == [
        "config.json",
        "log.txt",
        "parts",
        "status.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_mistakes_are_one_line_without_secrets(machine, s3, monkeypatch, tmp_path, cli):
    with pytest.raises(ConfigError, match="must not hold credentials") as told:
        Runs(f"s3://AKIAEXAMPLE:{s3.secret}@bucket/runs")
    assert s3.secret not in str(told.value)
    monkeypatch.setenv("INITSCOPE_SCRATCH", str(tmp_path / "c"))
    for address, expected in (
        ("gs://bucket/runs", "^gs:// needs a package that is not installed: pip install gcsfs"),
        ("nothing://bucket/runs", "is not an address that fsspec knows"),
        ("s3://no-such-bucket/runs", "cannot list 's3://no-such-bucket/runs': there is no such bucket"),
    ):
        with pytest.raises((ConfigError, RunFolderError), match=expected):
            Runs(address).list()
    answer = cli("runs", "--runs", "s3://no-such-bucket/runs")
    assert answer.status == 2 and len(answer.err.splitlines()) == 1 and s3.secret not in answer.err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    runs = Runs("s3://bucket/runs")
    with pytest.raises(RunFolderError, match=r"^cannot list 's3://bucket/runs': it cannot be reached"):
        runs.list()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(RunFolderError, match="access is refused; check the credentials in the environment"):
        Runs("s3://another/runs").list()


def test_a_file_address_is_a_plain_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("INITSCOPE_SCRATCH", str(tmp_path / "scratch"))
    run = Runs(f"file://{tmp_path}/my%20runs").create(RunConfig())
    assert run.path.parent == tmp_path / "my runs" and not (tmp_path / "scratch").exists()
    # A folder from elsewhere that claims to stand for an address is a folder.
    (tmp_path / "my runs" / folder.ADDRESS).write_text('{"url": "s3://theirs/runs"}')
    assert [info.run for info in Runs(tmp_path / "my runs").list()] == [run.id]


def test_a_killed_trainer_is_told_by_its_machine(machine, python, until):
    a, b = machine("a"), machine("b")
    code = """
import sys, time
from initscope.store import Runs, RunWriter, own_process
run = Runs(sys.argv[1]).create({"init": "default"}, "running", run_id="run", **own_process())
writer = RunWriter(run)
for step in range(5): writer.step(step, 0, 2.3, 0.1, 1e-3, 0.1)
writer.flush()
print("written", flush=True)
time.sleep(600)
"""
    trainer = python(code, a.shown, env={**os.environ, "INITSCOPE_SCRATCH": str(a.root.parent)})
    assert trainer.stdout.readline() == "written\n"
    a.create(
        {"init": "default"},
        Status.RUNNING,
        run_id="lost",
        engine="ray",
        **own_process() | {"pid_birth": "another boot"},
    )
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    until(
        lambda: "run" in b.ids() and Run(b.root / "run").json_file("status.json")["status"] == "crashed",
        what="B is told of the crash",
    )
    assert Run(b.root / "run").count("steps") == 5 and "killed" in b.info("run").error
    until(lambda: not a._store.owns("run"))
    b.get("run").delete()
    assert [info.run for info in b.list()] == ["lost"]
    assert Run(b.root / "lost").json_file("status.json")["status"] == "running", (
        "a run that a cluster has lost is its next supervisor's to tell"
    )
