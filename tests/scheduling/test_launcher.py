"""The queue with real processes: order, slots, deaths of workers and supervisors, stop and resume."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from initscope.errors import ConfigError, RunStateError
from initscope.installation import module_command
from initscope.scheduling import launcher, queue
from initscope.scheduling.engines.local import NICENESS
from initscope.schema import CHECKPOINT, LIVE, Status
from initscope.store import Run, own_process
from initscope.training.worker import claimed, main_in_child

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def endless(tiny):
    """Trains in small steps until somebody stops it."""
    return lambda **changes: tiny(epochs=100_000, train_samples=1438, batch_size=8, **changes)


def status(run: Run) -> str:
    return run.state()["status"]


def ended(*runs: Run) -> bool:
    return all(status(run) not in LIVE for run in runs)


def steps(run: Run) -> int:
    return len(run.read("steps"))


def zombies(parent: psutil.Process) -> list[psutil.Process]:
    return [
        child for child in parent.children() if child.is_running() and child.status() == psutil.STATUS_ZOMBIE
    ]


def starts(run: Run) -> int:
    return (run.path / "log.txt").read_text().count(" start ")


def test_more_runs_than_slots_wait_their_turn(runs, tiny, two_slots, until):
    """In order, two at a time, each once; supervisors started beside the first change nothing."""
    made = launcher.submit(runs, [tiny(init_seed=seed, epochs=1, train_samples=1438) for seed in range(3)])
    assert [status(run) for run in made] == ["queued"] * 3 and launcher.queued(runs) == [
        run.id for run in made
    ]
    made += launcher.submit(
        runs, [tiny(init_seed=seed, threads=threads, max_steps=2) for seed, threads in ((3, 2), (4, 0))]
    )  # each takes the whole machine
    for _ in range(3):
        launcher.ensure_supervisor(runs)
    twin = subprocess.Popen(module_command("initscope.scheduling.launcher", runs.root))

    together, seen = 0, set()
    while not ended(*made):
        running = [run.config() for run in made if status(run) == "running"]
        used = sum(config.threads or 2 for config in running)
        assert used <= 2, "more than the machine carries"
        together = max(together, len(running))
        seen |= {len(launcher.queued(runs))}
        time.sleep(0.1)
    assert together == 2 and {1, 2} <= seen
    assert [status(run) for run in made] == ["finished"] * 5 and [starts(run) for run in made] == [1] * 5
    began = [run.state()["started"] for run in made]
    # The first two begin together, and each says so when it gets a processor.
    assert sorted(began[:2]) + began[2:] == sorted(began), "first come, first served"
    assert [steps(run) for run in made] == [90] * 3 + [2] * 2
    assert launcher.queued(runs) == []

    until(lambda: len(two_slots()) == 1, what="one supervisor, no worker: the others left at once")
    assert twin.poll() in (0, None), "it left, or it was the first to hold the lock and serves"
    [supervisor] = two_slots()
    until(
        lambda: not zombies(psutil.Process()) + zombies(supervisor), what="every ended process is collected"
    )
    pids = {run.state()["pid"] for run in made}
    assert len(pids) == 5 and not pids & {os.getpid(), supervisor.pid}, "a process of its own for each"
    supervisor.kill()
    until(lambda: twin.poll() is not None, what="the twin, which this test started, has ended whoever it was")
    until(lambda: not psutil.pid_exists(supervisor.pid), what="the supervisor is collected too")


def test_workers_outlive_their_supervisor(runs, endless, tiny, two_slots, until, monkeypatch):
    """A killed supervisor's worker trains on; the next one adopts it, and notices when it dies."""
    monkeypatch.setenv("INITSCOPE_SLOTS", "1")
    first, second = launcher.submit(runs, [endless(), endless(init_seed=1)])
    until(lambda: steps(first) > 5)
    worker = psutil.Process(first.state()["pid"])
    assert os.getsid(worker.pid) == worker.pid, "a session of its own: no terminal takes it along"
    assert worker.nice() == NICENESS
    if (group := Path(f"/proc/{worker.pid}/autogroup")).exists():
        assert group.read_text().endswith(f"nice {NICENESS}\n"), "and it gives way to other sessions"
    [supervisor] = [process for process in two_slots() if process.pid != worker.pid]
    supervisor.kill()
    supervisor.wait(10)
    before = steps(first)
    until(lambda: steps(first) > before + 20)
    assert status(first) == "running" and status(second) == "queued"

    launcher.ensure_supervisor(runs)
    until(lambda: {p.pid for p in two_slots()} - {worker.pid}, what="a new supervisor")
    before = steps(first)
    until(lambda: steps(first) > before + 100)
    assert status(second) == "queued" and starts(first) == 1, "the adopted worker takes its slot"

    worker.kill()
    until(
        lambda: first.json_file("status.json")["status"] == "crashed",
        what="written down, not only guessed by readers",
    )
    assert "its process is gone" in first.state()["error"] and runs.info(first.id).error
    until(lambda: steps(second) > 5)
    os.kill(second.state()["pid"], signal.SIGKILL)
    until(lambda: second.json_file("status.json")["status"] == "crashed")
    assert "signal 9 (SIGKILL)" in second.state()["error"]
    assert " start " in second.log_tail(), "the tail of its log tells the story"

    # A crashed run can go on, through the queue.
    launcher.resume(runs, second)
    until(lambda: status(second) == "running" and starts(second) == 2)
    launcher.stop(runs, second)
    until(lambda: ended(second))
    assert status(second) == "stopped" and second.state()["error"] is None


def test_stop_and_resume_through_the_queue(runs, tiny, trained, two_slots, until, monkeypatch):
    monkeypatch.setenv("INITSCOPE_SLOTS", "1")
    config = tiny(epochs=5, train_samples=800, dropout=0.5, batch_norm=True, schedule="cosine")
    running, waiting = launcher.submit(runs, [config, config])
    launcher.stop(runs, waiting)
    assert status(waiting) == "stopped" and launcher.queued(runs) in ([running.id], []), (
        "a queued run stops at once"
    )
    until(lambda: steps(running) > 30)
    launcher.stop(runs, running)
    until(lambda: ended(running))
    state = running.state()
    assert state["status"] == "stopped" and (running.path / CHECKPOINT).exists()
    assert (
        30 < state["step"] < 250
        and steps(running) == state["step"]
        and (running.path / "layers.parquet").exists()
    )
    for run in (running, waiting):
        with pytest.raises(RunStateError, match="is stopped; only a queued or running run"):
            launcher.stop(runs, run)
    assert steps(waiting) == 0 and starts(waiting) == 0

    launcher.resume(runs, running)
    assert status(running) in ("queued", "running")
    with pytest.raises(RunStateError, match="already"):
        launcher.resume(runs, running)
    launcher.resume(runs, waiting)
    until(lambda: ended(running, waiting))
    whole = trained(config)
    for run in (running, waiting):
        assert status(run) == "finished" and run.read("steps").drop_columns("seconds") == whole.read(
            "steps"
        ).drop_columns("seconds")
        with pytest.raises(RunStateError, match="nothing to resume"):
            launcher.resume(runs, run)
    assert (starts(running), starts(waiting)) == (2, 1)


def test_what_cannot_run_does_not_hold_up_the_others(runs, tiny, two_slots, until, tmp_path, monkeypatch):
    """A run without its data, one whose config is torn, one deleted from the queue: the supervisor goes
    on.
    """
    monkeypatch.setenv("INITSCOPE_SLOTS", "1")
    configs = [tiny(data=f"image_folder:{tmp_path / 'none'}"), tiny(), tiny(), tiny(), tiny()]
    made = [runs.create(config) for config in configs]
    for run in made:
        queue.enqueue(runs, [run])
    no_data, torn, deleted, renamed, good = made
    (torn.path / "config.json").write_text('{"config": {"init": "no such"}}')
    deleted.path.rename(tmp_path / "deleted")
    (runs.root / launcher.QUEUE / "0~..").touch()
    (runs.root / launcher.QUEUE / "rubbish").touch()
    renamed.path.rename(runs.root / "renamed")
    launcher.ensure_supervisor(runs)
    until(lambda: ended(no_data, good))
    assert status(good) == "finished"
    assert (
        status(no_data) == "failed"
        and "no folder" in no_data.state()["error"]
        and "no folder" in no_data.log_tail()
    )
    until(lambda: status(torn) not in LIVE)
    assert torn.state()["error"].startswith("config.json has changed since this run was queued")
    until(lambda: launcher.queued(runs) == [])
    assert any(process.pid for process in two_slots())


def test_a_worker_does_not_begin_what_has_ended(runs, tiny):
    """Between a supervisor's look and its worker's start a run may have been stopped, or finished by another
    worker.
    """
    for given in (Status.STOPPED, Status.FINISHED, Status.FAILED):
        run = runs.create(tiny(), given)
        assert main_in_child(run) == 0
        assert status(run) == given and steps(run) == 0
    run = runs.create(tiny())
    with claimed(run), pytest.raises(RunStateError, match="another process"), claimed(run):
        raise AssertionError("two at once")
    with claimed(run):
        assert main_in_child(run) == 0 and status(run) == "queued"
    assert main_in_child(run) == 0 and status(run) == "finished"


def test_a_new_supervisor_finds_runs_that_lost_their_place(runs, tiny, two_slots, until):
    """Queued without a mark (the launching process died in between), and crashed without a supervisor to
    write it down.
    """
    lost = runs.create(tiny())
    crashed = runs.create(tiny(), Status.RUNNING, pid=2**22 + 1, pid_created=1.0)
    elsewhere = runs.create(tiny(), Status.RUNNING, pid=1, host="another-machine", heartbeat=time.time())
    runs.create(
        {"init": "custom"}, Status.RUNNING, source="recorder", **own_process()
    )  # somebody's notebook holds up nobody
    launcher.ensure_supervisor(runs)
    until(lambda: status(lost) == "finished")
    assert crashed.json_file("status.json")["status"] == "crashed"
    assert elsewhere.json_file("status.json")["status"] == "running", (
        "another machine's run is not ours to judge"
    )


def test_only_runs_of_ours_can_be_resumed(runs):
    run = runs.create({"init": "custom", "model": "Net"}, Status.STOPPED, source="recorder")
    with pytest.raises(RunStateError, match="a loop of your own"):
        launcher.resume(runs, run)
    assert status(run) == "stopped" and launcher.queued(runs) == []


@pytest.mark.parametrize("given", ["0", "²", "-1", "many", "1.5"])
def test_slots_that_are_no_number(monkeypatch, given):
    monkeypatch.setenv("INITSCOPE_SLOTS", given)
    with pytest.raises(ConfigError, match="INITSCOPE_SLOTS must be a whole number from 1"):
        launcher.slots()


@pytest.mark.parametrize(("given", "expected"), [("3", 3), (" 2 ", 2), ("", None)])
def test_slots(monkeypatch, given, expected):
    monkeypatch.setenv("INITSCOPE_SLOTS", given)
    assert launcher.slots() == (expected or len(os.sched_getaffinity(0)))
    for config in ({"threads": 1}, {"threads": 0}, {"threads": 10**6}, {"threads": "x"}, {}, None):
        assert 1 <= launcher.threads_of(config) <= launcher.slots()
