"""The engine ray on a real cluster of several nodes: the same numbers as the local engine's, whichever node,
driver or head is lost.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from initscope.comparison import sweep
from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError
from initscope.scheduling import launcher
from initscope.schema import CHECKPOINT, LIVE
from initscope.store import Run, Runs
from initscope.store.query import query
from tests.conftest import supervisors
from tests.scheduling.nodes import Nodes, listening

pytest_plugins = ("tests.s3",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WAIT = 200
"""Seconds for what takes five on an idle machine: nodes and workers load Ray and torch."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head and two nodes, one core each."""
    pytest.importorskip("ray")
    folder = Path(
        tempfile.mkdtemp(prefix="ray", dir="/tmp")
    )  # the path of a socket has at most 107 characters
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
    return (
        (run.path / "log.txt").read_text().count("Z INFO start ")
    )  # a worker that is lost may leave Ray's last words there too


def on(nodes: Nodes, name: str, made: list[Run]) -> list[Run]:
    """The runs that train on a node and have a checkpoint."""
    pids = {process.pid for process in nodes.processes(nodes.nodes[name])}
    return [
        run
        for run in made
        if status(run) == "running" and run.state()["pid"] in pids and (run.path / CHECKPOINT).exists()
    ]


def test_queue_stop_and_resume(on_ray, runs, tiny, until):
    """Live rows, order, stop and resume are as they are locally; what no node has waits and says so, and
    holds up nobody.
    """
    endless = tiny(epochs=100_000)
    [no_gpu] = launcher.submit(runs, [tiny(device="cuda")])
    [run] = launcher.submit(runs, [endless])
    until(lambda: status(run) == "running" and len(run.read("steps")) > 5, seconds=WAIT)
    assert status(no_gpu) == "queued" and no_gpu.state()["phase"].startswith(
        "waiting for a node with 1 core, 1 GPU and "
    )
    state = launcher.state(runs)
    assert (state.engine, state.slots, state.free, state.waiting, state.running, state.trouble) == (
        "ray",
        3,
        2,
        1,
        1,
        "",
    )
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


def test_an_address_in_an_object_store_and_a_cluster_of_its_own(machine, s3, tiny, until, monkeypatch):
    """The queue of a machine whose runs are in a bucket: on a cluster that it starts itself, with the driver
    killed, then on another engine, watched and stopped from elsewhere.
    """
    pytest.importorskip("ray")
    monkeypatch.setenv("INITSCOPE_SLOTS", "1")
    there = machine("b")
    here = machine("a")  # the last one: its scratch folder is that of what is started from now on
    theirs = {
        "status": "running",
        "heartbeat": time.time() + 1e6,
        "host": "another",
        "engine": "ray",
        "created": 1.0,
    }
    there._store.remote.put(
        ".runs/theirs~card", json.dumps({"config": {"config": {}}, "status": theirs}).encode()
    )
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    with pytest.raises(
        ConfigError,
        match=r"trained on the machine that launches them, not on the Ray cluster at '192\.0\.2\.1:6379'",
    ):
        launcher.submit(here, [tiny()], engine="ray")
    monkeypatch.delenv("RAY_ADDRESS")
    [run] = launcher.submit(here, [tiny(epochs=100_000)], engine="ray")
    family: list[psutil.Process] = []
    try:
        until(
            lambda: (run.path / CHECKPOINT).exists() and there.info(run.id).state.get("step"),
            seconds=WAIT,
            what="it trains, and the other machine sees it",
        )
        family = [child for process in supervisors(here.root) for child in process.children(recursive=True)]
        assert {address.removeprefix("::ffff:") for address in listening(family)} == {"127.0.0.1"}
        for process in supervisors(here.root):
            process.kill()

        def lost_and_on_again() -> bool:
            launcher.ensure_served(here)
            return (
                run.state().get("restarts") == 1
                and status(run) == "running"
                and (there.info(run.id).state.get("step") or 0) > run.state()["lost_at"]
            )

        until(lost_and_on_again, seconds=WAIT, what="it goes on from its checkpoint")
        assert (
            starts(run) == 2 and here.info("theirs").status == "running" and launcher.state(here).running == 1
        )
        later, first = (
            launcher.submit(here, [tiny(init_seed=seed)], engine="local", first=seed == 2)[0]
            for seed in (1, 2)
        )
        assert launcher.queued(here) == [first.id, later.id] and launcher.state(here).engine == "ray"
        launcher.stop(there, there.get(run.id))
        made = (run, first, later)
        until(
            lambda: [there.info(one.id).status for one in made] == ["stopped", "finished", "finished"],
            seconds=WAIT,
            what="both, once Ray's has ended",
        )
        assert [one.state()["engine"] for one in made] == ["ray", "local", "local"] and first.state()[
            "started"
        ] < later.state()["started"]
        assert launcher.state(here).engine == "local" and launcher.queued(here) == []
        asked = query(there, "SELECT run, count(*) FROM steps GROUP BY run").rows.to_pylist()
        assert {row["run"]: row["count_star()"] for row in asked} == {
            one.id: one.count("steps") for one in made
        }
    finally:
        for process in [
            *supervisors(here.root),
            *family,
        ]:  # what is left of a cluster whose driver was killed leaves after a minute
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    written = [path for path in here.root.parent.parent.rglob("*") if path.is_file()]
    assert not [path for path in written if s3.secret.encode() in path.read_bytes()] and len(written) > 20


def test_a_sweep_loses_a_node_its_driver_and_the_head(on_ray, runs, tiny, tmp_path, until, monkeypatch):
    """Nothing lost, nothing twice, and the table and every row are the local engine's to the bit."""
    base: RunConfig = tiny(epochs=25, dropout=0.3)
    configs = sweep.plan(base, ["default", "kaiming_normal"], 2, "lossy")
    made = launcher.submit_missing(runs, configs)
    assert len(made) == 4

    [lost] = until(lambda: on(on_ray, "a", made), seconds=WAIT, what="a run with a checkpoint on node a")
    on_ray.kill("a")
    until(
        lambda: lost.state().get("restarts") and status(lost) != "queued",
        seconds=WAIT,
        what="the lost run has begun elsewhere",
    )

    until(lambda: on(on_ray, "b", made) or on(on_ray, "head", made), seconds=WAIT, what="something trains")
    for process in supervisors(runs.root):
        process.kill()

    def on_the_head_again() -> list[Run]:
        launcher.ensure_served(
            runs
        )  # as the dashboard does: the killed one's lock may be held a moment longer than it can be seen
        return on(on_ray, "head", made)

    until(on_the_head_again, seconds=WAIT, what="a run on the head again")
    on_ray.kill("head")
    on_ray.start("head")
    on_ray.start("c")
    for _ in sweep.watch(runs, [run.id for run in made]):  # ends with the test's timeout at the latest
        launcher.ensure_served(runs)

    assert [status(run) for run in made] == ["finished"] * 4, [run.state()["error"] for run in made]
    told = [(starts(run), run.state().get("restarts") or 0) for run in made]
    assert sum(restarts for _, restarts in told) >= 2, told
    assert all(1 <= begun <= 1 + restarts for begun, restarts in told), (
        f"once, and once more for each loss: {told}"
    )
    last = (lost.path / "log.txt").read_text().rpartition("Z INFO start ")[2]
    assert int(re.search(r"INFO epoch (\d+),", last)[1]) > 0, "it went on from its checkpoint"
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
            rows, expected = (
                [c for c in run.read(table).column_names if c != "seconds"] for run in (one, other)
            )
            assert one.read(table, rows).equals(other.read(table, expected)), (one.id, table)
    tables = [sweep.table([run.info() for run in group]) for group in (made, local)]
    assert tables[0] == tables[1] and tables[0][0]["runs"] + tables[0][0]["undecided"] == 2
