"""Home's table: a run that diverged keeps the curve of what were numbers."""

from __future__ import annotations

import math

from streamlit.testing.v1 import AppTest

from initscope.config.run_config import quick
from initscope.schema import Status
from tests.benchmarks import many_runs
from tests.conftest import ROOT


def test_one_nan_does_not_take_the_curve(runs):
    run = many_runs.one(runs, quick().replace(init="kaiming_normal"), Status.FINISHED, steps=115, layers=2, seed=13, created=0.0)
    assert not all(map(math.isfinite, run.info().state["curve"])), "its last losses are NaN"
    page = AppTest.from_file(str(ROOT / "dashboard/initscope_dashboard/screens/home.py"), default_timeout=60).run()
    assert not page.exception
    row = page.dataframe[0].value.iloc[0]
    assert row["Outcome"] == "▲ diverged" and row["Loss"] == "NaN"
    assert len(row["Loss over time"]) > 20 and all(map(math.isfinite, row["Loss over time"]))
