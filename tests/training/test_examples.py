"""The examples that people copy, run as they are, with fewer steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from initscope.diagnosis.diagnose import diagnose
from initscope.store import Run, Runs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def example(runs: Runs):
    """Starts an example; gives the process and what its last line says: (run, the rest)."""
    started = []

    def start(name: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-m", f"initscope.examples.{name}", *map(str, arguments), "--runs", str(runs.root)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def said(process: subprocess.Popen, runs: Runs) -> tuple[Run, str]:
    out, err = process.communicate(timeout=540)
    assert process.returncode == 0, err
    run, _, rest = out.splitlines()[-1].partition(": ")
    return runs.get(run), rest


def test_own_loop_and_lightning(example, runs):
    loop, fit = example("own_loop", "--steps", 120), example("lightning_fit", "--steps", 60)
    run, text = said(loop, runs)
    assert len(run.read("steps")) == 120 and text.startswith("loss ") and run.state()["status"] == "finished"
    assert diagnose(run).cause == "healthy" and run.info().name == "my own loop"
    run, _ = said(fit, runs)
    losses = run.read("steps")["loss"].to_pylist()
    assert len(losses) == 60 and losses[-1] < losses[0] / 2 and run.read("layers")["layer"].unique().to_pylist() == ["net.0", "net.2", "net.4"]


def test_the_transformer_and_the_line_that_changes_it(example, runs):
    """What the README says of it: one does not train for its weights' size, the other does."""
    bare, scaled = example("transformer", "--steps", 60), example("transformer", "--steps", 60, "--scaled")
    (bare_run, _), (scaled_run, _) = said(bare, runs), said(scaled, runs)
    found = diagnose(bare_run)
    assert found.cause == "init_too_large" and "initial_loss_off" in {finding.id for finding in found.findings}
    late = [sum(run.read("steps")["loss"].to_pylist()[-10:]) / 10 for run in (bare_run, scaled_run)]
    assert late[0] > 2.0 > 1.9 > late[1] and diagnose(scaled_run).cause == "healthy"
