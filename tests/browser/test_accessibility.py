"""axe-core on every page, in the light and the dark theme: no violation. And what it cannot see: headings
that follow each other, a tab that says which page it is, the answer on paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from torch import nn

import initscope
from initscope.comparison.sweep import plan, watch
from initscope.config import catalog
from initscope.config.run_config import quick
from initscope.scheduling import launcher
from initscope.store import Runs
from tests.browser.conftest import CALM, Server, settle

AXE = Path(__file__).parent / "axe" / "axe.min.js"
PAGES = {
    "/": "InitScope",
    "/story": "Story",
    "/live": "Live: ",
    "/gradients": "Gradients: ",
    "/compare": "Compare: PyTorch default against Kaiming normal",
    "/probe": "Probe",
    "/check": "Check",
    "/diagnosis": "Diagnosis: ",
    "/sweep": "Sweep: two of each",
    "/depth": "Depth",
    "/query": "Query",
    "/model": "Model",
    "/guide": "Guide: Recording your own loop",
}
COLOURS = ("color-contrast", "link-in-text-block")
FAULTS = """async (names) => {
  const rules = names.length ? { runOnly: { type: "rule", values: names } } : {}
  const found = await axe.run(document, { resultTypes: ["violations"], ...rules })
  return found.violations.flatMap((rule) => rule.nodes.map((node) => [rule.id, node.target.join(" "),
    node.html.slice(0, 200),
    ...[...node.any, ...node.all, ...node.none].map((check) => check.message)].join(" | ")))
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dashboard on a small sweep and on two loops of somebody's own, one of which diverges."""
    started = Server(tmp_path_factory.mktemp("accessible") / "runs")
    runs = Runs(started.runs)
    small = quick().replace(model="lenet", epochs=1, max_steps=20)
    made = launcher.submit(runs, plan(small, ["default", "kaiming_normal"], 2, "two of each"))
    for _ in watch(runs, [run.id for run in made]):
        pass
    yield started
    started.close()


def own_loop(folder: Path, name: str, rate: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), rate)
    inputs = torch.randn(64, 8)
    labels = inputs[:, :3].argmax(1)
    with initscope.Recorder(model, optimizer, name=name, runs=folder, config={"lr": rate}) as recorder:
        for _ in range(20):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            recorder.step(loss)


def faults(page: Page, *rules: str) -> list[str]:
    """What axe finds on the page, by all its rules or by some."""
    expect(page.locator("[data-stale=true]")).to_have_count(0)  # what is about to be drawn anew is faded
    page.wait_for_timeout(400)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    return page.evaluate(FAULTS, list(rules))


def open_everything(page: Page) -> None:
    """Open what is closed: a field that nobody sees has faults, too."""
    for at in range(page.locator("[data-testid=stExpander] summary").count()):
        closed = page.locator("[data-testid=stExpander]").nth(at)
        if closed.locator("details:not([open])").count():
            closed.locator("summary").click()
            settle(page)


@pytest.fixture(scope="module")
def visit(browser: Browser) -> Iterator[Page]:
    """One tab that goes from page to page."""
    context = browser.new_context(color_scheme="light", **CALM)
    tab = context.new_page()
    tab.set_default_timeout(90_000)
    yield tab
    context.close()


def brightness(page: Page) -> float:
    """Of the page's ground, from 0 to 255."""
    colour = page.locator("[data-testid=stApp]").evaluate("e => getComputedStyle(e).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("path", PAGES)
def test_a_page_stands(visit: Page, server: Server, path: str) -> None:
    """Its tab and its heading say which page it is; axe finds nothing, in the light theme and in the dark
    one; no sideways scrolling in a wide and a narrow window.
    """
    visit.set_viewport_size({"width": 1280, "height": 900})
    visit.emulate_media(color_scheme="light")
    visit.goto(server.url + path)
    settle(visit)
    expect(visit.get_by_role("heading", level=1).first).to_be_visible()
    title = visit.title()
    assert title.startswith(PAGES[path]) and title.endswith("InitScope")
    open_everything(visit)
    for theme in ("light", "dark"):
        visit.emulate_media(color_scheme=theme)
        settle(visit)
        assert (brightness(visit) > 128) == (theme == "light")
        found = faults(visit, *(() if theme == "light" else COLOURS))  # nothing else changes
        assert not found, theme + "\n" + "\n".join(found)
    for width in (1280, 420):
        visit.set_viewport_size({"width": width, "height": 900})
        settle(visit)
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert visit.evaluate(overflow) <= 1, f"too wide at {width}"


def test_axe_can_find_something(page: Page, server: Server) -> None:
    """The same check on a page that was made worse: pale text, and a button in a picture."""
    page.goto(server.url + "/model")
    settle(page)
    expect(page.locator(".initscope-plot .modebar").first).to_be_attached()
    page.evaluate(
        """() => {
        document.querySelector("[data-testid=stCaptionContainer]").style.opacity = 0.6
        document.querySelector(".initscope-plot").setAttribute("role", "img")
        }"""
    )
    rules = {line.split(" | ")[0] for line in faults(page)}
    assert {"color-contrast", "nested-interactive"} <= rules


def test_a_field_error_can_be_read(page: Page, server: Server) -> None:
    page.goto(server.url)
    settle(page)
    rate = page.get_by_label("Learning rate", exact=True)
    rate.fill("fast")
    rate.press("Enter")
    expect(page.get_by_text("Nothing is launched until every field above is right.")).to_be_visible()
    assert not (found := faults(page)), "\n".join(found)


def test_an_answer_on_paper_names_its_sides_and_leaves_the_launcher_out(page: Page, server: Server) -> None:
    page.goto(server.url + "/compare")
    settle(page)
    page.emulate_media(media="print")
    expect(page.get_by_text("Launch 2 runs")).to_be_hidden()
    for side in ("a", "b"):
        expect(page.locator(f".st-key-compare_{side}")).to_be_visible()
    page.emulate_media(media="screen")


def test_what_a_metric_is_stands_under_its_name(page: Page, server: Server) -> None:
    """Signal, error signal, update ratio and stable rank, which no textbook names so."""
    help_of: dict[str, Any] = {
        "Signal": "what is left of the input",
        "Error signal": "what is left of the error on its way back",
        "Update ratio": "|w_after - w_before| / |w_before|",
        "Stable rank": "1 if one direction holds all its gain",
    }
    page.goto(server.url + "/gradients")
    settle(page)
    for title, words in help_of.items():
        page.get_by_role("radio", name=title, exact=True).click()
        expect(page.get_by_text(words)).to_be_visible()


def test_the_story_goes_with_its_sliders_and_offers_two_runs(page: Page, server: Server) -> None:
    page.goto(server.url + "/story")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("VGG16 begins to learn after 20 to 26 steps")
    words = page.get_by_text("on its way to the output")
    before = words.inner_text()
    page.goto(server.url + "/story?story_gain=1.5")
    settle(page)
    expect(words).not_to_have_text(before)
    expect(page.get_by_role("button", name="Run the story")).to_be_enabled()


def test_the_guide_is_read_in_the_app(page: Page, server: Server) -> None:
    """A link opens its page, a page leads to others, the search finds a section whose button turns there."""
    page.goto(server.url + "/guide?page=outcomes")
    settle(page)
    title = page.get_by_role("heading", level=1)
    expect(title).to_have_text("Outcomes, causes and verdicts")
    page.get_by_role("button", name="What theory expects").click()
    expect(title).to_have_text("What theory expects")
    assert "page=theory" in page.url
    search = page.get_by_label("Search the guide")
    search.fill("Fisher")
    search.press("Enter")
    expect(title).to_contain_text("say something about “Fisher”")
    page.get_by_role("button", name="Outcomes, causes and verdicts: Verdict").click()
    expect(title).to_have_text("Outcomes, causes and verdicts")


def test_missing_data_offer_digits(page: Page, server: Server, tmp_path: Path) -> None:
    """A run whose data are nowhere fails in one line, with a button that launches it on the embedded data."""
    runs = Runs(server.runs)
    before = {info.run for info in runs.list()}
    lost = quick().replace(model="lenet", epochs=1, max_steps=5, data="fashion_mnist")
    made = runs.create(lost, "failed", error=f"FashionMNIST is not in {tmp_path}; {catalog.USE_EMBEDDED}")
    page.goto(f"{server.url}/live?run={made.id}")
    settle(page)
    page.get_by_role("button", name="Launch it with digits instead").click()
    expect(page.get_by_role("button", name="Launch it with digits instead")).to_have_count(0)
    [new] = {info.run for info in runs.list()} - before - {made.id}
    config = runs.get(new).config()
    assert config.data == "digits" and config.replace(data=lost.data, name="") == lost.replace(name="")
