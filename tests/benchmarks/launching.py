"""From a click on Launch to the first point on the chart, in a real Chromium; and how well a queue fills two
cores.

    python -m tests.benchmarks.launching                     # all of it, about four minutes
    python -m tests.benchmarks.launching --only click        # or packing

Clicks: the quick preset, two runs, on a page that is at rest. ``warm``: a supervisor is there. ``fresh``: the
dashboard has just been started, and the click comes as soon as its first page is at rest. ``cold``: the
supervisor has been ended a moment ago, as after a long pause. Packing: ten quick runs on two cores, from the
first one's queueing to the last one's end, against the best that two cores could do with runs of these
lengths (each from its worker's start to its end).
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page

from initscope.config import run_config
from initscope.scheduling import launcher
from initscope.store import Runs
from tests.benchmarks.dashboard import serving
from tests.benchmarks.in_browser import chromium, painted, rest, spread, tab, want
from tests.browser.conftest import Server, end_supervisors

CLICKED = (
    "(button) => button.addEventListener('click', () => (stopwatch.clicked = performance.now()), { capture: "
    "true, once: true })"
)


def click(page: Page, server: Server) -> dict[str, float]:
    """Milliseconds after a click on Launch until: the first run is queued, its worker begins, the first point
    is on the screen.
    """
    rest(page)
    button = page.get_by_role("button", name="Launch 2 runs")
    button.evaluate(CLICKED)
    button.click()
    page.wait_for_url("**/live?run=*")
    want(page, point=["point", None])
    shown = painted(page, "point")
    clicked, origin = page.evaluate("() => [stopwatch.clicked, performance.timeOrigin]")
    runs = Runs(server.runs)
    while any(info.live for info in runs.list()[:2]):
        page.wait_for_timeout(100)
    states = [info.state for info in runs.list()[:2]]
    zero = (origin + clicked) / 1000
    queued, begins = (1000 * (min(state[key] for state in states) - zero) for key in ("created", "started"))
    return {"queued": queued, "worker": begins, "point": shown - clicked}


def prepared(page: Page, server: Server) -> None:
    """Open Home and ask for the story, a short one."""
    page.goto(server.url)
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_label("Epochs", exact=True).press("Enter")
    page.get_by_role("button", name="Launch 2 runs").wait_for()
    rest(page)


def clicks(browser: Browser, folder: Path, rounds: int) -> None:
    """Each kind of click ``rounds`` times, in turns."""
    found: dict[str, list[dict[str, float]]] = {"warm": [], "cold": [], "fresh": []}
    with serving(folder / "runs") as server:
        for i, kind in itertools.product(range(rounds + 1), ("warm", "cold")):
            with tab(browser) as page:
                prepared(page, server)
                if kind == "warm":
                    page.wait_for_timeout(4000)  # it has loaded torch by now
                else:
                    end_supervisors(server.runs)
                times = click(page, server)
                if i:
                    found[kind].append(times)
    for i in range(rounds):
        with serving(folder / f"fresh{i}") as server, tab(browser) as page:
            prepared(page, server)
            found["fresh"].append(click(page, server))
    print(
        "| ms after the click, p50 and p99 | queued | | worker begins | | **first point on the chart** | "
        "|\n|---|---|---|---|---|---|---|"
    )
    for kind, times in found.items():
        print(
            f"| {kind} | "
            + " | ".join(spread([each[what] for each in times]) for what in ("queued", "worker", "point"))
            + " |",
            flush=True,
        )


def packing(folder: Path, count: int = 10) -> None:
    """How long a queue takes, and how long it need take."""
    runs = Runs(folder / "packing")
    os.environ["INITSCOPE_SLOTS"] = "2"
    began = time.time()
    made = launcher.submit(
        runs,
        [
            run_config.quick().replace(
                init=("default", "kaiming_normal")[i % 2], init_seed=i, record_every=1 + i % 3
            )
            for i in range(count)
        ],
    )
    while any(run.info().live for run in made):
        time.sleep(0.2)
    states = [run.state() for run in made]
    end_supervisors(runs.root)
    lengths = [state["ended"] - state["started"] for state in states]
    taken = max(state["ended"] for state in states) - began
    first = min(state["started"] for state in states) - began
    best = min(
        max(sum(chosen), sum(lengths) - sum(chosen))
        for half in range(count + 1)
        for chosen in itertools.combinations(lengths, half)
    )
    print(
        "\n| runs | lengths, s | taken, s | supervisor's start in it, s | best packing, s | ratio | without "
        "that start |\n|---|---|---|---|---|---|---|"
    )
    print(
        f"| {count} | {min(lengths):.1f} to {max(lengths):.1f} | {taken:.1f} | {first:.1f} | {best:.1f} | "
        f"{taken / best:.3f} | {(taken - first) / best:.3f} |",
        flush=True,
    )


def main(only: str | None, rounds: int) -> None:
    print(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory(prefix="initscope-") as name:
        if only in (None, "packing"):
            packing(Path(name))
        if only in (None, "click"):
            with chromium() as browser:
                clicks(browser, Path(name), rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["click", "packing"])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    main(asked.only, asked.rounds)
