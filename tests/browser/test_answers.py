"""Probe, Diagnosis, Sweep and the report in a real browser, on runs that were really trained."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect

from initscope.comparison.compare import compare
from initscope.comparison.sweep import plan, watch
from initscope.config.run_config import quick
from initscope.scheduling import launcher
from initscope.schema import Status, Verdict
from initscope.store import Runs
from tests.browser.conftest import CALM, ROOT, Server, follow, settle

SWEEP = "short-sweep"
SHORT = quick().replace(epochs=4, width=0.125)
"""The quick preset's story, told in a third of its time."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A dashboard on a finished sweep: both initializations of the story, two seeds each, four epochs."""
    started = Server(tmp_path_factory.mktemp("answers") / "runs")
    runs = Runs(started.runs)
    made = launcher.submit(runs, plan(SHORT, ["default", "kaiming_normal"], 2, SWEEP))
    for _ in watch(runs, [run.id for run in made]):
        pass
    yield started
    started.close()


def test_the_story_on_disk(server: Server) -> None:
    """Default weights stay at chance, Kaiming's converge, the comparison says fixed, and the first step's
    rows say why.
    """
    runs = Runs(server.runs)
    outcomes = {(info.init, info.config["init_seed"]): info.outcome for info in runs.list()}
    assert outcomes == {
        (init, seed): what
        for init, what in (("default", "not_converged"), ("kaiming_normal", "converged"))
        for seed in (0, 1)
    }

    answer = compare(runs.select("init=default"), runs.select("init=kaiming_normal"))
    assert answer.verdict == Verdict.FIXED and answer.converged == {"a": [0, 2], "b": [2, 2]} and answer.fair
    assert answer.headline.startswith("fixed: 2 of 2 converge with kaiming_normal, 0 of 2 with default")
    assert answer.changed_fields == {"init": ["default", "kaiming_normal"]}
    ratios = {row["layer"]: row["log10_grad_ratio"] for row in answer.layers}
    assert ratios["conv1_1"] > 6 > 3 > ratios["fc3"], (
        "the further from the output, the more gradient came back"
    )

    silent = (
        pd.read_parquet(runs.select("init=default")[0].path / "layers.parquet")
        .query("step == 0")
        .set_index("layer")
    )
    assert silent["grad_norm"]["conv1_1"] < 1e-6 < 1e-3 < silent["grad_norm"]["fc3"]
    assert silent["activation_std"]["fc2"] > 1e-3 and silent["signal_std"]["fc2"] < 1e-6, (
        "the RMS alone would hide the fault"
    )


def test_sweep_answers_with_numbers_and_launches_more(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/sweep?sweep={SWEEP}")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text(
        "fixed: 2 of 2 converge with Kaiming normal, 0 of 2 with PyTorch default"
    )
    expect(page.get_by_text("Share of runs that converged")).to_be_visible()
    follow(page, "Compare these two", "**/compare?*")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("fixed: 2 of 2 converge with Kaiming normal")


def test_sweep_draws_the_trainability_map_with_the_theorys_boundary(page: Page, server: Server) -> None:
    """Folders as real runs leave them, with outcomes that put the boundary where theory does not in one cell
    of four.
    """
    runs = Runs(server.runs)
    base = SHORT.replace(init="kaiming_normal", sweep="tiny-map")
    for gain, model, outcome in [
        (0.2, "vgg11", "not_converged"),
        (1.0, "vgg11", "converged"),
        (0.2, "vgg19", "converged"),
        (1.0, "vgg19", "converged"),
    ]:
        runs.create(base.replace(gain=gain, model=model), Status.FINISHED, outcome=outcome)
    page.goto(f"{server.url}/sweep?sweep=tiny-map")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Kaiming normal trains from gain 1 in VGG11, at every gain tried in VGG19; theory foresaw 3 of 4 "
        "outcomes."
    )
    expect(page.locator(".js-plotly-plot .heatmaplayer")).to_have_count(1)
    for words in ("theory: trains from here on", "theory was wrong", "VGG19"):
        expect(page.locator(".js-plotly-plot").get_by_text(words)).to_be_visible()


def test_sweep_refuses_an_unknown_axis_in_one_line(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/sweep")
    settle(page)
    page.get_by_text("Launch a sweep").click()
    page.get_by_label("Also vary", exact=True).fill("gian=1,2")
    before = len(Runs(server.runs).ids())
    page.get_by_role("button", name="Launch the sweep").click()
    expect(page.get_by_text('did you mean "gain"?')).to_be_visible()
    assert len(Runs(server.runs).ids()) == before


def test_diagnosis_names_the_cause_and_its_remedy_leads_to_compare(page: Page, server: Server) -> None:
    runs = Runs(server.runs)
    stuck = next(info for info in runs.list() if info.init == "default")
    page.goto(f"{server.url}/diagnosis?run={stuck.run}")
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text("The initial weights are too small")
    expect(page.get_by_text("signal collapse")).to_be_visible()

    # Replay: with a line that nothing crosses, the finding goes; back at the defaults it returns.
    page.get_by_text("Move the thresholds").click()
    page.get_by_role("radio", name="AUTOTRAINER").click()
    settle(page)
    expect(page.get_by_text("signal collapse")).to_have_count(0)
    expect(page.get_by_text("vanishing gradient", exact=True)).to_be_visible()
    dead = page.get_by_test_id("stSlider").filter(has_text="Dead units")
    expect(dead).to_contain_text("0.70")  # the slider stands where that tool draws its line
    page.get_by_role("radio", name="InitScope").click()
    settle(page)
    expect(dead).to_have_count(1)  # while the page changes, both tools' sliders may stand there
    expect(dead).to_contain_text("0.90")
    settle(page)
    expect(page.get_by_text("signal collapse")).to_be_visible()

    # The sweep has trained that twin already: it is not offered again, its comparison is.
    expect(page.get_by_text("Already done:")).to_be_visible()
    expect(
        page.get_by_role("button", name=re.compile("Launch the same run with initialization Kaiming normal"))
    ).to_have_count(0)
    page.get_by_role("link", name="See the comparison").click()
    page.wait_for_url(re.compile(r"/compare\?"))
    settle(page)
    expect(page.get_by_role("heading", level=1)).to_contain_text(
        re.compile(r"fixed: \d of \d converge with Kaiming normal")
    )


def test_probe_forecasts_before_training(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/probe")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Kaiming normal", timeout=90_000)
    settle(page)
    heading = page.get_by_role("heading", level=1).inner_text()
    assert re.search(r"Kaiming normal will train; .*PyTorch default.* will not", heading), heading
    traces = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].map(p => p.data.map(t => t.mode))"
    )
    assert any("lines" in modes and "markers" in modes for modes in traces), (
        "measured dots on predicted lines"
    )
    expect(page.get_by_role("button", name="Launch it").first).to_be_visible()


def test_report_opens_offline(browser: Browser, server: Server, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    command = [
        sys.executable,
        "-m",
        "initscope",
        "report",
        f"init=default,sweep={SWEEP}",
        f"init=kaiming_normal,sweep={SWEEP}",
    ]
    subprocess.run(
        [*command, "--output", str(output), "--runs", str(server.runs)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    context = browser.new_context(offline=True, **CALM)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(output.as_uri())
    expect(page.get_by_role("heading", level=1)).to_contain_text(
        "fixed: 2 of 2 converge with kaiming_normal, 0 of 2 with default"
    )
    maps = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].filter(p => p.data.some(t => t.type === "
        "'heatmap')).length"
    )
    assert maps == 3
    expect(page.get_by_text("Initialization", exact=True).first).to_be_visible()
    expect(page.get_by_text("The initial weights are too small: the signal dies on its way")).to_be_visible()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()
