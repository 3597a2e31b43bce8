"""The Depth page in a real browser: empty, then on a small sweep over networks that was really trained."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from initscope.comparison import network_study
from initscope.comparison.sweep import missing, watch
from initscope.config.run_config import quick
from initscope.scheduling import launcher
from initscope.store import Runs
from tests.browser.conftest import Server, settle

SMALL = {"epochs": 3, "max_steps": 50, "record_every": 30, "sweep": "small family"}


def test_the_story_is_tested(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/depth")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("Does the story hold?")
    expect(page.get_by_role("button", name=f"Launch {len(network_study.STUDY) * 6} runs")).to_be_enabled()

    runs = Runs(server.runs)
    networks = ({"model": "lenet", "width": 1.0, "batch_norm": on} for on in (False, True))
    made = launcher.submit(
        runs,
        [
            quick().replace(init=init, **SMALL, **network)
            for network in networks
            for init in network_study.INITS
        ],
    )
    for _ in watch(runs, [run.id for run in made]):
        pass
    page.reload()
    settle(page)
    table = network_study.rows(runs.list())
    expect(page.get_by_role("heading", level=1)).to_have_text(network_study.sentence(table))
    for found in network_study.findings(table):
        expect(page.get_by_role("listitem").filter(has_text=found.claim)).to_contain_text(found.text)
    expect(page.locator(".js-plotly-plot")).to_have_count(3)
    strips = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].filter(p => p.data[0].type === "
        "'heatmap').map(p => p.data[0].text.at(-1).at(-1))"
    )
    assert len(strips) == 2 and all(re.match(r"output, layer 5 of 5: ", words) for words in strips), strips

    # One seed more is missing for each cell; the button queues exactly those.
    page.get_by_label("Seeds for each").last.fill("2")
    page.get_by_label("Seeds for each").last.press("Enter")
    page.get_by_role("button", name="Launch 4 missing runs").click()
    expect(page.get_by_role("button", name="No run is missing")).to_be_visible(timeout=30_000)
    infos = runs.list()
    assert len(infos) == 8 and not missing(network_study.plan(SMALL["sweep"], infos, 2), infos)
