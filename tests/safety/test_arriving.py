"""Run folders that arrive from elsewhere: nothing in them is executed, and what this installation queued is
asked about once more when it begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from initscope.__main__ import main
from initscope.config import factory
from initscope.errors import ConfigError, LimitExceeded, RunFolderError, RunStateError
from initscope.scheduling import launcher, queue
from initscope.scheduling.engines.local import Local
from initscope.scheduling.supervisor import NOT_OURS, Supervisor
from initscope.schema import CHECKPOINT
from initscope.store import Run, Runs, origin
from initscope.store.files import write_json
from tests.conftest import supervisors

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def evil(tmp_path) -> tuple[Path, Path]:
    """(a file of code, the file that it writes when it is run)."""
    code, proof = tmp_path / "elsewhere" / "evil.py", tmp_path / "executed"
    code.parent.mkdir()
    code.write_text(
        f"from torch import nn\nopen({str(proof)!r}, 'w').close()\ndef go():\n    return nn.Linear(64, 10)\n"
    )
    return code, proof


def arrive(runs: Runs, tiny, run_id: str, status: str, marked: bool = False, **changes: object) -> Run:
    """A folder as another installation, or somebody with an editor, made it: every file of a run's, none of
    it by our code.
    """
    run = Run(runs.root / run_id)
    (run.path / "parts").mkdir(parents=True)
    write_json(run.path / "config.json", {"config": tiny().to_dict() | changes})
    state = {
        "status": status,
        "outcome": None,
        "step": 0,
        "heartbeat": time.time(),
        "created": time.time(),
        "made_by": "0123456789abcdef:" + "0" * 64,
    }
    write_json(run.path / "status.json", state)
    (run.path / "log.txt").touch()
    if marked:
        queue.enqueue(runs, [run])
    return run


def test_what_arrives_queued_is_not_begun(runs, tiny, two_slots, until, evil):
    """With and without a marker, with code of its own or a network of ours; what we queue beside it is
    trained.
    """
    code, proof = evil
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    arrived = [
        arrive(runs, tiny, "a-marked", "queued", marked=True, model=f"{code}:go", model_sha256=""),
        arrive(runs, tiny, "b-unmarked", "queued", model=f"{code}:go", model_sha256=digest),
        arrive(runs, tiny, "c-plain", "queued", marked=True),
    ]
    forged = arrive(runs, tiny, "d-forged", "queued", marked=True, model=f"{code}:go", model_sha256=digest)
    [own] = launcher.submit(runs, [tiny(max_steps=2)])
    write_json(
        forged.path / "status.json",
        forged.json_file("status.json") | {"made_by": own.json_file("status.json")["made_by"]},
    )
    until(lambda: own.state()["status"] == "finished" and forged.state()["status"] == "failed")
    assert forged.state()["error"].startswith("config.json has changed since this run was queued")
    assert [run.state()["status"] for run in arrived] == ["queued"] * 3 and not proof.exists()
    assert arrived[2].state()["phase"] == f"waiting for {NOT_OURS}"
    for process in two_slots():  # nor by the next supervisor, which takes up what was left
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(30)
    launcher.ensure_supervisor(runs)
    [again] = launcher.submit(runs, [tiny(max_steps=2, init_seed=1)])
    until(lambda: again.state()["status"] == "finished")
    assert [run.state()["status"] for run in arrived] == ["queued"] * 3 and not proof.exists()
    # A person may take one over: it is stopped and resumed by hand.
    launcher.stop(runs, arrived[2])
    launcher.resume(runs, arrived[2])
    until(lambda: arrived[2].state()["status"] == "finished")


def test_resume_runs_no_code_of_a_folder_from_elsewhere(runs, tiny, evil, monkeypatch, capsys):
    """Neither on the command line nor for a visitor, with a digest or without; a file that the operator
    offers may be run.
    """
    code, proof = evil
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    bare = arrive(runs, tiny, "bare", "stopped", model=f"{code}:go", model_sha256="")
    pinned = arrive(runs, tiny, "pinned", "stopped", model=f"{code}:go", model_sha256=digest)
    for run, said in (
        (bare, "without the SHA-256"),
        (pinned, "was not made by this installation, and it names code to be run"),
    ):
        assert main(["resume", run.id]) == 2
        told = capsys.readouterr().err
        assert said in told and len(told.splitlines()) == 1
        with pytest.raises(ConfigError, match=said):
            launcher.resume(runs, run)
        assert run.state()["status"] == "stopped" and launcher.queued(runs) == []
    monkeypatch.setenv(factory.FOLDER, str(code.parent))
    with pytest.raises(ConfigError, match="without the SHA-256"):
        launcher.check_resumable(bare)
    launcher.check_resumable(pinned)
    assert not proof.exists()


def test_a_checkpoint_from_elsewhere_is_not_read_by_an_old_pytorch(runs, tiny, monkeypatch):
    monkeypatch.setattr(launcher, "READS_CHECKPOINTS", (99, 0))
    arrived = arrive(runs, tiny, "arrived", "stopped")
    launcher.check_resumable(arrived)
    (arrived.path / CHECKPOINT).write_bytes(b"anything")
    with pytest.raises(RunStateError, match=r"can make PyTorch .* run code; upgrade torch"):
        launcher.check_resumable(arrived)
    mine = runs.create(tiny(), "stopped")
    (mine.path / CHECKPOINT).write_bytes(b"anything")
    launcher.check_resumable(mine)


def test_a_mark_belongs_to_one_run_with_one_configuration(runs, tiny, monkeypatch, tmp_path):
    run = runs.create(tiny())
    config, state = run.json_file("config.json")["config"], run.json_file("status.json")
    assert origin.made_here(run.id, config, state)
    assert not origin.made_here("another", config, state) and not origin.made_here(
        run.id, config | {"epochs": 3}, state
    )
    assert not origin.made_here(run.id, config, {}) and not origin.made_here(run.id, config, {"made_by": 3})
    monkeypatch.setenv(origin.STATE, str(tmp_path / "another"))
    assert not origin.made_here(run.id, config, state) and not origin.named_here(state)
    key = tmp_path / "another" / origin.KEY
    assert key.stat().st_mode & 0o777 == 0o600 and key.read_bytes() not in json.dumps(state).encode()
    monkeypatch.setenv(origin.STATE, str(tmp_path / "open"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / origin.KEY).write_bytes(b"x" * 32)
    with pytest.raises(RunFolderError, match=r"everybody on this machine may use installation\.key"):
        origin.name()


def test_without_a_place_for_the_key_a_loop_is_recorded_and_a_launch_is_refused(
    runs, tiny, monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv(origin.STATE, str(tmp_path / "file" / "state"))
    assert runs.create(tiny(), "running").state()["status"] in ("running", "crashed")
    with pytest.raises(
        RunFolderError,
        match=r"cannot keep this installation's key in .*; name a folder of your own in INITSCOPE_STATE",
    ):
        launcher.submit(runs, [tiny()])
    assert len(runs.ids()) == 1


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("INITSCOPE_MAX_EPOCHS", "1", "2 epochs are over INITSCOPE_MAX_EPOCHS=1"),
        ("INITSCOPE_MAX_PARAMETERS", "10", "over INITSCOPE_MAX_PARAMETERS=10"),
    ],
)
def test_limits_are_asked_again_when_a_run_begins(runs, tiny, monkeypatch, setting, value, said):
    """A run that was queued when more was allowed, or by hand, is not begun; one that waits for space goes on
    waiting.
    """
    run = runs.create(tiny())
    queue.enqueue(runs, [run])
    monkeypatch.setenv(setting, value)
    with pytest.raises(LimitExceeded):
        launcher.submit(runs, [tiny()])
    supervisor = Supervisor(runs, Local())
    assert supervisor._start_what_fits() == 0 and not supervisor.carried
    assert run.state()["status"] == "failed" and said in run.state()["error"] and launcher.queued(runs) == []


def test_a_run_waits_for_space_when_the_quota_is_used_up(runs, tiny, monkeypatch):
    run = runs.create(tiny(), note="x" * 20_000)
    queue.enqueue(runs, [run])
    monkeypatch.setenv("INITSCOPE_DISK_QUOTA", "10kB")
    supervisor = Supervisor(runs, Local())
    assert supervisor._start_what_fits() == 1 and not supervisor.carried
    assert run.state()["status"] == "queued" and "waiting for space: runs take" in run.state()["phase"]


# -- a folder that several users share


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of a group, in a place that other users reach."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root may start processes of other users, and with setpriv")
    folder = Path("/var/tmp") / f"initscope-shared-{os.getpid()}"
    for path, mode in (
        (folder, 0o755),
        (folder / "runs", 0o2775),
        (folder / "one", 0o700),
        (folder / "two", 0o700),
    ):
        path.mkdir()
        path.chmod(mode)
    os.chown(folder / "runs", 0, GROUP)
    os.chown(folder / "one", 60_001, 60_001)
    os.chown(folder / "two", 60_002, 60_002)
    yield folder
    while left := supervisors(folder / "runs"):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(10)
    shutil.rmtree(folder)


GROUP = 60_100
TINY = (
    "--preset",
    "quick",
    "--model",
    "vgg11",
    "--width",
    "0.0625",
    "--train-samples",
    "96",
    "--batch-size",
    "16",
    "--max-steps",
    "2",
    "--json",
)


def python(shared: Path, user: str, umask: int, *arguments: str) -> subprocess.CompletedProcess:
    """Python as another user. It may read everything, for this one may be installed in root's home; write it
    may what any user may.
    """
    number = str({"one": 60_001, "two": 60_002}[user])
    kept = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "core"),
        "HOME": str(shared / user),
        "INITSCOPE_RUNS": str(shared / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    reads = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    who = ("setpriv", "--reuid", number, "--regid", number, "--groups", str(GROUP), *reads, sys.executable)
    return subprocess.run(
        [*who, *arguments], cwd=shared, env=kept, umask=umask, capture_output=True, text=True, timeout=300
    )


def command(shared: Path, user: str, umask: int, *arguments: str) -> subprocess.CompletedProcess:
    return python(shared, user, umask, "-P", "-m", "initscope", *arguments)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=["022", "077", "002"])
def test_two_users_of_one_folder_each_have_their_own_trained(shared, until, umask):
    """Whoever is first; each one's runs by a process of their own, with their own rights, one supervisor at a
    time.
    """
    made = []
    for user, seed in (("one", "0"), ("two", "1"), ("one", "2")):
        done = command(shared, user, umask, "train", "--detach", "--init-seed", seed, *TINY)
        assert done.returncode == 0, done.stderr
        made.append((user, Run(shared / "runs" / json.loads(done.stdout.splitlines()[-1])["run"])))
    until(lambda: all(run.state()["status"] == "finished" for _, run in made), seconds=400)
    for user, run in made:
        assert (run.path / "steps.parquet").stat().st_uid == {"one": 60_001, "two": 60_002}[user]


def test_a_queue_that_cannot_be_written_leaves_nothing_behind(shared):
    """Closed to the group by its owner: one of our errors, no run, and one that was stopped stays so."""
    done = command(shared, "two", 0o022, "train", *TINY)
    assert done.returncode == 0, done.stderr
    run = Run(shared / "runs" / json.loads(done.stdout.splitlines()[-1])["run"])
    (shared / "runs" / ".queue").mkdir(mode=0o755)
    refused = command(shared, "two", 0o022, "train", "--detach", *TINY)
    assert (
        refused.returncode == 2
        and refused.stderr.startswith("error: cannot write into .queue of ")
        and len(refused.stderr.splitlines()) == 1
    )
    assert Runs(shared / "runs").ids() == [run.id]
    write_json(run.path / "status.json", run.json_file("status.json") | {"status": "stopped"})
    os.chown(run.path / "status.json", 60_002, 60_002)
    code = (
        "from initscope.store import Runs; from initscope.scheduling import launcher; runs = Runs(); "
        f"launcher.resume(runs, runs.get('{run.id}'))"
    )
    resumed = python(shared, "two", 0o022, "-c", code)
    assert "RunFolderError: cannot write into .queue of " in resumed.stderr, resumed.stderr
    assert run.json_file("status.json")["status"] == "stopped"
