"""The engine ray on a real cluster of several nodes: the same numbers as the local engine's, whichever node, driver or head is lost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import launcher, sweep
from core.config import RunConfig
from core.schema import LIVE
from core.store import Run, Runs
from core.trainer import CHECKPOINT
from tests.conftest import supervisors
from tests.engines.nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WAIT = 200
"""Seconds for what takes five on an idle machine: nodes and workers load Ray and torch."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head and two nodes, one core each."""
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # the path of a socket has at most 107 characters
    nodes = Nodes(folder)
    try:
        for name in ("head", "a", "b"):
            nodes.start(name)
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def on_ray(cluster: Nodes, runs: Runs, two_slots: Callable, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """The cluster, as the engine of whatever the test launches."""
    monkeypatch.setenv("INITSCOPE_ENGINE", "ray")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return cluster


def status(run: Run) -> str:
    return run.state()["status"]


def starts(run: Run) -> int:
    return (run.path / "log.txt").read_text().count(" start ")


def on(nodes: Nodes, name: str, made: list[Run]) -> list[Run]:
    """The runs that train on a node and have a checkpoint."""
    pids = {process.pid for process in nodes.processes(nodes.nodes[name])}
    return [run for run in made if status(run) == "running" and run.state()["pid"] in pids and (run.path / CHECKPOINT).exists()]


def test_queue_stop_and_resume(on_ray, runs, tiny, until):
    """Live rows, order, stop and resume are as they are locally; what no node has waits and says so, and holds up nobody."""
    endless = tiny(epochs=100_000)
    [no_gpu] = launcher.submit(runs, [tiny(device="cuda")])
    [run] = launcher.submit(runs, [endless])
    until(lambda: status(run) == "running" and len(run.read("steps")) > 5, seconds=WAIT)
    assert status(no_gpu) == "queued" and no_gpu.state()["phase"].startswith("waiting for a node with 1 core, 1 GPU and ")
    state = launcher.state(runs)
    assert (state.engine, state.slots, state.free, state.waiting, state.running, state.trouble) == ("ray", 3, 2, 1, 1, "")
    assert {address.removeprefix("::ffff:") for address in on_ray.listening()} == {"127.0.0.1"}

    launcher.stop(runs, no_gpu)
    launcher.stop(runs, run)
    until(lambda: status(run) not in LIVE)
    assert (status(run), status(no_gpu)) == ("stopped", "stopped") and launcher.queued(runs) == []
    launcher.resume(runs, run)
    step = run.state()["step"]
    until(lambda: status(run) == "running" and run.state()["step"] > step, seconds=WAIT)
    launcher.stop(runs, run)
    until(lambda: status(run) not in LIVE)
    assert status(run) == "stopped" and starts(run) == 2 and len(run.read("steps")) == run.state()["step"]


def test_a_sweep_loses_a_node_its_driver_and_the_head(on_ray, runs, tiny, tmp_path, until, monkeypatch):
    """Nothing lost, nothing twice, and the table and every row are the local engine's to the bit."""
    base: RunConfig = tiny(epochs=25, dropout=0.3)
    configs = sweep.plan(base, ["default", "kaiming_normal"], 2, "lossy")
    made = sweep.launch(runs, configs)
    assert len(made) == 4

    until(lambda: on(on_ray, "a", made), seconds=WAIT, what="a run with a checkpoint on node a")
    [lost] = on(on_ray, "a", made)
    on_ray.kill("a")
    until(lambda: lost.state().get("restarts") == 1 and status(lost) != "queued", seconds=WAIT, what="the lost run has begun elsewhere")

    until(lambda: on(on_ray, "b", made) or on(on_ray, "head", made), seconds=WAIT, what="something trains")
    for process in supervisors(runs.root):
        process.kill()

    def on_the_head_again() -> list[Run]:
        launcher.keep_going(runs)  # as the dashboard does: the killed one's lock may be held a moment longer than it can be seen
        return on(on_ray, "head", made)

    until(on_the_head_again, seconds=WAIT, what="a run on the head again")
    on_ray.kill("head")
    on_ray.start("head")
    on_ray.start("c")
    for _ in sweep.watch(runs, [run.id for run in made]):  # ends with the test's timeout at the latest
        launcher.keep_going(runs)

    assert [status(run) for run in made] == ["finished"] * 4, [run.state()["error"] for run in made]
    told = [(starts(run), run.state().get("restarts") or 0) for run in made]
    assert sum(restarts for _, restarts in told) >= 2, told
    assert all(1 <= begun <= 1 + restarts for begun, restarts in told), f"once, and once more for each loss: {told}"
    assert launcher.queued(runs) == [] and len(runs.ids()) == 4
    monkeypatch.setenv("INITSCOPE_ENGINE", "local")
    here = Runs(tmp_path / "here")
    local = launcher.submit(here, configs)
    try:
        until(lambda: all(status(run) not in LIVE for run in local), seconds=WAIT)
    finally:
        for process in supervisors(here.root):
            process.kill()
    for one, other in zip(made, local, strict=True):
        for table in ("steps", "epochs", "layers"):
            rows, expected = ([c for c in run.read(table).column_names if c != "seconds"] for run in (one, other))
            assert one.read(table, rows).equals(other.read(table, expected)), (one.id, table)
    tables = [sweep.table([run.info() for run in group]) for group in (made, local)]
    assert tables[0] == tables[1] and tables[0][0]["runs"] + tables[0][0]["undecided"] == 2
