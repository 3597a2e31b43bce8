"""Story: its sentence is the measured file's. Guide: every page, link and search hit of both languages."""

from __future__ import annotations

import re

import pytest
from streamlit.testing.v1 import AppTest

from initscope_dashboard.content import guide, story
from tests.benchmarks.story import RESULTS
from tests.conftest import ROOT

SCREENS = ROOT / "dashboard/initscope_dashboard/screens"


def opened(screen: str, **query: str) -> AppTest:
    page = AppTest.from_file(str(SCREENS / screen), default_timeout=60)
    for key, value in query.items():
        page.query_params[key] = value
    return page.run()


def test_the_story_tells_what_the_benchmark_measured():
    assert story.MEASURED.read_bytes() == RESULTS.read_bytes(), "copy tests/benchmarks/story.csv"
    default = [cell for cell in story.cells() if cell.init == "default"]
    assert len(default) == 6 and [cell.steps for cell in default if cell.left_at is None] == [400]
    assert story.sentence() == (
        "With Kaiming normal weights VGG16 begins to learn after 20 to 26 steps in 6 of 6 runs; with PyTorch "
        "default weights it begins after 141 to 283 steps in 5 of 6 runs and not within 400 in 1."
    )


def test_what_the_story_says_of_sixteen_layers_is_theorys():
    """Biases and padding aside: within a factor of ten of mean-field theory for VGG16."""
    from initscope.config.run_config import quick
    from initscope_dashboard.loaders import theory_rows

    rows = theory_rows(quick().replace(init="default"))
    fallen = rows[-1]["signal_std"] / rows[0]["signal_std"]
    assert 0.1 < fallen / story.shrinks_by(len(rows) - 1) < 10


@pytest.mark.parametrize("language", guide.LANGUAGES)
def test_every_page_of_the_guide_is_shown_and_its_links_lead_somewhere(language):
    pages = guide.pages(language)
    names = {path.stem for path in (guide.FOLDER / "en").glob("*.md")}
    assert set(pages) == names and next(iter(pages)) == "recording"
    linked = {name: guide.links(page) for name, page in pages.items()}
    assert any(linked.values())
    for name, page in pages.items():
        assert set(linked[name]) <= names and not re.search(r"\]\([^)]*\.md", page.text), name
        assert page.title and not page.text.startswith("# "), name


def test_a_link_opens_its_page():
    page = opened("guide.py", page="outcomes")
    assert not page.exception and page.title[0].value == "Outcomes, causes and verdicts"
    page.button(key="guide_to_theory").click().run()
    assert page.title[0].value == "What theory expects" and list(page.query_params["page"]) in (
        ["theory"],
        list("theory"),
    )


def test_the_search_finds_sections_and_says_when_there_are_none():
    found = guide.search("effect interval", "en")
    assert all(
        all(word in f"{page.title} {part.title} {part.text}".lower() for word in ("effect", "interval"))
        for page, part in found
    )
    page = opened("guide.py")
    page.text_input(key="guide_search").set_value("Fisher").run()
    number = len(guide.search("Fisher", "en"))
    assert number and re.match(
        rf"{number} sections? says? something about|{number} section", page.title[0].value
    )
    page.text_input(key="guide_search").set_value("flux capacitor").run()
    assert page.title[0].value.startswith("The guide says nothing about")
