"""Many visitors, many launches: nobody meets an error, nothing is left behind. At length: ``python -m
tests.benchmarks.soak``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psutil
import pytest

from initscope.store import Runs
from tests.browser.conftest import Server
from tests.conftest import supervisors
from tests.safety.strain import HANDLES_KEPT, crowd, turnover
from tests.safety.visitors import Upkeep, upkeep

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("strain") / "runs", INITSCOPE_SLOTS="2")
    yield started
    started.close()


def test_ten_visitors_of_two_live_runs(server, monkeypatch, until):
    monkeypatch.setenv("INITSCOPE_SLOTS", "2")
    found = asyncio.run(crowd(server, visitors=10, seconds=6))
    assert found.failures == [] and len(found.opened) == 10 and len(found.again) >= 10
    assert found.watched > 0 and len(found.gaps) > 10, "the runs went on, and everybody saw it"
    until(
        lambda: upkeep(server.process.pid).handles <= found.before.handles + 11 * HANDLES_KEPT,
        what="connections are given back",
    )


def test_launched_stopped_and_deleted_again_and_again(server):
    """The first rounds fill caches and pools; after them nothing may grow."""
    notes: list[tuple[Upkeep, Upkeep]] = []
    made = asyncio.run(
        turnover(server, 8, lambda turn, dashboard, supervisor: notes.append((dashboard, supervisor)))
    )
    assert made == 16 and [info for info in Runs(server.runs).list() if info.live] == []
    for dashboard, supervisor in notes:
        assert dashboard.zombies == supervisor.zombies == 0
    (dashboard, supervisor), (dashboard_then, supervisor_then) = notes[-1], notes[2]
    assert supervisor.handles == supervisor_then.handles and supervisor.children <= 2
    assert dashboard.handles <= dashboard_then.handles + 4 + 5 * HANDLES_KEPT and dashboard.children <= 3
    assert (
        supervisor.megabytes < supervisor_then.megabytes + 10
        and dashboard.megabytes < dashboard_then.megabytes + 30
    )
    assert sum(process.status() == psutil.STATUS_ZOMBIE for process in supervisors(server.runs)) == 0
