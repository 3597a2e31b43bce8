"""The Query page: the recipes are buttons, an answer is a table under a sentence, a mistake is one line."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from initscope.store.query import RECIPES
from tests.conftest import ROOT
from tests.store.test_query import recorded


@pytest.mark.parametrize("read_only", ["", "1"])
def test_recipes_questions_and_mistakes(runs, monkeypatch, read_only):
    recorded(runs, "run-0", 20)
    monkeypatch.setenv("INITSCOPE_READ_ONLY", read_only)  # it only reads: who may look may ask
    page = AppTest.from_file(
        str(ROOT / "dashboard/initscope_dashboard/screens/query.py"), default_timeout=60
    ).run()
    assert not page.exception and not page.text_area[0].value
    assert page.title[0].value == "default converged in 1 of 1 runs" and len(page.dataframe[0].value) == 1, (
        "it opens with an answer"
    )
    for name, columns in (
        ("rates", ["init", "converged", "of_runs", "rate"]),
        ("worst", ["run", "step", "layer", "grad_rms", "signal_std"]),
        ("slowest", ["run", "name", "model", "seconds", "ms_per_step"]),
    ):
        page.button(f"recipe_{name}").click().run()
        assert (
            not page.exception
            and page.title[0].value == "1 row"
            and page.text_area[0].value == RECIPES[name].sql
        )
        assert list(page.dataframe[0].value.columns) == columns
    page.text_area[0].set_value("SELECT range FROM range(5000)").run()
    assert page.title[0].value == "More than 1,000 rows" and len(page.dataframe[0].value) == 1000
    page.text_area[0].set_value("COPY runs TO 'x'").run()
    assert (
        not page.exception and page.error[0].value.startswith("one SELECT is answered") and not page.dataframe
    )
