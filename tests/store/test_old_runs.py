"""Folders that version 0.1 wrote (``tests/old_runs/v0.1``: sweeps, own loops, one that failed) open in every
command.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from initscope.diagnosis.diagnose import diagnose
from initscope.store import Runs

OLD = Path(__file__).resolve().parents[1] / "old_runs" / "v0.1"
IDS = sorted(path.name for path in OLD.iterdir())


@pytest.fixture
def old(runs: Runs) -> Runs:
    shutil.copytree(OLD, runs.root)
    return runs


def test_all_are_listed_with_their_outcome(old):
    infos = {info.run: info for info in old.list()}
    assert sorted(infos) == IDS and all(info.status in ("finished", "failed") for info in infos.values())
    assert not [info.error for info in infos.values() if info.status == "unreadable"]


@pytest.mark.parametrize("run", IDS)
def test_each_is_diagnosed_and_its_tables_read(old, run):
    found = old.get(run)
    assert found.read("steps").num_rows > 3 and found.read("layers").num_rows > 3
    assert diagnose(found).run == run


def test_they_compare_export_and_answer_queries(old, cli, tmp_path):
    answer = cli("compare", "init=default,sweep=old sweep", "init=kaiming_normal,sweep=old sweep", "--json")
    assert answer.status == 0 and answer.json["converged"]["a"][1] == 2, answer.err
    for run in ("old-default-s0", IDS[0]):
        assert cli("export", run, "--format", "csv", "--output", tmp_path / f"csv-{run}").status == 0
    assert cli("query", "SELECT count(*) AS n FROM runs", "--json").json["rows"][0]["n"] == len(IDS)
    assert (
        cli("report", "old-default-s0", "old-kaiming_normal-s0", "--output", tmp_path / "report.html").status
        == 0
    )
