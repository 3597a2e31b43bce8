"""A real Streamlit server on a folder of its own, and a real Chromium in front of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, TimeoutError, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
TREE = os.pathsep.join(str(ROOT / name) for name in ("core", "dashboard"))
"""The server imports this tree, whatever is installed."""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CALM = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
"""A window whose pages do not move by themselves: drawing animations without a graphics card takes a fifth of
all that the browser does.
"""
expect.set_options(timeout=60_000)  # five seconds by default, too few for a page on a busy machine


CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first is Chromium without its windows: the same pages for two thirds of the processor's time."""


class Server:
    """A dashboard process and its address."""

    def __init__(
        self, runs: Path, script: str | Path = "dashboard/Home.py", port: int = 0, **environment: str
    ):
        self.runs = runs
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = runs.parent / f"{runs.name}-server.log"
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "streamlit",
                    "run",
                    str(script),
                    "--server.port",
                    str(self.port),
                    "--server.headless",
                    "true",
                ],
                cwd=ROOT,
                env={**os.environ, "INITSCOPE_RUNS": str(runs), "PYTHONPATH": TREE, **environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2) as answer,
            ):
                if answer.status == 200:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError(f"the dashboard did not start:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        end_supervisors(self.runs)


def end_supervisors(runs: Path) -> None:
    """End the supervisor of this folder and the workers it started: only processes that name the folder."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "initscope.scheduling.launcher" in command and str(runs.resolve()) in command:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for all browser tests; closed before others begin, because Playwright keeps an event loop
    running.
    """
    path = os.environ.get("INITSCOPE_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.fail("no Chromium found: install it, or set INITSCOPE_CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("dashboard") / "runs")
    yield started
    started.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A fresh tab of 1280 x 900; console errors fail the test at its end."""
    context = browser.new_context(**CALM)
    tab = context.new_page()
    tab.set_default_timeout(90_000)
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    yield tab
    context.close()
    assert not problems, problems


def follow(page: Page, link: str, address: str) -> None:
    """Click a link of the navigation until its page opens: a click that falls into a rerun of the page may be
    lost.
    """
    for _ in range(5):
        page.get_by_role("link", name=link).first.click()
        with contextlib.suppress(TimeoutError):
            page.wait_for_url(address, timeout=5_000)
            return
    pytest.fail(f"{link} did not open")


def settle(page: Page) -> None:
    """Wait until the script has run and nothing went wrong on the page."""
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    page.wait_for_timeout(300)
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    assert page.locator("[data-testid=stException]").count() == 0, page.locator(
        "[data-testid=stException]"
    ).first.inner_text()
