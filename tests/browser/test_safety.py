"""Text from run folders is shown as text on every page; damage, crashes, double clicks, passwords and
readers, in a real browser.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from initscope.config.run_config import quick
from initscope.scheduling import launcher
from initscope.schema import LAYER_METRICS
from initscope.store import Run, Runs, RunWriter
from initscope.store.files import alive
from initscope_dashboard.content import formatting
from tests.browser.conftest import CALM, ROOT, Server, settle
from tests.conftest import supervisors
from tests.safety.damage import mutate, template
from tests.safety.test_together import census

STRINGS = [
    '<img src=x-xss onerror="window.__xss=1">',
    "\"'><svg onload=window.__xss=2>",
    '<a href="javascript:window.__xss=3" id=xss-a>click</a>',
    "[xss](javascript:window.__xss=4) ![x](x-xss)",
    "</script><script>window.__xss=5</script>",
    "<iframe src=javascript:parent.__xss=6></iframe>",
    "$\\href{javascript:window.__xss=7}{x}$ :red[x] %{customdata}",
    "<b>bold</b><br><style>*{display:none}</style>",
    "http://x-xss.io a@x-xss.io",
]
INJECTED = (
    "img[src*='x-xss'], svg[onload], #xss-a, a[href^='javascript'], iframe[src^='javascript'], "
    "a[href*='x-xss.io'], "
    ".js-plotly-plot [onerror], .stMarkdown style"
)


def wicked(runs: Runs, string: str, status: str, sweep: str = "", foreign: bool = False) -> Run:
    """A run whose every text is ``string``: name, tag, notes, log, error, phase, its sweep's name, the words
    of its config, its layers' names and kinds; ``foreign``: its model's and initialization's, too.
    """
    run = runs.create(
        quick().replace(name=string, tags=(string.replace(",", ";")[:40],), sweep=sweep),
        "running",
        pid=0,
        num_classes=10,
        chance=0.1,
    )
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
    saved["config"] |= dict.fromkeys(
        ("data", "optimizer", "schedule", "precision", "device", *(("model", "init") if foreign else ())),
        string,
    )
    (run.path / "config.json").write_text(json.dumps(saved | {"platform": string, "git": string}))
    (run.path / "log.txt").write_text(string + "\n")
    run.edit(notes=string)
    outcome = "not_converged" if status == "finished" else None
    writer.update(
        status=status,
        outcome=outcome,
        error=string,
        phase=string,
        step=60,
        total_steps=60,
        val_accuracy=0.1,
        validation_samples=359,
        device=string,
        source=string if foreign else None,
        facts={"optimizer": string, "activations": {string: string}, "normalized": [string]},
    )
    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("safety") / "runs", INITSCOPE_SLOTS="1")
    yield started
    started.close()


@pytest.fixture(scope="module")
def strings(server: Server) -> list[Run]:
    runs = Runs(server.runs)
    return [
        wicked(
            runs,
            string,
            ("finished", "failed")[i % 2],
            sweep=STRINGS[0] if i < 4 else "",
            foreign=i in (2, 5),
        )
        for i, string in enumerate(STRINGS)
    ]


def test_strings_are_shown_as_text_on_every_page(page: Page, server: Server, strings: list[Run]) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    ids = [run.id for run in strings]
    sweep = urllib.parse.urlencode({"sweep": STRINGS[0]})
    addresses = [
        "?",
        "live?" + urllib.parse.urlencode([("run", run) for run in ids]),
        f"compare?a={ids[0]}&b={ids[2]}",
        f"compare?a={ids[5]}&b={ids[2]}",
        *(f"{name}?run={ids[i]}" for name in ("gradients", "diagnosis") for i in (0, 1, 2, 5)),
        f"gradients?run={ids[7]}",
        f"sweep?{sweep}",
        f"depth?{sweep}",  # Probe and Model show no run
    ]
    for address in addresses:
        name = address.partition("?")[0]
        page.goto(f"{server.url}/{address}")
        settle(page)
        assert page.locator(INJECTED).count() == 0, (
            name,
            page.locator(INJECTED).first.evaluate("e => e.outerHTML"),
        )
        assert page.evaluate("window.__xss") is None, name
        charts = page.locator(".js-plotly-plot").all()[:4]
        for chart in charts:  # tooltips read a little HTML
            chart.hover(force=True)
            page.wait_for_timeout(100)
        assert page.evaluate("window.__xss") is None and page.locator(INJECTED).count() == 0, (
            f"{name}, hovering"
        )
        shown = page.locator("[data-testid=stAppViewContainer]").inner_text()
        if name == "live":
            assert STRINGS[0] in shown and STRINGS[3][:20] in shown, "names and errors are there, as typed"
            assert "window.__xss" in page.locator("[data-testid=stCode]").first.inner_text(), "the log too"
            assert STRINGS[8] in shown.replace("\u2060", ""), "an address is text, and leads nowhere"
        if address == f"gradients?run={ids[7]}":
            told = hovered(page, charts, "<b>bold</b><br><style>")
            assert told, "a layer's name, as typed, in a tooltip"


def hovered(page: Page, charts: list[Locator], words: str, seconds: float = 60) -> bool:
    """Whether a tooltip says ``words`` while the pointer wanders over the charts."""
    end, places = time.monotonic() + seconds, random.Random(0)
    while time.monotonic() < end:
        chart = places.choice(charts)
        chart.scroll_into_view_if_needed()
        if (box := chart.bounding_box()) is not None:
            x, y = places.uniform(0.2, 0.8), places.uniform(0.2, 0.8)
            chart.hover(force=True, position={"x": x * box["width"], "y": y * box["height"]})
        page.wait_for_timeout(200)
        if any(words in text for text in page.locator(".hoverlayer").all_text_contents()):
            return True
    return False


def test_the_report_shows_strings_as_text(page: Page, server: Server, strings: list[Run], tmp_path) -> None:
    target = tmp_path / "report.html"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "initscope",
            "report",
            strings[0].id,
            strings[1].id,
            "--output",
            str(target),
            "--runs",
            str(server.runs),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=600,
    )
    page.goto(target.as_uri())
    page.wait_for_timeout(1500)
    assert page.evaluate("window.__xss") is None and page.locator(INJECTED).count() == 0
    assert formatting.shorten(STRINGS[0], 20)[:10] in page.locator("body").inner_text()


def test_damage_is_told_for_its_run_alone(page: Page, server: Server, strings: list[Run]) -> None:
    """A run with cut rows, one with cut JSON: each page says which, without an error of its own; the others
    are drawn.
    """
    runs = Runs(server.runs)
    rows, state = wicked(runs, "cut rows", "finished"), wicked(runs, "cut state", "finished")
    for path in (*rows.path.glob("*.parquet"), state.path / "status.json"):
        path.write_bytes(path.read_bytes()[:100])
    for address in (
        "",
        f"live?run={rows.id}&run={state.id}&run={strings[0].id}",
        f"gradients?run={rows.id}",
        f"compare?a={rows.id}&b={strings[0].id}",
    ):
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
    """The form, the way back to the page that was asked for, what a reader is offered, and the end of a
    session.
    """
    folder = tmp_path_factory.mktemp("doors") / "runs"
    run = wicked(Runs(folder), "a run", "stopped")
    server = Server(
        folder, INITSCOPE_PASSWORD="correct horse battery", INITSCOPE_READER_PASSWORD="only looking here"
    )
    try:
        for password, may in (("correct horse battery", True), ("only looking here", False)):
            context = browser.new_context(**CALM)
            page = context.new_page()
            page.goto(f"{server.url}/live?run={run.id}")
            page.get_by_label("Password").fill("wrong one")
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("alert")).to_have_text("That is not the password.")
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/live**")
            settle(page)
            expect(
                page.get_by_role("button", name="Launch", exact=False).first
            ).to_be_visible() if may else expect(page.get_by_text("Read-only")).to_be_visible()
            assert page.get_by_role("button", name="Launch 2 runs").count() == int(may)
            page.get_by_role("link", name="Sign out").click()
            page.wait_for_timeout(1000)  # it may open in a tab of its own
            page.goto(server.url)
            expect(page.get_by_label("Password")).to_be_visible()
            context.close()
    finally:
        server.close()


LIMITS = {
    "INITSCOPE_MAX_QUEUE": "2",
    "INITSCOPE_MAX_EPOCHS": "500",
    "INITSCOPE_MAX_PARAMETERS": "3M",
    "INITSCOPE_MEMORY": "2GB",
    "INITSCOPE_DISK_QUOTA": "10MB",
    "INITSCOPE_MAX_RUNS": "1",
    "INITSCOPE_SLOTS": "2",
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("limits") / "runs", **LIMITS)
    yield started
    started.close()


def home(browser: Browser, server: Server) -> Page:
    page = browser.new_context(**CALM).new_page()
    page.set_default_timeout(60_000)
    page.goto(server.url)
    settle(page)
    return page


def test_over_a_limit_the_page_says_so_and_nothing_starts(browser: Browser, limited: Server, until) -> None:
    """One line with the figure in the sidebar; no folder, no mark in the queue, no process. Within the limits
    two runs are launched, and one waits; the other is deleted while it trains.
    """
    runs, page = Runs(limited.runs), home(browser, limited)

    def there() -> tuple:
        return runs.ids(), launcher.queued(runs), {process.pid for process in supervisors(runs.root)}

    def type_in(label: str, value: str) -> None:
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Enter")
        settle(page)

    def refused(said: str) -> None:
        page.get_by_role("button", name="Launch", exact=False).first.click()
        settle(page)
        alert = page.locator("[data-testid=stSidebar] [role=alert]")
        expect(alert).to_contain_text(said)
        assert "\n" not in alert.inner_text().strip() and there() == before, alert.inner_text()

    before = there()
    page.get_by_text("More", exact=True).click()
    settle(page)
    for label, value, said in (
        ("Epochs", "501", "501 epochs are over INITSCOPE_MAX_EPOCHS=500; ask for fewer"),
        ("Width", "1", "the network has 33,637,066 parameters, over INITSCOPE_MAX_PARAMETERS=3,000,000"),
        ("Batch size (samples)", "8192", "of memory"),
    ):
        usual = page.get_by_label(label, exact=True).input_value()
        type_in(label, value)
        refused(said)
        type_in(label, usual)
    (runs.root / "ballast").write_bytes(b"x" * 10_000_000)
    refused("runs take 10 MB of the 10 MB that INITSCOPE_DISK_QUOTA allows; delete some first")
    (runs.root / "ballast").unlink()
    type_in("Epochs", "500")
    page.get_by_role("button", name="Launch 2 runs").click()
    page.wait_for_url("**/live?*")
    settle(page)
    expect(page.get_by_text("running").first).to_be_visible()
    type_in("Epochs", "499")  # the same launch again at once would be a double click
    before = there()
    assert len(before[0]) == 2 and len(before[1]) == 1, "there are slots for two, and one waits all the same"
    refused("1 runs wait and 2 more would be over INITSCOPE_MAX_QUEUE=2; wait, or launch fewer")
    # A live run is deleted by the page: it asks, and stops it.
    [waiting] = before[1]
    [live] = set(before[0]) - {waiting}
    process = runs.get(live).state()
    page.goto(limited.url)
    settle(page)
    choose(page, live)
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("everything recorded? This cannot be undone.")
    expect(dialog).to_contain_text("It is still running: it is stopped first.")
    assert runs.info(live).live
    dialog.get_by_role("button", name="Delete").click()
    expect(dialog).to_have_count(0)
    assert runs.ids() == [waiting]
    until(lambda: not alive(process))
    launcher.stop(runs, runs.get(waiting))
    until(lambda: not runs.info(waiting).live)
    page.context.close()


def choose(page: Page, name: str) -> None:
    """On Home, by the search box and the table's first row."""
    page.get_by_placeholder("Search name").fill(name)
    page.get_by_placeholder("Search name").press("Enter")
    settle(page)
    page.locator("[data-testid=stDataFrame] canvas").first.click(position={"x": 15, "y": 52}, force=True)
    settle(page)


def test_odd_names_and_links_reach_nothing_outside(
    page: Page, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Renamed and deleted by the page's own buttons: what no name can hold is refused in the dialog, a path
    is a name like any other, a link shows and deletes nothing.
    """
    runs, outside = Runs(server.runs), tmp_path_factory.mktemp("outside")
    (outside / "status.json").write_text('{"status": "finished"}')
    (outside / "log.txt").write_text("the owner's own words")
    before = census(outside)
    (runs.root / "99999999-linked").symlink_to(outside)
    failed = wicked(runs, "a failed run", "failed")
    (failed.path / "log.txt").unlink()
    (failed.path / "log.txt").symlink_to(outside / "log.txt")
    run = wicked(runs, "to be renamed", "stopped")
    page.goto(f"{server.url}/live?run={failed.id}")
    settle(page)
    shown = page.locator("body").inner_text()
    assert "a failed run failed." in shown and "own words" not in shown

    page.goto(server.url)
    settle(page)
    choose(page, "to be renamed")
    page.get_by_role("button", name="Rename, tag or note").click()
    dialog = page.get_by_role("dialog")
    name, alert = dialog.get_by_label("Name"), dialog.get_by_role("alert")
    expect(name).to_have_value("to be renamed")
    for odd in ("\u202egnp.exe", "zero\u200bwidth", "a\u0000b"):
        name.fill(odd)
        dialog.get_by_role("button", name="Save").click()
        expect(alert).to_contain_text("name must be text, not")
    name.fill("x" * 10_000)
    assert len(name.input_value()) <= 120
    name.fill("../../../etc/passwd e\u0301")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    assert run.info().name == "../../../etc/passwd e\u0301"
    choose(page, "passwd")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text("../../../etc/passwd")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert (
        run.id not in runs.ids() and failed.id in runs.ids() and (runs.root / "99999999-linked").is_symlink()
    )
    failed.delete()
    assert census(outside) == before


def test_damaged_folders_on_the_pages(page: Page, server: Server) -> None:
    """A sample of those that `tests.benchmarks.fuzz` makes, on the pages that show them: no error box, no
    error in the browser.
    """
    runs, chance = Runs(server.runs), random.Random(11)
    good, made = template(runs), []
    while len(made) < 12:
        run = template(runs, live=len(made) % 3 == 0)
        mutate(run.path, chance)
        made += [run.id] if run.id in runs.ids() else []
    for address in (
        "",
        "live?" + urllib.parse.urlencode([("run", run) for run in made]),
        *(f"compare?a={run}&b={good.id}" for run in made[:2]),
    ):
        page.goto(f"{server.url}/{address}")
        settle(page)
        expect(page.get_by_role("heading", level=1).first).to_be_visible()


def test_runs_from_elsewhere_show_by_themselves_and_close_no_dialog(page: Page, server: Server) -> None:
    """Also where nothing trains; whoever is in the middle of renaming is not interrupted."""
    runs = Runs(server.runs)
    mine = wicked(runs, "mine", "stopped")
    page.goto(server.url)
    settle(page)
    sidebar = page.locator("[data-testid=stSidebar]")
    first = runs.create(quick().replace(name="first"))
    expect(sidebar.get_by_text("first · queued")).to_be_visible()
    launcher.stop(runs, first)
    choose(page, "mine")
    page.get_by_role("button", name="Rename, tag or note").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("mine alone")
    second = runs.create(quick().replace(name="second"))
    page.wait_for_timeout(3000)
    expect(sidebar.get_by_text("second · queued")).to_have_count(0)
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    expect(sidebar.get_by_text("second · queued")).to_be_visible()
    assert mine.info().name == "mine alone"
    launcher.stop(runs, second)
