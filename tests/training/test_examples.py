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

    def start(name: str, *arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [
            sys.executable,
            *launcher,
            "-m",
            f"initscope.examples.{name}",
            *map(str, arguments),
            "--runs",
            str(runs.root),
        ]
        started.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
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
    assert (
        len(losses) == 60
        and losses[-1] < losses[0] / 2
        and run.read("layers")["layer"].unique().to_pylist() == ["net.0", "net.2", "net.4"]
    )


def test_accelerate_and_torchrun(example, runs):
    """One process of Accelerate; two of torchrun, which are one run."""
    pytest.importorskip("accelerate")
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    )
    accelerated, several = (
        example("accelerate_loop", "--steps", 60),
        example("torchrun_loop", "--steps", 60, launcher=torchrun),
    )
    for process, name in ((accelerated, "my accelerate loop"), (several, "my torchrun loop")):
        run, text = said(process, runs)
        losses, info = run.read("steps")["loss"].to_pylist(), runs.info(run.id)
        assert text.startswith("loss ") and len(losses) == 60 and losses[-1] < 0.75 * losses[0]
        assert (info.status, info.name, info.config["own"]["steps"]) == ("finished", name, 60)
        assert all(row["grad_norm"] > 0 and row["update_ratio"] > 0 for row in run.read("layers").to_pylist())
    assert len(runs.list()) == 2, "torchrun's two processes are one run"


def test_the_transformer_and_the_line_that_changes_it(example, runs):
    """What the README says of it: one does not train for its weights' size, the other does."""
    bare, scaled = example("transformer", "--steps", 60), example("transformer", "--steps", 60, "--scaled")
    (bare_run, _), (scaled_run, _) = said(bare, runs), said(scaled, runs)
    found = diagnose(bare_run)
    assert found.cause == "init_too_large" and "initial_loss_off" in {
        finding.id for finding in found.findings
    }
    late = [sum(run.read("steps")["loss"].to_pylist()[-10:]) / 10 for run in (bare_run, scaled_run)]
    assert late[0] > 2.0 > 1.9 > late[1] and diagnose(scaled_run).cause == "healthy"
