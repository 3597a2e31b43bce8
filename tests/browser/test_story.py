"""The whole story in a real browser: launch from the sidebar, watch, compare, read the verdict."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Page, expect

from initscope.config.run_config import quick
from initscope.scheduling import launcher
from initscope.store import Runs
from tests.browser.conftest import Server, follow, settle

FIRST_CURVE = (
    "() => { const p = document.querySelector('.js-plotly-plot'); return p && p.data ? p.data[0].x.length : "
    "0 }"
)
X_RANGE = "() => document.querySelector('.js-plotly-plot').layout.xaxis.range"
HEATMAPS = (
    "() => [...document.querySelectorAll('.js-plotly-plot')].filter(p => p.data && p.data.some(t => t.type "
    "=== 'heatmap' && t.z.length === 16)).length"
)


def wait_until(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.2)
    pytest.fail(f"not within {seconds} s: {what}")


def wait_in_page(page: Page, script: str, good, seconds: float = 240) -> None:
    """Poll ``script`` until ``good(value)``. (wait_for_function needs eval, which the page's security policy
    forbids.)
    """
    deadline = time.monotonic() + seconds
    while not good(value := page.evaluate(script)):
        assert time.monotonic() < deadline, f"not within {seconds} s: {script} is {value}"
        page.wait_for_timeout(200)


def zoom_in(page: Page) -> list[float]:
    """Drag a box over the middle of the first chart, as a person does; returns the range it leaves. A page
    that moves under the hand (the sentence above the charts changes when training begins) is tried again, as
    a person would.
    """
    for _ in range(5):
        area = page.locator(".js-plotly-plot .nsewdrag").first
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
        page.mouse.up()
        page.wait_for_timeout(300)
        zoomed = page.evaluate(X_RANGE)
        if zoomed[0] > 0:
            return zoomed
    pytest.fail("the chart did not zoom")


def open_page(page: Page, server: Server, path: str) -> None:
    page.goto(server.url + path)
    settle(page)


def test_launch_watch_compare(page: Page, server: Server) -> None:
    open_page(page, server, "/")
    expect(page.get_by_role("heading", name="Is it the initialization?")).to_be_visible()
    expect(page.get_by_text("No runs yet")).to_be_visible()
    wait_in_page(
        page, "() => Boolean(window.Plotly)", bool
    )  # read ahead: nobody waits for it after the click

    page.get_by_role("button", name="Launch 2 runs").click()
    page.wait_for_url(re.compile(r"/live\?run="))
    page.evaluate("window.sameDocument = true")

    # The curve of a live run grows, on the same document, and a zoom survives the data.
    wait_in_page(page, FIRST_CURVE, lambda points: points > 2)
    zoomed = zoom_in(page)
    before = page.evaluate(FIRST_CURVE)
    wait_in_page(page, FIRST_CURVE, lambda points: points > before + 5)
    assert page.evaluate("window.sameDocument") is True
    assert page.evaluate(X_RANGE) == zoomed

    runs = Runs(server.runs)
    assert sorted(info.init for info in runs.list()) == ["default", "kaiming_normal"]
    wait_until(lambda: not any(info.live for info in runs.list()), 600, "both runs end")
    outcomes = {info.init: info.outcome for info in runs.list()}
    assert outcomes == {"default": "not_converged", "kaiming_normal": "converged"}

    follow(page, "Compare", "**/compare?*")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text(
        "fixed: 1 of 1 converge with Kaiming normal, 0 of 1 with PyTorch default"
    )
    wait_in_page(page, HEATMAPS, lambda maps: maps >= 3)  # both runs and their ratio
    ranges = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data).filter(t => t.type "
        "=== 'heatmap').slice(0, 2).map(t => [t.zmin, t.zmax])"
    )
    assert ranges[0] == ranges[1], "both heatmaps share one colour scale"

    # A link opens the same comparison, in another tab too.
    address = page.url
    assert "a=" in address and "b=" in address
    page.get_by_role("button", name="Swap").click()
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("worse")
    page.goto(address)
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("fixed")

    # One seed a side is an anecdote; one click makes it a sweep.
    page.get_by_role("button", name="Rule out luck: 5 seeds each").click()
    page.wait_for_url(re.compile(r"/sweep\?sweep="))
    expect(page.get_by_text("0 of 10 runs have ended")).to_be_visible()
    sweep = [info for info in runs.list() if info.config["sweep"]]
    assert sorted((info.init, info.config["init_seed"]) for info in sweep) == [
        (init, seed) for init in ("default", "kaiming_normal") for seed in range(5)
    ]
    for info in reversed(sweep):
        launcher.stop(runs, runs.get(info.run))
    wait_until(lambda: not any(info.live for info in runs.list()), 60, "the sweep stops")


def test_a_mistyped_value_is_refused_beside_its_field(page: Page, server: Server) -> None:
    open_page(page, server, "/")
    rate = page.get_by_label("Learning rate", exact=True)
    rate.fill("fast")
    rate.press("Enter")
    expect(page.get_by_text("learning_rate must be a number above 0")).to_be_visible()
    expect(page.get_by_role("button", name="Launch", exact=True)).to_be_disabled()
    rate.fill("3e-4")
    rate.press("Enter")
    expect(page.get_by_role("button", name="Launch 2 runs")).to_be_enabled()


def test_stop_from_the_sidebar_and_rename(page: Page, server: Server) -> None:
    runs = Runs(server.runs)
    known = {info.run for info in runs.list()}
    open_page(page, server, "/")
    page.get_by_label("Epochs", exact=True).fill("500")
    page.get_by_label("Epochs", exact=True).press("Enter")
    page.get_by_role("button", name="Launch 2 runs").click()
    page.wait_for_url(re.compile(r"/live"))
    settle(page)
    expect(page.get_by_label("Epochs", exact=True)).to_have_value("500")  # what was typed stays
    wait_until(
        lambda: sum(info.status == "running" and info.state.get("step", 0) > 0 for info in runs.list()) == 2,
        240,
        "both train",
    )
    sidebar = page.locator("[data-testid=stSidebar]")
    other = runs.create(
        quick().replace(name="from elsewhere")
    )  # what another process queues shows up by itself
    expect(sidebar.get_by_text("from elsewhere · queued")).to_be_visible(timeout=120_000)
    launcher.stop(runs, other)
    other.delete()
    expect(sidebar.get_by_text("from elsewhere")).to_have_count(0, timeout=120_000)
    for _ in range(2):
        sidebar.get_by_role("button", name="Stop").first.click()
        page.wait_for_timeout(3000)
    wait_until(lambda: not any(info.live for info in runs.list()), 240, "both stop")
    fresh = [info for info in runs.list() if info.run not in known]
    assert [info.status for info in fresh] == ["stopped", "stopped"]
    assert all((server.runs / info.run / "checkpoint.pt").exists() for info in fresh)


def test_names_are_shown_as_text(page: Page, server: Server) -> None:
    runs = Runs(server.runs)
    name = '<img src=x onerror="window.hit=1"> **bold** <b>x</b>'
    runs.get(runs.list()[0].run).edit(name=name)
    for path in ("/", "/live", "/gradients", "/compare"):
        open_page(page, server, path)
        page.wait_for_timeout(500)
        assert page.evaluate("window.hit") is None
        assert page.locator("img[src=x]").count() == 0
