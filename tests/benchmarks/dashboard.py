"""The dashboard in a real Chromium with 1,000 runs on disk: first paint, clicks, payloads, two long runs,
viewers, row to pixel.

    python -m tests.benchmarks.dashboard                 # all of it, about six minutes
    python -m tests.benchmarks.dashboard --only home     # or clicks, compare, live

``home``: milliseconds from the navigation to the frame that shows the sentence and the rows of the table, in
turns with a Streamlit page of a title and one chart, in a browser that has never been there and in one that
has. ``clicks``: for every page the bytes of its first load (all websocket messages, and every HTTP answer
that is no static file), its largest message, and the time from the browser's message to the last message of
the answer when a number in the sidebar's form is changed; on Home also when a row is chosen. ``compare``:
from the click on Compare to verdict and three maps, and to all six charts, of two runs of 100,000 steps that
this server has not opened yet. ``live``: processor time of the server while a training is watched by nobody,
one and ten, and the time from a row's file on disk to the frame that draws it.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pyarrow.parquet as pq
from playwright.sync_api import Browser, Page, Response

from initscope.config import run_config
from initscope.scheduling import launcher
from initscope.store import Run, Runs
from initscope.store.parts import parts
from tests.benchmarks import many_runs
from tests.benchmarks.in_browser import answered, chromium, painted, rest, spread, tab, want
from tests.browser.conftest import Server

PAGES = ("/", "/live", "/gradients", "/compare", "/probe", "/diagnosis", "/sweep", "/depth", "/model")
STATIC = ("/static/", "/assets/", "/component/", "/media/", "/favicon.png", "/_stcore/static/")
EMPTY = """
import plotly.graph_objects as go
import streamlit as st

st.title("Nothing but a chart")
st.plotly_chart(go.Figure(go.Scatter(y=[2.3, 1.1, 0.4])))
"""
LONG = 100_000
"""Steps of the two runs that are compared."""
WATCHED_SECONDS = 15
"""So long processor time is counted."""
ROW_CHARTS = (
    "() => [...document.querySelectorAll('.js-plotly-plot')].some((p) => p.data?.some((t) => t.meta?.table "
    "=== 'steps' && t.x.length > 5))"
)
WATCH_ROWS = """
() => {
  const charts = () => [...document.querySelectorAll(".js-plotly-plot")].filter((p) => p.data?.some((t) => t.meta?.table === "steps"))
  let seen = -1
  const look = () => {
    const chart = charts()[0]
    const last = Math.max(-1, ...(chart?.data ?? []).filter((t) => t.meta?.table === "steps").map((t) => t.x.at(-1) ?? -1))
    if (last > seen) {
      seen = last
      requestAnimationFrame(() => stopwatch.rows.push([performance.timeOrigin + performance.now(), last]))
    }
    requestAnimationFrame(look)
  }
  requestAnimationFrame(look)
}
"""  # noqa: E501
"""Notes when a frame has shown which last step of the first chart."""


# -- Home


def home(browser: Browser, ours: Server, empty: Server, rounds: int) -> None:
    """First useful paint, in turns with the empty page; the first visit to each server is not counted."""
    new: dict[str, list[float]] = {"empty": [], "Home": []}
    again: dict[str, list[float]] = {"empty": [], "Home": []}
    for i in range(rounds + 1):
        for name, server, what in (("empty", empty, ["chart", None]), ("Home", ours, ["table", None])):
            with tab(browser, useful=what) as page:
                for times in (new, again):
                    page.goto(server.url)
                    taken = painted(page, "useful")
                    rest(page)
                    if i:
                        times[name].append(taken)
    print(
        "| first useful paint, ms | p50 | p99 | ratio to the empty page, median of turns |\n|---|---|---|---|"
    )
    for words, times in (("a browser that has never been there", new), ("one that has", again)):
        ratio = statistics.median(a / b for a, b in zip(times["Home"], times["empty"], strict=True))
        print(f"| empty page with one chart, {words} | {spread(times['empty'])} | 1 |")
        print(f"| Home with 1,000 runs, {words} | {spread(times['Home'])} | {ratio:.2f} |", flush=True)


# -- clicks and payloads


def clicks(browser: Browser, server: Server, rounds: int) -> None:
    """Bytes of each page's first load, and what a change in the sidebar's form costs there."""
    print(
        "\n| page | first load, kB | largest message, kB | answer to a click, ms, p50 | p99 | server's "
        "processor time, ms, p50 | p99 | its kB |\n|---|---|---|---|---|---|---|---|"
    )
    process = psutil.Process(server.process.pid)
    for path in PAGES:
        with tab(browser) as page:
            answers: list[int] = []
            page.on("response", lambda response, answers=answers: answers.append(_dynamic(response)))
            page.goto(server.url + path)
            page.wait_for_selector("h1")
            rest(page)
            came = [size for _, size in page.evaluate("() => stopwatch.came")]
            cells = _answers(page, process, lambda i, page=page: _type_epochs(page, 6 + i % 2), rounds)
            print(
                f"| {path} | {(sum(came) + sum(answers)) / 1e3:.0f} | {max(came) / 1e3:.0f} | {cells} |",
                flush=True,
            )
    with tab(browser, useful=["table", None]) as page:
        page.goto(server.url)
        painted(page, "useful")
        sheet = page.locator("[data-testid=stDataFrame] canvas").first
        cells = _answers(
            page,
            process,
            lambda i: sheet.click(position={"x": 18, "y": 52 + 35 * (i % 8)}, force=True),
            rounds,
        )
        print(f"| / (a row is chosen) | | | {cells} |", flush=True)


def _dynamic(response: Response) -> int:
    """Bytes of an answer that the browser cannot keep; 0 for static files, and for a stream, whose rows are
    no first load.
    """
    path = urlsplit(response.url).path
    if (
        path.startswith(STATIC)
        or path == "/api/stream"
        or response.request.resource_type in ("document", "websocket")
    ):
        return 0
    return len(response.body())


def _type_epochs(page: Page, value: int) -> None:
    field = page.get_by_label("Epochs", exact=True)
    field.fill(str(value))
    field.press("Enter")


def _answers(page: Page, process: psutil.Process, act: Callable[[int], None], rounds: int) -> str:
    """Cells of the table: milliseconds and processor time of the answers, the first one aside, and the bytes
    of the largest.
    """
    taken, worked, sizes = [], [], []
    for i in range(rounds + 1):
        before = _worked(process)
        milliseconds, size, _ = answered(page, lambda i=i: act(i))
        if i:
            taken.append(milliseconds)
            worked.append(1000 * (_worked(process) - before))
            sizes.append(size)
    return f"{spread(taken)} | {spread(worked)} | {max(sizes) / 1e3:.0f}"


def _worked(process: psutil.Process) -> float:
    """Seconds of processor time so far."""
    times = process.cpu_times()
    return times.user + times.system


# -- two long runs


def compare(browser: Browser, folder: Path, rounds: int) -> None:
    """From the click to the pictures; each time with a server that has not read these runs."""
    verdict, everything, again, kilobytes = [], [], [], []
    for i in range(rounds):
        runs = folder / f"long{i}"
        many_runs.make(runs, 2, LONG)
        with serving(runs) as server, tab(browser) as page:
            page.goto(f"{server.url}/model")  # reads no run
            rest(page)
            for times in ((verdict, everything), (again, None)):
                want(page, maps=["maps", 3], charts=["charts", 6])
                page.evaluate("() => { stopwatch.came.length = 0 }")
                link = page.get_by_role("link", name="Compare").first
                link.evaluate(
                    "(link) => link.addEventListener('click', () => (stopwatch.clicked = "
                    "performance.now()), { capture: true, once: true })"
                )
                link.click()
                shown, all_six = painted(page, "maps"), painted(page, "charts")
                clicked = page.evaluate("() => stopwatch.clicked")
                rest(page)
                times[0].append(shown - clicked)
                if times[1] is not None:
                    times[1].append(all_six - clicked)
                    kilobytes.append(sum(size for _, size in page.evaluate("() => stopwatch.came")) / 1e3)
                    page.get_by_role("link", name="Sweep").first.click()  # another that reads none
                    rest(page)
    print(f"\n| Compare of two runs of {LONG:,} steps, ms after the click | p50 | p99 |\n|---|---|---|")
    print(f"| verdict and three maps, never opened before | {spread(verdict)} |")
    print(f"| all six charts, never opened before | {spread(everything)} |")
    print(
        f"| verdict and three maps, the second time | {spread(again)} |\n\n{max(kilobytes):.0f} kB came "
        "over the websocket.",
        flush=True,
    )


# -- watching a training


def live(browser: Browser, server: Server, seconds: float) -> None:
    """Processor time of the server by viewers, and row to pixel, over a real training."""
    [run] = launcher.submit(
        Runs(server.runs), [run_config.quick().replace(init="kaiming_normal", epochs=500)]
    )
    process = psutil.Process(server.process.pid)
    try:
        _until(lambda: run.state().get("step", 0) > 20)
        nobody = _cost(process)
        print("\n| viewers of a live run | server, % of a core | more than without a viewer |\n|---|---|---|")
        print(f"| 0 | {nobody:.1f} | |", flush=True)
        with contextlib.ExitStack() as tabs:
            pages: list[Page] = []
            for count in (1, 10):
                while len(pages) < count:
                    pages.append(tabs.enter_context(tab(browser)))
                    pages[-1].goto(f"{server.url}/live?run={run.id}")
                    _until(lambda: pages[-1].evaluate(ROW_CHARTS), pages[-1])
                pages[0].wait_for_timeout(3000)  # a live page is never at rest
                cost = _cost(process, pages[0])
                print(f"| {count} | {cost:.1f} | {cost - nobody:.1f} |", flush=True)
                if count == 1:
                    delays = row_to_pixel(pages[0], run, seconds)
    finally:
        launcher.stop(Runs(server.runs), run)
        _until(lambda: not run.info().live)
    print("\n| row to pixel, ms | p50 | p99 | rows |\n|---|---|---|---|")
    print(f"| from the file's time to the frame | {spread(delays)} | {len(delays)} |", flush=True)


def _cost(process: psutil.Process, page: Page | None = None) -> float:
    """Percent of a core that the server takes."""
    before, began = _worked(process), time.monotonic()
    page.wait_for_timeout(1000 * WATCHED_SECONDS) if page else time.sleep(WATCHED_SECONDS)
    return 100 * (_worked(process) - before) / (time.monotonic() - began)


def row_to_pixel(page: Page, run: Run, seconds: float) -> list[float]:
    """Milliseconds from the time of each part of ``steps`` on disk to the frame that draws its last row."""
    arrived: dict[int, float] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch_parts, args=(run, arrived, over))
    watcher.start()
    page.evaluate(WATCH_ROWS)
    page.wait_for_timeout(1000 * seconds)
    frames = page.evaluate("() => stopwatch.rows")
    over.set()
    watcher.join()
    drawn = [last for _, last in frames]
    delays = []
    for step, at in sorted(arrived.items()):
        frame = bisect.bisect_left(drawn, step)
        if drawn and step > drawn[0] and frame < len(frames):
            delays.append(frames[frame][0] - 1000 * at)
    return delays


def _watch_parts(run: Run, arrived: dict[int, float], over: threading.Event) -> None:
    """When the last row of each new part of ``steps`` came to disk: its file's time."""
    seen = -1
    while not over.is_set():
        for _, end, path in parts(run.path / "parts", "steps"):
            if end > seen:
                with contextlib.suppress(FileNotFoundError):  # merged away meanwhile
                    at = path.stat().st_mtime_ns / 1e9
                    rows = pq.read_table(path, columns=["step"])["step"].to_pylist()
                    if seen >= 0:
                        arrived.update(dict.fromkeys(rows[-1:], at))
                    seen = end
        time.sleep(0.02)


def _until(condition: Callable[[], object], page: Page | None = None, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        page.wait_for_timeout(50) if page else time.sleep(0.05)


# -- all of it


@contextlib.contextmanager
def serving(runs: Path, script: str | Path = "dashboard/Home.py") -> Iterator[Server]:
    server = Server(runs, script)
    try:
        yield server
    finally:
        server.close()


def main(only: str | None, rounds: int, seconds: float) -> None:
    print(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory(prefix="initscope-") as name, chromium() as browser:
        folder = Path(name)
        many_runs.make(folder / "runs")
        (folder / "empty.py").write_text(EMPTY)
        with serving(folder / "runs") as ours:
            if only in (None, "home"):
                with serving(folder / "none", folder / "empty.py") as empty:
                    home(browser, ours, empty, rounds)
            if only in (None, "clicks"):
                clicks(browser, ours, rounds)
            if only in (None, "live"):
                live(browser, ours, seconds)
        if only in (None, "compare"):
            compare(browser, folder, max(2, rounds // 2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["home", "clicks", "compare", "live"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60, help="of training watched for row to pixel")
    asked = parser.parse_args()
    main(asked.only, asked.rounds, asked.seconds)
