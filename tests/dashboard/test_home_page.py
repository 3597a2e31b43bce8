"""Home's table: a run that diverged keeps the curve of what were numbers."""

from __future__ import annotations

import math

from streamlit.testing.v1 import AppTest

from initscope.config.run_config import quick
from initscope.schema import Status
from initscope.store.writer import set_status
from tests.benchmarks import many_runs
from tests.conftest import ROOT


def test_one_nan_does_not_take_the_curve(runs):
    run = many_runs.one(
        runs,
        quick().replace(init="kaiming_normal"),
        Status.FINISHED,
        steps=115,
        layers=2,
        seed=13,
        created=0.0,
    )
    assert not all(map(math.isfinite, run.info().state["curve"])), "its last losses are NaN"
    page = AppTest.from_file(
        str(ROOT / "dashboard/initscope_dashboard/screens/home.py"), default_timeout=60
    ).run()
    assert not page.exception
    row = page.dataframe[0].value.iloc[0]
    assert row["Outcome"] == "▲ diverged" and math.isnan(row["Loss"])
    assert len(row["Loss over time"]) > 20 and all(map(math.isfinite, row["Loss over time"]))


def table(**state: str):
    page = AppTest.from_file(str(ROOT / "dashboard/initscope_dashboard/screens/home.py"), default_timeout=60)
    for key, value in state.items():
        page.session_state[key] = value
    page.run()
    assert not page.exception
    return page.dataframe[0].value


def test_numbers_are_numbers_and_all_runs_are_sorted_before_they_are_cut_into_pages(runs):
    """Losses 12.5 and 10.1 above 6.43 and NaN; a run of the last page is the first where it should be."""
    losses = [6.43, 3.40, 12.5, 10.1, math.nan, *[5.0] * 200]
    for number, loss in enumerate(losses):
        runs.create(
            quick().replace(name=f"n{number}"), Status.FINISHED, outcome="undecided", loss=loss, accuracy=0.5
        )
    highest = table(order="Highest loss")
    assert list(highest["Loss"][:4]) == [12.5, 10.1, 6.43, 5.0] and len(highest) == 200
    assert highest["Loss"].dtype == "float64" and highest["Age"].dt.tz is not None
    assert list(table(order="Lowest loss")["Name"][:1]) == ["n1"]


def test_what_ended_a_run_stands_beside_it(runs):
    runs.create({"name": "mine", "init": "custom"}, Status.FINISHED, source="recorder", outcome="converged")
    assert "Ended by" not in table() and "Initialization" not in table(), "no column says nothing"
    run = runs.create({"name": "broken", "init": "custom"}, Status.FAILED, source="recorder")
    set_status(run, error="RuntimeError: shapes")
    row = table().iloc[0]
    assert (row["Outcome"], row["Ended by"]) == ("✕ failed", "RuntimeError: shapes")
