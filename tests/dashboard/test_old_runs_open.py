"""Runs that version 0.1 wrote open on every page."""

from __future__ import annotations

import shutil

from streamlit.testing.v1 import AppTest

from initscope.store import Runs
from tests.conftest import ROOT
from tests.store.test_old_runs import IDS, OLD

SCREENS = ROOT / "dashboard/initscope_dashboard/screens"


def test_old_runs_open_on_every_page(runs: Runs):
    """Every page, and each of the runs on those that show one, in one session."""
    shutil.copytree(OLD, runs.root)
    several = {"a": [IDS[0]], "b": [IDS[1]], "more": IDS[2:]}
    asked = [
        *((path.name, {}) for path in sorted(SCREENS.glob("*.py"))),
        *((screen, {"run": [run]}) for screen in ("live.py", "gradients.py", "diagnosis.py") for run in IDS),
        ("compare.py", several),
    ]
    page = AppTest.from_file(str(SCREENS.parent / "main.py"), default_timeout=120).run()
    for screen, query in asked:
        page.query_params.clear()
        for key, value in query.items():
            page.query_params[key] = value
        page.switch_page(f"screens/{screen}").run()
        where = screen, query
        told = [
            said.value for said in page.error if "the loader ended" not in said.value
        ]  # a run that failed
        assert not page.exception and not told, (where, told)
        assert page.main.children, where
        assert not [said.value for said in page.warning if "not here" in said.value], where
