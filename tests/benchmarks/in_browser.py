"""What the benchmarks in Chromium share: the browser, tabs with a stopwatch in them, and percentiles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import FLAGS

STOPWATCH = """
(() => {
  const watch = (window.stopwatch = { sent: [], came: [], painted: {}, wanted: {}, rows: [] })
  const size = (data) => data.byteLength ?? data.size ?? data.length
  const Real = window.WebSocket
  window.WebSocket = class extends Real {
    constructor(...given) {
      super(...given)
      this.addEventListener("message", (event) => watch.came.push([performance.now(), size(event.data)]))
    }
    send(data) {
      watch.sent.push([performance.now(), size(data)])
      super.send(data)
    }
  }
  const ready = {
    // Something is written on the sheet of the table: not all of its pixels are the same.
    table: () => {
      const canvas = document.querySelector("[data-testid=stDataFrame] canvas")
      if (!canvas?.width || !document.querySelector("h1")) return false
      const { data } = canvas.getContext("2d").getImageData(0, 0, Math.min(canvas.width, 300), Math.min(canvas.height, 150))
      for (let i = 4; i < data.length; i += 4) if (data[i] !== data[0] || data[i + 3] !== data[3]) return true
      return false
    },
    chart: () => Boolean(document.querySelector(".js-plotly-plot .scatterlayer path, .js-plotly-plot .heatmaplayer image")),
    charts: (count) => [...document.querySelectorAll(".js-plotly-plot")].filter((p) => p.querySelector("path.js-line, .heatmaplayer image, .point")).length >= count,
    maps: (count) => document.querySelectorAll(".js-plotly-plot .heatmaplayer image").length >= count && Boolean(document.querySelector("h1")),
    point: () => [...document.querySelectorAll(".js-plotly-plot")].some((p) => p.data?.some((t) => t.meta?.table === "steps" && t.x?.length > 0)),
  }
  // What is true when a frame begins is on the screen when the next one does.
  const look = () => {
    for (const [name, [what, argument]] of Object.entries(watch.wanted)) {
      if (!(name in watch.painted) && document.body && ready[what](argument)) {
        watch.painted[name] = null
        requestAnimationFrame(() => (watch.painted[name] = performance.now()))
      }
    }
    requestAnimationFrame(look)
  }
  requestAnimationFrame(look)
})()
"""  # noqa: E501
"""Runs before any script of a page. Times are milliseconds since the navigation began."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium: INITSCOPE_CHROMIUM, or the one on the path."""
    path = os.environ.get("INITSCOPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def tab(browser: Browser, **wanted: Any) -> Iterator[Page]:
    """A tab of a browser that has never been here, 1280 x 900, whose stopwatch waits for what is ``wanted``:
    {name: [what, argument]}.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(300_000)
    prepare(page, **wanted)
    yield page
    context.close()


def prepare(page: Page, **wanted: Any) -> None:
    """Put the stopwatch into every document that this tab opens."""
    page.add_init_script(STOPWATCH)
    for name, what in wanted.items():
        page.add_init_script(f"window.stopwatch.wanted[{json.dumps(name)}] = {json.dumps(what)}")


def want(page: Page, **wanted: Any) -> None:
    """Ask the stopwatch of the open document for something more."""
    page.evaluate(
        "(wanted) => { for (const name of Object.keys(wanted)) delete stopwatch.painted[name]; "
        "Object.assign(stopwatch.wanted, wanted) }",
        {name: list(what) for name, what in wanted.items()},
    )


def painted(page: Page, name: str, seconds: float = 300) -> float:
    """When it was on the screen: milliseconds since the navigation began. Raises TimeoutError."""
    for _ in range(int(seconds * 1000 / 20)):
        if (at := page.evaluate("(name) => stopwatch.painted[name] ?? null", name)) is not None:
            return at
        page.wait_for_timeout(20)
    raise TimeoutError(f"not painted within {seconds} s: {name}")


def rest(page: Page, quiet: int = 700) -> None:
    """Wait until the script has run and nothing has come for so many milliseconds."""
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    while page.evaluate(
        "(quiet) => performance.now() - Math.max(0, ...[...stopwatch.came, ...stopwatch.sent].map(([at]) => "
        "at)) < quiet",
        quiet,
    ):
        page.wait_for_timeout(50)
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")


def answered(page: Page, act: Any) -> tuple[float, int, int]:
    """(milliseconds from the first message that ``act`` sends to the last one that comes back, bytes that
    came, largest message).
    """
    rest(page)
    page.evaluate("() => { stopwatch.sent.length = stopwatch.came.length = 0 }")
    act()
    while not page.evaluate("() => stopwatch.sent.length && stopwatch.came.length"):
        page.wait_for_timeout(20)
    rest(page)
    sent, came = page.evaluate("() => [stopwatch.sent, stopwatch.came]")
    return came[-1][0] - sent[0][0], sum(size for _, size in came), max(size for _, size in came)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and 99th percentile (the largest, while there are fewer than a hundred) as two cells of a
    table.
    """
    return (
        f"{np.percentile(values, 50):,.{digits}f} | {np.percentile(values, 99, method='higher'):,.{digits}f}"
    )
