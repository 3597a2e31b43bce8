"""A dashboard whose runs are in an object store, in a real browser: another machine's runs, live, stopped,
compared and asked in SQL.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from initscope.store import Runs
from initscope.store.query import RECIPES
from tests.browser.conftest import ROOT, Server, end_supervisors, follow, settle
from tests.browser.test_story import FIRST_CURVE, HEATMAPS, open_page, wait_in_page, wait_until

pytest_plugins = ("tests.s3",)


@pytest.fixture
def elsewhere(machine) -> Runs:
    """The runs as the machine that trains has them."""
    return machine("trains")


@pytest.fixture
def server(elsewhere, machine, s3) -> Iterator[Server]:
    """A dashboard on another machine, which has seen none of them."""
    runs = machine("looks")
    started = Server(runs.root, **s3.on(runs))
    yield started
    started.close()
    end_supervisors(elsewhere.root)


def test_runs_of_another_machine(
    page: Page, server: Server, elsewhere: Runs, s3, tiny, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(epochs=100_000).to_dict()))
    sweep = [
        "sweep",
        "--config",
        config,
        "--inits",
        "default,kaiming_normal",
        "--seeds",
        "1",
        "--stop-when-certain",
        "false",
    ]
    environment = {**s3.on(elsewhere), "INITSCOPE_SLOTS": "2"}
    training = subprocess.Popen(
        [sys.executable, "-m", "initscope", *map(str, sweep)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        open_page(page, server, "/")
        expect(page.get_by_text("No runs yet")).to_be_visible()
        wait_until(
            lambda: sum(info.state.get("step", 0) > 0 for info in elsewhere.list()) == 2, 240, "both train"
        )
        wait_until(lambda: len(Runs(server.runs).list()) == 2, 60, "the other machine has heard of them")
        open_page(page, server, "/")
        sidebar = page.locator("[data-testid=stSidebar]")
        expect(sidebar.get_by_text("In progress")).to_be_visible()
        expect(sidebar.get_by_role("button", name="Stop")).to_have_count(2)
        open_page(page, server, "/live?" + "&".join(f"run={info.run}" for info in elsewhere.list()))
        wait_in_page(page, FIRST_CURVE, lambda points: points > 2)
        before = page.evaluate(FIRST_CURVE)
        wait_in_page(page, FIRST_CURVE, lambda points: points > before + 5)
        _stop_both(page, elsewhere)
        wait_until(
            lambda: [info.status for info in elsewhere.list()] == ["stopped"] * 2,
            120,
            "both stop where they train",
        )
        assert training.wait(60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            training.kill()
        training.wait()

    follow(page, "Compare", "**/compare?*")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text(re.compile("default|kaiming_normal"))
    wait_in_page(page, HEATMAPS.replace("=== 16", "=== 11"), lambda maps: maps >= 3)  # VGG11

    # Launched from the page it trains on the machine that serves it, and the other one sees it.
    sidebar.get_by_label("Epochs", exact=True).fill("500")
    sidebar.get_by_label("Epochs", exact=True).press("Enter")
    sidebar.get_by_role("button", name="Launch 2 runs").click()
    page.wait_for_url("**/live?*")
    wait_until(
        lambda: sum(info.status == "running" for info in elsewhere.list()) > 0,
        240,
        "the other machine sees it run",
    )
    _stop_both(page, elsewhere)
    wait_until(lambda: [info.status for info in elsewhere.list()] == ["stopped"] * 4, 120, "all have stopped")
    _ask_by_click(page, server, tmp_path)
    assert s3.secret not in server.log.read_text()


def _stop_both(page: Page, elsewhere: Runs) -> None:
    """The two runs in progress, one after the other, from the sidebar."""
    for left in (1, 0):
        page.locator("[data-testid=stSidebar]").get_by_role("button", name="Stop").first.click()
        wait_until(
            lambda left=left: sum(info.status in ("queued", "running") for info in elsewhere.list()) == left,
            120,
            "one fewer",
        )
        settle(page)


def _ask_by_click(page: Page, server: Server, tmp_path: Path) -> None:
    """The Query page: a recipe, a question, and what is refused."""
    open_page(page, server, "/query")
    page.get_by_role("button", name=RECIPES["worst"].title).click()
    settle(page)
    expect(page.get_by_label("One SELECT")).to_have_value(RECIPES["worst"].sql)
    expect(page.get_by_role("heading", level=1)).to_have_text("4 rows")
    expect(page.locator("[data-testid=stDataFrame]")).to_have_count(1)

    def ask(sql: str) -> None:
        page.get_by_label("One SELECT").fill(sql)
        page.get_by_label("One SELECT").press("Control+Enter")
        settle(page)

    ask("SELECT run, max(step) AS last FROM steps GROUP BY run")
    expect(page.get_by_role("heading", level=1)).to_have_text("4 rows")
    target = tmp_path / "out.csv"
    for sql in (f"COPY runs TO '{target}'", "SELECT * FROM read_csv('/etc/passwd')"):
        ask(sql)
        expect(page.get_by_role("heading", level=1)).to_have_text("No answer")
        expect(page.locator("[data-testid=stAlert]")).to_have_count(1)
        expect(page.locator("[data-testid=stDataFrame]")).to_have_count(0)
        assert "root:" not in page.locator("body").inner_text()
    assert not target.exists()
