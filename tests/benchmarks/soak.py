"""Load and wear: 50 browser sessions on two live runs, 5,000 runs on disk, and hundreds of launches, stops
and deletions in a row.

    python -m tests.benchmarks.soak [--sessions 50] [--chromium 4] [--seconds 60] [--runs 5000] [--rounds 100]

Each part on a dashboard of its own. Prints seconds, steps a second, file handles, memory and zombies; memory
is what no file stands behind. A part whose number is 0 is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.async_api import async_playwright

from initscope.store import Run, Runs
from tests.browser.conftest import FLAGS, ROOT, Server
from tests.safety.damage import template
from tests.safety.strain import crowd, turnover
from tests.safety.visitors import Upkeep, Visitor, upkeep


def spread(values: list[float]) -> str:
    """Median, 95th percentile and largest."""
    return (
        "nothing"
        if not values
        else " / ".join(f"{value:.2f}" for value in (*np.percentile(values, (50, 95)), max(values)))
    )


async def browsers(server: Server, count: int, seconds: float, live: list[Run]) -> list[str]:
    """So many real pages on the live runs for so long; what each says of itself."""
    told = []
    async with async_playwright() as playwright:
        path = os.environ.get("INITSCOPE_CHROMIUM") or shutil.which("chromium")
        chromium = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        for i in range(count):
            page, errors = await (await chromium.new_context()).new_page(), []
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            await page.goto(
                f"{server.url}/live?" + "&".join(f"run={run.id}" for run in live), timeout=180_000
            )
            await page.wait_for_selector(".js-plotly-plot", timeout=180_000)
            told.append((page, errors))
            await asyncio.sleep(1 + i * 0.1)
        drawn = (
            "() => Math.max(...[...document.querySelectorAll('.js-plotly-plot')].map((chart) => "
            "Number(chart.dataset.drawn)))"
        )
        before = [await page.evaluate(drawn) for page, _ in told]
        await asyncio.sleep(seconds / 2)
        result = [
            f"{await page.evaluate(drawn) - first} redraws, {len(errors)} errors"
            for (page, errors), first in zip(told, before, strict=True)
        ]
        await chromium.close()
    return result


def load(folder: Path, sessions: int, chromium: int, seconds: float) -> None:
    server = Server(folder / "crowd", INITSCOPE_SLOTS="2")
    pages: list[str] = []
    try:

        async def beside(live: list[Run]) -> None:
            pages.extend(await browsers(server, chromium, seconds, live))

        found = asyncio.run(crowd(server, sessions - chromium, seconds, beside if chromium else None))
    finally:
        server.close()
    print(
        f"{sessions} sessions, {chromium} of them Chromium, on two live runs; seconds as median / 95 % / most"
    )
    print(
        f"  first look {spread(found.opened)}; again {spread(found.again)}; health {spread(found.health)}; "
        f"between messages of a stream {spread(found.gaps)}"
    )
    print(
        f"  training {found.alone:.1f} steps/s before, {found.watched:.1f} meanwhile; errors on pages: "
        f"{len(found.failures)} {found.failures[:3]}"
    )
    print(f"  Chromium: {pages}")
    print(f"  dashboard before {found.before}\n  meanwhile {found.during}\n  after {found.after}")


def many(folder: Path, count: int) -> None:
    runs = Runs(folder / "many")
    one = template(runs)
    for i in range(count - 1):
        shutil.copytree(one.path, runs.root / f"{one.id}-{i:04d}")
    began = time.monotonic()
    command = [sys.executable, "-m", "initscope", "runs", "--json", "--runs", str(runs.root)]
    listed = json.loads(
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    listing = time.monotonic() - began
    server = Server(runs.root)

    async def visit() -> list[float]:
        async with Visitor(server.port) as visitor:
            seconds = [
                await visitor.open(page)
                for page in ("", "", "live", "gradients", "compare", "diagnosis", "sweep", "")
            ]
            assert not visitor.failures, visitor.failures
            return seconds

    try:
        first = asyncio.run(visit())
        second = asyncio.run(visit())
        kept = upkeep(server.process.pid)
    finally:
        server.close()
    print(f"{len(listed['runs'])} runs on disk: `core runs` {listing:.1f} s")
    print(
        "  Home, Home again, Live, Gradients, Compare, Diagnosis, Sweep, Home, seconds:",
        ", ".join(f"{value:.2f}" for value in first),
    )
    print(
        "  the same for a second visitor:",
        ", ".join(f"{value:.2f}" for value in second),
        f"\n  dashboard {kept}",
    )


def wear(folder: Path, rounds: int) -> None:
    server = Server(folder / "wear", INITSCOPE_SLOTS="2")
    notes: list[tuple[Upkeep, Upkeep]] = []

    def note(turn: int, dashboard: Upkeep, supervisor: Upkeep) -> None:
        notes.append((dashboard, supervisor))
        if turn % 10 == 9:
            print(
                f"  after {turn + 1} rounds: dashboard {tuple(dashboard)}, supervisor {tuple(supervisor)}",
                flush=True,
            )

    print("handles, threads, children, zombies, MB:")
    began = time.monotonic()
    try:
        made = asyncio.run(turnover(server, rounds, note))
        minutes = (time.monotonic() - began) / 60
        left = [
            name
            for name in os.listdir(server.runs)
            if not name.startswith(".supervisor") and name != ".queue"
        ]
        time.sleep(130)  # so long Streamlit keeps what it had of sessions that have gone
        asyncio.run(_look(server))
        rest = upkeep(server.process.pid)
    finally:
        server.close()
    print(
        f"{made} launches, {made} stops, {made} deletions in {minutes:.1f} minutes; left in the folder: "
        f"{left}"
    )
    print(
        f"  zombies at any look: {max(n.zombies for pair in notes for n in pair)}; two minutes later the "
        f"dashboard: {tuple(rest)}"
    )


async def _look(server: Server) -> None:
    async with Visitor(server.port) as visitor:
        await visitor.open()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("sessions", 50), ("chromium", 4), ("seconds", 60), ("runs", 5000), ("rounds", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    os.environ["INITSCOPE_SLOTS"] = "2"
    print("load of the machine before:", os.getloadavg())
    with tempfile.TemporaryDirectory() as folder:
        if given.sessions:
            load(Path(folder), given.sessions, given.chromium, given.seconds)
        if given.runs:
            many(Path(folder), given.runs)
        if given.rounds:
            wear(Path(folder), given.rounds)
    print("load of the machine after:", os.getloadavg())


if __name__ == "__main__":
    main()
