"""The queue and the choice of an engine: order, who is asked for, what a run asks a cluster for, and what the
sidebar says.
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from initscope.errors import ConfigError, EngineTrouble
from initscope.resources.memory import estimate
from initscope.scheduling import engine, launcher, queue
from initscope.scheduling.engine import State
from initscope.scheduling.engines.ray_cluster import Cluster
from initscope.scheduling.supervisor import Supervisor
from initscope.store import claimed, own_process
from initscope.store.writer import set_status
from initscope_dashboard.widgets.sidebar import engine_line


def test_first_goes_before_those_that_wait(runs, tiny):
    made = [runs.create(tiny(init_seed=seed)) for seed in range(5)]
    queue.enqueue(runs, made[:2])
    queue.enqueue(runs, made[2:4], first=True)
    queue.enqueue(runs, made[4:])
    assert launcher.queued(runs) == [made[i].id for i in (2, 3, 0, 1, 4)]


def test_which_engine(runs, monkeypatch):
    """The one named, else the environment's, else the folder's; a cluster's address stays with it."""
    assert engine.choose("") == ("local", "") and queue.chosen(runs) == ("local", "")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert engine.choose("ray") == ("ray", "127.0.0.1:6379") and engine.choose("local") == ("local", "")
    queue.choose(runs, "ray", "127.0.0.1:6379")
    monkeypatch.delenv("RAY_ADDRESS")
    assert engine.choose("", queue.chosen(runs)) == ("ray", "127.0.0.1:6379")
    monkeypatch.setenv("INITSCOPE_ENGINE", "local")
    assert engine.choose("", queue.chosen(runs)) == ("local", "")
    with pytest.raises(
        ConfigError, match=r"unknown engine 'rey'; did you mean \"ray\"\? available: local, ray"
    ):
        engine.choose("rey")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs Ray, which is not installed: pip install ray=="):
        engine.choose("ray")


def test_engine_and_order_are_about_the_queue(cli):
    for flag in (["--engine", "ray"], ["--first"]):
        answer = cli("train", *flag)
        assert answer.status == 2 and answer.err.count("\n") == 1 and "add --detach" in answer.err


def test_state_and_its_line(runs, monkeypatch):
    monkeypatch.setenv("INITSCOPE_SLOTS", "4")
    assert launcher.state(runs) == State("local", 4, 4, 0, 0)
    assert engine_line(launcher.state(runs)) == "This machine: 4 of 4 slots free"
    (runs.root / queue.QUEUE).mkdir(parents=True)
    queue.write_state(
        runs, {"engine": "local", "slots": 4, "free": 4, "running": 0, "trouble": "", **own_process()}
    )
    monkeypatch.setenv("INITSCOPE_ENGINE", "ray")
    assert launcher.state(runs) == State("ray", None, None, 0, 0), (
        "what waits for a launch does not say where it will train"
    )
    monkeypatch.setenv("INITSCOPE_ENGINE", "rey")
    assert launcher.state(runs) == State("local", 4, 4, 0, 0)
    monkeypatch.delenv("INITSCOPE_ENGINE")
    queue.choose(runs, "ray", "")
    assert launcher.state(runs) == State("ray", None, None, 0, 0)
    words = {"engine": "ray", "slots": 8, "free": 1, "running": 7, "trouble": ""}
    queue.write_state(runs, {**words, **own_process()})
    assert launcher.state(runs) == State("ray", 8, 1, 0, 7)
    queue.write_state(runs, {**words, **own_process(), "pid": 2**22 + 1})
    assert launcher.state(runs).slots is None, "the word of a supervisor that is gone"
    assert engine_line(State("ray", 8, 1, 1200, 7)) == "Ray cluster: 1 of 8 slots free, 1,200 waiting"
    assert ":red[no \\[cluster\\]]" in engine_line(State("ray", None, None, 1, 0, "no [cluster]"))
    (runs.root / queue.QUEUE / queue.TOLD).write_text("[1")
    (runs.root / queue.QUEUE / queue.ENGINE).write_text('{"engine": "abacus"}')
    assert launcher.state(runs).engine == "local", "as if nobody had said anything"


def test_what_a_run_asks_a_cluster_for(tiny, monkeypatch):
    """Cores are threads x processes, a whole node where they are left open; memory as estimated; GPUs where
    there are any, or in shares.
    """
    cluster = Cluster()
    cluster._looked = math.inf  # these nodes, and no others
    cluster._take_note([{"CPU": 4.0, "memory": 8e9}, {"CPU": 2.0, "memory": 8e9, "GPU": 1.0}])
    one, two, whole = (
        tiny(device="cpu", **changes).to_dict() for changes in ({}, {"processes": 2}, {"threads": 0})
    )
    assert [cluster.threads_of(config) for config in (one, two, whole)] == [1, 2, 4] and cluster.slots() == 6
    needed = cluster._needed(one)
    assert needed == {"CPU": 1, "GPU": 0, "memory": estimate(tiny()).total} and not cluster.unmet_requirement(
        one
    )
    assert (
        cluster.fits(one, [one] * 5)
        and not cluster.fits(one, [one] * 6)
        and not cluster.fits(two, [whole, one])
    )
    gpu = tiny(device="auto").to_dict()
    assert cluster._needed(gpu)["GPU"] == 1 and cluster.fits(gpu, []) and not cluster.fits(gpu, [gpu])
    assert "2 GPU" in cluster.unmet_requirement(tiny(device="cuda", processes=2).to_dict())
    monkeypatch.setenv("INITSCOPE_GPU_SHARE", "0.5")
    assert cluster.fits(gpu, [gpu]) and not cluster.fits(gpu, [gpu, gpu])
    huge = tiny(model="vgg16", width=4.0, batch_size=64, device="cpu").to_dict()
    assert "of memory" in cluster.unmet_requirement(huge)
    monkeypatch.setenv("INITSCOPE_GPU_SHARE", "half")
    with pytest.raises(
        EngineTrouble, match="INITSCOPE_GPU_SHARE must be a number above 0, at most 1, not 'half'"
    ):
        cluster.fits(gpu, [])


@pytest.fixture
def nowhere() -> Cluster:
    """An engine whose cluster has a core, and carries nothing."""
    cluster = Cluster()
    cluster._looked = math.inf
    cluster._take_note([{"CPU": 1.0, "memory": 8e9}])
    return cluster


def test_a_run_lost_three_more_times_in_vain_is_given_up(runs, tiny, nowhere):
    """A loss counts as in vain only while no step has come since the one before."""
    run, supervisor = runs.create(tiny()), Supervisor(runs, nowhere)

    def lose(step: int) -> str:
        queue.unmark(runs, run.id)
        set_status(
            run, status="running", engine="ray", step=step, **own_process() | {"pid_birth": "another boot"}
        )
        supervisor.lost[run.id] = "lost"
        supervisor._look_after()
        return run.json_file("status.json")["status"]

    assert [lose(step) for step in (0, 0, 0, 5, 5, 5)] == ["queued"] * 6 and launcher.queued(runs) == [run.id]
    assert lose(5) == "crashed" and run.state()["restarts"] == 6 and not supervisor.lost
    assert (
        run.state()["error"] == "the training process was lost, 4 times in a row without getting any further"
    )
    queue.enqueue(runs, [run])
    supervisor._start_what_fits()
    assert launcher.queued(runs) == [] and not (supervisor.carried or supervisor.adopted or supervisor.lost)


def test_a_run_that_was_begun_by_another_is_looked_after(runs, tiny, nowhere):
    """A task may outlive its driver for a moment, and begin a run that the next supervisor has in its
    queue.
    """
    run, supervisor = runs.create(tiny()), Supervisor(runs, nowhere)
    queue.enqueue(runs, [run])
    set_status(run, status="running", engine="ray", **own_process())
    supervisor._start_what_fits()
    assert launcher.queued(runs) == [] and list(supervisor.adopted) == [run.id]
    set_status(run, pid_birth="another boot")
    with claimed(run):  # a process that is killed may hold its lock a moment longer than it can be seen
        supervisor._look_after()
        later = Supervisor(runs, nowhere)
        later._take_over()
        for each in (supervisor, later):
            assert list(each.lost) == [run.id] and not each.adopted
    later._look_after()
    assert (
        run.state()["status"] == "queued"
        and run.state()["restarts"] == 1
        and launcher.queued(runs) == [run.id]
    )


def test_ray_is_loaded_only_where_it_is_the_engine():
    code = (
        "import sys, initscope.__main__, initscope.scheduling.launcher, initscope.scheduling.supervisor, "
        "initscope.scheduling.engines.ray_cluster; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
