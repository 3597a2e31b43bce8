"""Home with many runs, as somebody who lives in it uses it: find, choose all that match, tag, note, take
away as CSV.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from initscope.config.run_config import quick
from initscope.schema import Status
from initscope.store import Runs
from tests.browser.conftest import Server, settle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dashboard on 250 ended runs: more than a page of the table."""
    started = Server(tmp_path_factory.mktemp("many") / "runs")
    runs = Runs(started.runs)
    for number in range(250):
        name = "=1+1" if number == 7 else f"{'odd' if number % 2 else 'even'} {number}"
        config = quick().replace(name=name, tags=("old",), init_seed=number)
        runs.create(config, Status.FINISHED, outcome="converged", loss=1.0 + number, accuracy=0.5)
    yield started
    started.close()


def test_all_that_match_are_tagged_beyond_the_page(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/?search=odd")
    settle(page)
    expect(page.get_by_text("124 of 250 match")).to_be_visible()
    page.get_by_text("Choose all 124").click()
    expect(page.get_by_text("124 runs:")).to_be_visible()
    expect(page.get_by_role("button", name="Watch")).to_have_count(0)  # more than one picture can hold
    page.get_by_role("button", name="Tag", exact=True).click()
    dialog = page.get_by_role("dialog")
    add = dialog.get_by_label("Add", exact=True)
    add.fill("pilot, second look")
    add.press("Tab")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    tags = {info.name: info.tags for info in Runs(server.runs).list()}
    told = {name for name, found in tags.items() if "pilot" in found}
    assert told == {name for name in tags if name.startswith("odd")} and len(told) == 124
    assert tags["odd 1"] == ("old", "pilot", "second look") and tags["even 0"] == ("old",)

    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.get_by_text("250 of 250 match")).to_be_visible()


def test_what_is_shown_is_taken_away_as_csv(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/?search=1")
    settle(page)
    with page.expect_download() as taken:
        page.get_by_role("button", name="CSV", exact=True).click()
    with open(taken.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = page.get_by_text(" of 250 match").inner_text().split()[0]
    assert len(rows) == int(shown) > 100
    assert {row["name"] for row in rows} >= {"odd 1", "'=1+1"}, "no spreadsheet may compute a run's name"
    [one] = [row for row in rows if row["name"] == "odd 1"]
    assert (one["loss"], one["outcome"], one["learning_rate"]) == ("2.0", "converged", "0.001")


def test_a_note_is_kept_as_text(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/?search=even+248")
    settle(page)
    table = page.get_by_test_id("stDataFrame").bounding_box()
    page.mouse.click(table["x"] + 16, table["y"] + 52)
    page.get_by_role("button", name="Rename, tag or note").click()
    notes = page.get_by_role("dialog").get_by_role("textbox", name="Notes")
    notes.fill("**warmup** was off; see <b>seed 3</b>")
    notes.press("Tab")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_test_id("stText").get_by_text("**warmup** was off; see <b>seed 3</b>")).to_be_visible()
    [run] = Runs(server.runs).select("name=even 248")
    assert run.meta()["notes"] == "**warmup** was off; see <b>seed 3</b>"
