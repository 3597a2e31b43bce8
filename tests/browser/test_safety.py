"""Text from run folders is shown as text on every page; damage, crashes, double clicks, passwords and readers, in a real browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page, expect

from core import launcher
from core.config import quick
from core.schema import LAYER_METRICS
from core.store import Run, Runs, RunWriter
from dashboard import text
from tests.browser.conftest import ROOT, Server, settle

STRINGS = [
    '<img src=x-xss onerror="window.__xss=1">',
    '"\'><svg onload=window.__xss=2>',
    '<a href="javascript:window.__xss=3" id=xss-a>click</a>',
    "[xss](javascript:window.__xss=4) ![x](x-xss)",
    "</script><script>window.__xss=5</script>",
    "<iframe src=javascript:parent.__xss=6></iframe>",
    "$\\href{javascript:window.__xss=7}{x}$ :red[x] %{customdata}",
    "<b>bold</b><br><style>*{display:none}</style>",
]
INJECTED = "img[src*='x-xss'], svg[onload], #xss-a, a[href^='javascript'], iframe[src^='javascript'], .js-plotly-plot [onerror], .stMarkdown style"


def wicked(runs: Runs, string: str, status: str, sweep: str = "", foreign: bool = False) -> Run:
    """A run whose every text is ``string``: name, tag, notes, log, error, phase, its sweep's name, the words of its config, its
    layers' names and kinds; ``foreign``: its model's and initialization's, too."""
    run = runs.create(quick().replace(name=string, tags=(string.replace(",", ";")[:40],), sweep=sweep), "running", pid=0, num_classes=10, chance=0.1)
    writer = RunWriter(run)
    names = pa.DictionaryArray.from_arrays(pa.array(range(2), pa.int32()), [string, string + "2"])
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), [string])
    values = np.full((len(LAYER_METRICS), 2), 1e-3, np.float32)
    values[LAYER_METRICS.index("nonfinite")] = 0
    for step in range(60):
        writer.step(step, 0, 2.3, 0.1, 1e-3, 0.1 * step)
        writer.layers(step, names, kinds, pa.array(range(2), pa.int32()), values)
    writer.epoch(0, 2.3, 0.1, 2.3, 0.1, 6.0)
    writer.compact()
    saved = json.loads((run.path / "config.json").read_text())
    saved["config"] |= dict.fromkeys(("data", "optimizer", "schedule", "precision", "device", *(("model", "init") if foreign else ())), string)
    (run.path / "config.json").write_text(json.dumps(saved | {"platform": string, "git": string}))
    (run.path / "log.txt").write_text(string + "\n")
    run.edit(notes=string)
    outcome = "not_converged" if status == "finished" else None
    writer.update(status=status, outcome=outcome, error=string, phase=string, step=60, total_steps=60, val_accuracy=0.1, validation_samples=359,
                  device=string, source=string if foreign else None, facts={"optimizer": string, "activations": {string: string}, "normalized": [string]})  # fmt: skip
    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("safety") / "runs", INITSCOPE_SLOTS="1")
    yield started
    started.close()


@pytest.fixture(scope="module")
def strings(server: Server) -> list[Run]:
    runs = Runs(server.runs)
    return [wicked(runs, string, ("finished", "failed")[i % 2], sweep=STRINGS[0] if i < 4 else "", foreign=i in (2, 5)) for i, string in enumerate(STRINGS)]


def test_strings_are_shown_as_text_on_every_page(page: Page, server: Server, strings: list[Run]) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    ids = [run.id for run in strings]
    sweep = urllib.parse.urlencode({"sweep": STRINGS[0]})
    addresses = [
        "?", "live?" + urllib.parse.urlencode([("run", run) for run in ids]), f"compare?a={ids[0]}&b={ids[2]}", f"compare?a={ids[5]}&b={ids[2]}",
        *(f"{name}?run={ids[i]}" for name in ("gradients", "diagnosis") for i in (0, 1, 2, 5)), f"gradients?run={ids[7]}",
        f"sweep?{sweep}", f"depth?{sweep}",  # Probe and Model show no run
    ]  # fmt: skip
    tooltips: list[str] = []
    for address in addresses:
        name = address.partition("?")[0]
        page.goto(f"{server.url}/{address}")
        settle(page)
        assert page.locator(INJECTED).count() == 0, (name, page.locator(INJECTED).first.evaluate("e => e.outerHTML"))
        assert page.evaluate("window.__xss") is None, name
        for chart in page.locator(".js-plotly-plot").all()[:4]:  # tooltips read a little HTML: hover in the middle of each
            chart.scroll_into_view_if_needed()
            chart.hover(force=True)
            page.wait_for_timeout(150)
            tooltips += page.locator(".hoverlayer").all_text_contents()
        assert page.evaluate("window.__xss") is None and page.locator(INJECTED).count() == 0, f"{name}, hovering"
        shown = page.locator("[data-testid=stAppViewContainer]").inner_text()
        if name == "live":
            assert STRINGS[0] in shown and STRINGS[3][:20] in shown, "names and errors are there, as typed"
            assert "window.__xss" in page.locator("[data-testid=stCode]").first.inner_text(), "the log too"
    assert any("<b>bold</b><br><style>" in told for told in tooltips), "a layer's name, as typed, in a tooltip"


def test_the_report_shows_strings_as_text(page: Page, server: Server, strings: list[Run], tmp_path) -> None:
    target = tmp_path / "report.html"
    subprocess.run([sys.executable, "-m", "core", "report", strings[0].id, strings[1].id, "--output", str(target), "--runs", str(server.runs)],
                   cwd=ROOT, check=True, capture_output=True, timeout=600)  # fmt: skip
    page.goto(target.as_uri())
    page.wait_for_timeout(1500)
    assert page.evaluate("window.__xss") is None and page.locator(INJECTED).count() == 0
    assert text.shorten(STRINGS[0], 20)[:10] in page.locator("body").inner_text()


def test_damage_is_told_for_its_run_alone(page: Page, server: Server, strings: list[Run]) -> None:
    """A run with cut rows, one with cut JSON: each page says which, without an error of its own; the others are drawn."""
    runs = Runs(server.runs)
    rows, state = wicked(runs, "cut rows", "finished"), wicked(runs, "cut state", "finished")
    for path in (*rows.path.glob("*.parquet"), state.path / "status.json"):
        path.write_bytes(path.read_bytes()[:100])
    for address in ("", f"live?run={rows.id}&run={state.id}&run={strings[0].id}", f"gradients?run={rows.id}", f"compare?a={rows.id}&b={strings[0].id}"):
        page.goto(f"{server.url}/{address}")
        settle(page)  # fails on an exception box
        shown = page.locator("[data-testid=stAppViewContainer]").inner_text()
        if address:
            assert "cannot be read" in shown, (address, shown[:500])
        if address == "" or "live" in address:
            assert "status.json is not valid JSON" in shown, (address, shown[:500])
        assert str(server.runs) not in shown, "nobody's business where the folder is"


def test_a_crash_is_shown_and_a_double_click_launches_once(page: Page, server: Server) -> None:
    runs = Runs(server.runs)
    before = set(runs.ids())
    page.goto(server.url)
    settle(page)
    page.get_by_role("button", name="Launch 2 runs").dblclick()
    page.wait_for_url("**/live?*")
    settle(page)
    new = sorted(set(runs.ids()) - before)
    assert len(new) == 2, "one double click, one launch"
    expect(page.get_by_text("running").first).to_be_visible(timeout=60_000)
    running = next(run for run in map(runs.get, new) if run.state()["status"] == "running")
    os.kill(running.state()["pid"], signal.SIGKILL)
    expect(page.get_by_text("crashed").first).to_be_visible(timeout=20_000)
    for run in map(runs.get, new):
        if run.info().live:
            launcher.stop(runs, run)


def test_a_password_and_a_reader(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The form, the way back to the page that was asked for, what a reader is offered, and the end of a session."""
    folder = tmp_path_factory.mktemp("doors") / "runs"
    run = wicked(Runs(folder), "a run", "stopped")
    server = Server(folder, INITSCOPE_PASSWORD="correct horse battery", INITSCOPE_READER_PASSWORD="only looking here")
    try:
        for password, may in (("correct horse battery", True), ("only looking here", False)):
            context = browser.new_context()
            page = context.new_page()
            page.goto(f"{server.url}/live?run={run.id}")
            page.get_by_label("Password").fill("wrong one")
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("alert")).to_have_text("That is not the password.")
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/live**")
            settle(page)
            expect(page.get_by_role("button", name="Launch", exact=False).first).to_be_visible() if may else expect(page.get_by_text("Read-only")).to_be_visible()
            assert page.get_by_role("button", name="Launch 2 runs").count() == int(may)
            page.get_by_role("link", name="Sign out").click()
            page.wait_for_timeout(1000)  # it may open in a tab of its own
            page.goto(server.url)
            expect(page.get_by_label("Password")).to_be_visible()
            context.close()
    finally:
        server.close()
