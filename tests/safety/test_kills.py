"""Killed in the middle of every kind of write, and resumed to the same curve. 200 kills: ``python -m
tests.benchmarks.kill``.
"""

from __future__ import annotations

import os
import shutil

import pytest

from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError, RunFolderError, RunStateError
from initscope.store.files import own_process, process_alive
from tests.safety.kills import kill, same_curve, start, temporaries

pytestmark = pytest.mark.timeout(900)
CONFIG = RunConfig(
    model="vgg11",
    width=0.0625,
    image_size=32,
    train_samples=320,
    batch_size=16,
    epochs=12,
    threads=1,
    dropout=0.3,
)


def test_killed_anywhere_and_resumed_to_the_same_curve(runs, tmp_path):
    from initscope.training.loading import load_training

    load_training()
    run, whole, notes = runs.create(CONFIG), runs.create(CONFIG), tmp_path / "notes"
    kills = []
    for how in (
        {"after": 0.05},
        {"at": "writing the checkpoint"},
        {"at": "writing a part"},
        {"after": 0.6},
        {"at": "compacting"},
    ):
        happened = kill(run, start(run, notes), notes, **{"after": 60, **how})
        if happened is None:
            break
        kills.append(happened)
        assert [info.run for info in runs.list() if info.status == "unreadable"] == []
    assert len(kills) >= 4, kills
    for one in (run, whole):
        if one.state()["status"] != "finished":
            assert os.waitpid(start(one, notes), 0)[1] == 0
    assert same_curve(run, whole) and run.state()["outcome"] == whole.state()["outcome"]
    assert temporaries(run) == [], "what the killed processes left is gone"


def test_a_damaged_checkpoint_is_named(runs, trained):
    """Truncated, empty, a pickle that would run a command, or another network's: failed, with the file and
    what to do; without the file it begins anew.
    """
    from initscope.schema import CHECKPOINT
    from initscope.training.trainer import train

    run = trained(CONFIG.replace(epochs=1, checkpoint="keep"))
    good = (run.path / CHECKPOINT).read_bytes()
    other = trained(CONFIG.replace(epochs=1, width=0.125, checkpoint="keep"))
    for bad in (
        good[: len(good) // 2],
        b"",
        b"cos\nsystem\n(S'touch owned'\ntR.",
        (other.path / CHECKPOINT).read_bytes(),
    ):
        (run.path / CHECKPOINT).write_bytes(bad)
        with pytest.raises(
            RunFolderError, match=r"checkpoint\.pt cannot be used .*delete that file and resume"
        ):
            train(run)
        state = run.state()
        assert state["status"] == "failed" and "checkpoint.pt" in state["error"]
    (run.path / CHECKPOINT).unlink()
    train(run)
    assert run.state()["status"] == "finished"


def test_no_code_is_taken_from_the_folder_of_runs(runs, tmp_path):
    """A run folder from elsewhere that names its own Python file: refused, whoever resumes it, and the file
    is never run.
    """
    import hashlib
    import json

    from initscope.config import factory
    from initscope.training.trainer import train

    run = runs.create(CONFIG, "stopped")
    evil = run.path / "evil.py"
    evil.write_text(
        f"open({str(tmp_path / 'owned')!r}, 'w')\nimport torch\ndef net() -> torch.nn.Module: ...\n"
    )
    saved = json.loads((run.path / "config.json").read_text())
    saved["config"] |= {"model": f"{evil}:net", "model_sha256": hashlib.sha256(evil.read_bytes()).hexdigest()}
    (run.path / "config.json").write_text(json.dumps(saved))
    with (
        factory.trusted(),
        pytest.raises(ConfigError, match=r"evil\.py lies in the folder of runs"),
    ):  # as a worker trusts
        train(run)
    assert not (tmp_path / "owned").exists() and run.state()["status"] == "failed"


def test_a_clock_that_jumps_kills_nobody():
    """psutil's birth times move with the clock; a process is known by its ticks since boot."""
    own = own_process()
    for jump in (-3600, -1.5, 0, 1.5, 86_400):
        assert process_alive(own["pid"], own["pid_created"] + jump, own["pid_birth"])
    assert not process_alive(own["pid"], own["pid_created"], own["pid_birth"] + "0"), (
        "the same number, another process"
    )
    assert not process_alive(own["pid"], own["pid_created"] + 3600) and process_alive(
        own["pid"], own["pid_created"]
    )
    for odd in (None, "1", -1, 0, True, 2**31, 2**70, 1.0):
        assert not process_alive(odd, None)


def test_the_queue_keeps_its_order_when_the_clock_is_set_back(runs, tiny, monkeypatch):
    import time

    from initscope.scheduling import launcher, queue

    made = [runs.create(tiny(init_seed=seed)) for seed in range(3)]
    for run, now in zip(made, (5 * 10**18, 10**18, 2 * 10**18), strict=True):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        queue.enqueue(runs, [run])
    assert launcher.queued(runs) == [run.id for run in made]


def test_a_link_in_a_run_folder_is_not_written_through(runs, trained, tmp_path):
    from initscope.training.trainer import train
    from initscope.training.worker import work

    run = trained(CONFIG.replace(epochs=1, max_steps=3))
    outside = tmp_path / "outside"
    shutil.move(run.path / "parts", outside)
    (outside / "steps-00000000-00000000.parquet").write_text("mine")
    (run.path / "parts").symlink_to(outside)
    for go in (train, work):
        with pytest.raises((RunFolderError, RunStateError), match="parts is a link"):
            go(run)
    assert (outside / "steps-00000000-00000000.parquet").read_text() == "mine"
