"""Many visitors at once, and hundreds of launches, stops and deletions in a row: shared by the suite and the
benchmark.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from initscope.config.run_config import RunConfig
from initscope.scheduling.launcher import submit
from initscope.schema import LIVE
from initscope.store import Run, Runs
from tests.browser.conftest import Server
from tests.conftest import supervisors
from tests.safety.visitors import Upkeep, Visitor, upkeep

LONG = RunConfig(model="vgg11", width=0.0625, image_size=32, batch_size=64, epochs=2000, threads=1)
"""A run that goes on for longer than anybody looks."""


@dataclass
class Crowd:
    """What many visitors of two live runs met. Seconds; steps a second of both runs together."""

    opened: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    alone: float = 0.0
    watched: float = 0.0
    before: Upkeep | None = None
    during: Upkeep | None = None
    after: Upkeep | None = None


HANDLES_KEPT = 3
"""Streamlit keeps the event loop of a session that has gone, for two minutes and 128 sessions at most."""


async def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for it without holding up the others. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def step(run: Run) -> int:
    return run.read("steps", ["step"]).num_rows


async def pace(runs: list[Run], seconds: float) -> float:
    """Steps a second that these runs do now."""
    first, began = sum(map(step, runs)), time.monotonic()
    await asyncio.sleep(seconds)
    return (sum(map(step, runs)) - first) / (time.monotonic() - began)


async def crowd(
    server: Server, visitors: int, seconds: float, beside: Callable[[list[Run]], object] | None = None
) -> Crowd:
    """Two runs train; so many sessions look at them for so long, each with its event stream, and open the
    page again and again.

    ``beside(runs)`` may give something more to await meanwhile.
    """
    found, runs = Crowd(), Runs(server.runs)
    live = submit(runs, [LONG, LONG.replace(init="kaiming_normal")])
    await until(lambda: all(run.state().get("step") for run in live))
    found.alone = await pace(live, seconds / 2)
    found.before = upkeep(server.process.pid)
    streams: list[list[float]] = []

    async def look(i: int) -> None:
        await asyncio.sleep(i * 0.1)  # fifty people do not come in one instant
        async with Visitor(server.port) as visitor:
            found.opened.append(await visitor.open("live", run=[run.id for run in live]))
            streams.append([])
            visitor.listen(live[i % 2].id, streams[-1])
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.sleep(min(10.0, seconds / 3))
                found.again.append(await visitor.open("live", run=[run.id for run in live]))
            found.failures += visitor.failures

    async def knock() -> None:
        while True:
            began = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"GET /_stcore/health HTTP/1.1\r\n"
                b"Host: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % server.port
            )
            assert (await reader.read()).endswith(b"ok")
            writer.close()
            found.health.append(time.monotonic() - began)
            await asyncio.sleep(0.5)

    knocking = asyncio.create_task(knock())
    measured = asyncio.create_task(pace(live, seconds))
    looking = [asyncio.create_task(look(i)) for i in range(visitors)]
    more = asyncio.ensure_future(beside(live)) if beside else None
    found.watched = await measured
    found.during = upkeep(server.process.pid)
    await asyncio.gather(*looking, *([more] if more else []))
    knocking.cancel()
    found.gaps = [
        later - earlier for moments in streams for earlier, later in zip(moments, moments[1:], strict=False)
    ]
    found.after = upkeep(server.process.pid)
    for run in live:
        run.request_stop()
    await until(lambda: all(run.state()["status"] not in LIVE for run in live))
    return found


async def turnover(server: Server, rounds: int, note: Callable[[int, Upkeep, Upkeep], None]) -> int:
    """Each round a new visitor launches two runs and stops them, by the page's buttons, and they are deleted;
    returns how many runs that made.

    After every round ``note(round, of the dashboard, of the supervisor)``.
    """
    runs, made = Runs(server.runs), 0
    for turn in range(rounds):
        before = set(runs.ids())
        async with Visitor(server.port) as visitor:
            await visitor.open()
            await visitor.click("launch")
            new = [runs.get(run_id) for run_id in set(runs.ids()) - before]
            made += len(new)
            await until(lambda new=new: any(run.state().get("step") for run in new))
            for run in new:
                await visitor.click(f"stop-{run.id}")
            assert not visitor.failures, visitor.failures
        await until(lambda new=new: all(run.state()["status"] not in LIVE for run in new))
        for run in new:
            run.delete()
        there = supervisors(server.runs)
        [supervisor] = [process for process in there if process.ppid() not in {other.pid for other in there}]
        await until(lambda pid=supervisor.pid: not upkeep(pid).zombies)  # a worker that has ended this moment
        note(turn, upkeep(server.process.pid), upkeep(supervisor.pid))
    return made
