"""Two dashboards on one folder of runs: each sees what the other launches, one supervisor serves both, and
nothing runs twice, whoever is killed.
"""

from __future__ import annotations

import asyncio
import json
import time

import psutil
import pytest

from initscope.scheduling.launcher import submit
from initscope.schema import LIVE
from initscope.store import Runs
from tests.browser.conftest import Server
from tests.conftest import supervisors
from tests.safety.strain import LONG, until
from tests.safety.visitors import Visitor

pytestmark = pytest.mark.timeout(300)


async def press(first: Server, second: Server, runs: Runs) -> list[str]:
    """The same button on both at the same moment, then one stops what the other launched."""
    async with Visitor(first.port) as one, Visitor(second.port) as other:
        await asyncio.gather(one.open(), other.open())
        await asyncio.gather(one.click("launch"), other.click("launch"))
        made = runs.ids()
        assert len(made) == 4, "two people, two launches"
        await until(lambda: any(runs.get(run).state().get("step") for run in made))
        top = [p for p in supervisors(runs.root) if p.ppid() not in {q.pid for q in supervisors(runs.root)}]
        assert len(top) == 1, "one supervisor serves both"
        await asyncio.gather(one.open("live", run=made), other.open("live", run=made))
        for i, run in enumerate(made):
            if runs.get(run).info().live:
                await (one, other)[i % 2].click(f"stop-{run}")
        await until(lambda: not [run for run in made if runs.get(run).state()["status"] in LIVE])
        assert one.failures == other.failures == []
    return made


async def kill(first: Server, runs: Runs) -> None:
    """A dashboard and the supervisor killed: training goes on, the queue too once another dashboard looks,
    and nothing runs twice.
    """
    made = submit(runs, [LONG] * 3)
    await until(lambda: all(run.state().get("step") for run in made[:2]))
    own = {run.state().get("pid") for run in made[:2]}
    for process in [
        psutil.Process(first.process.pid),
        *(process for process in supervisors(runs.root) if process.pid not in own),
    ]:
        process.kill()
    done = made[0].state()["step"]
    await until(lambda: made[0].state()["step"] > done)
    made[1].request_stop()
    await until(lambda: made[2].state().get("step"))
    for run in made:
        if run is not made[1]:
            run.request_stop()
    await until(lambda: not [run for run in made if run.state()["status"] in LIVE])
    for run in made:
        steps = run.read("steps")["step"].to_pylist()
        assert (run.path / "log.txt").read_text().count(" start ") == 1 and steps == list(range(len(steps)))
        run.delete()


def test_two_dashboards_on_one_folder_and_a_clock_that_jumps(tmp_path):
    runs = Runs(tmp_path / "runs")
    first, second = Server(runs.root, INITSCOPE_SLOTS="2"), None
    try:
        second = Server(runs.root, INITSCOPE_SLOTS="2")
        made = asyncio.run(press(first, second, runs))
        asyncio.run(kill(first, runs))
        for run in map(runs.get, made):
            begun = [line for line in (run.path / "log.txt").read_text().splitlines() if " start " in line]
            steps = run.read("steps")["step"].to_pylist()
            assert len(begun) <= 1 and steps == list(range(len(steps))), "nothing ran twice"
        for run, jump in zip(
            map(runs.get, made), (-10 * 365 * 86_400, 86_400, 50 * 365 * 86_400, 0), strict=True
        ):  # as a clock set wrong would have written
            state = run.json_file("status.json")
            moved = {
                name: state[name] + jump
                for name in ("created", "started", "ended", "heartbeat")
                if state.get(name)
            }
            (run.path / "status.json").write_text(
                json.dumps(state | moved | {"created": max(0.0, time.time() + jump)})
            )

        async def look() -> list[str]:
            async with Visitor(second.port) as visitor:
                for page in ("", "live", "gradients", "compare", "diagnosis", "sweep", "depth"):
                    await visitor.open(page, run=made)
                return visitor.failures

        assert asyncio.run(look()) == [], "ages are odd then, and every page stands"
        assert {info.run for info in runs.list()} == set(made)
    finally:
        first.close()
        if second:
            second.close()
