"""Home's table: a run that diverged keeps the curve of what were numbers."""

from __future__ import annotations

import math

import pytest
from streamlit.testing.v1 import AppTest

from initscope.config.run_config import quick
from initscope.errors import ConfigError, RunNotFound, RunStateError
from initscope.schema import Status
from initscope.store.writer import set_status
from initscope_dashboard.content import run_columns, run_filters
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


def some(runs):
    for rate, init, tags, loss in (
        (0.001, "default", ("old", "pilot"), 2.3),
        (0.01, "default", (), math.nan),
        (0.001, "kaiming_normal", ("old",), 0.4),
    ):
        config = quick().replace(name=f"{init} {rate}", init=init, learning_rate=rate, tags=tags)
        outcome = "not_converged" if loss > 1 else "undecided"
        runs.create(config, Status.FINISHED, outcome=outcome, loss=loss, accuracy=0.5)
    runs.create({"name": "mine", "init": "custom"}, Status.FINISHED, source="recorder", outcome="undecided")
    return runs.list()


def test_fields_and_numbers_choose_runs(runs):
    infos = some(runs)

    def names(chosen=None, text=""):
        return {i.name for i in run_filters.fitting(infos, chosen or {}, run_filters.conditions(text))}

    found = run_filters.choices(infos)
    assert found["outcome"] == ["did not converge", "undecided"] and found["tag"] == ["old", "pilot"]
    assert found["init"] == ["Kaiming normal", "PyTorch default", "own loop"] and found["network"] == [
        "VGG16"
    ]
    assert len(names()) == 4
    assert names({"init": ["own loop", "Kaiming normal"], "outcome": []}) == {"mine", "kaiming_normal 0.001"}
    assert names({"tag": ["old"], "outcome": ["did not converge"]}) == {"default 0.001"}
    assert names(text="learning-rate >= 0.01") == {"default 0.01"}, "spaces and dashes are as good"
    assert names(text="loss<1, learning_rate=0.001") == {"kaiming_normal 0.001"}
    assert names(text="loss>0") == {"default 0.001", "kaiming_normal 0.001"}, (
        "NaN and nothing are in no range"
    )
    for text, said in (("loss", "expected a field"), ("lss<1", "loss"), ("loss<x", "is not a number")):
        with pytest.raises(ConfigError, match=said):
            run_filters.conditions(text)


def test_what_does_not_fit_is_left_out_of_the_table_and_clear_brings_it_back(runs):
    some(runs)
    page = AppTest.from_file(str(ROOT / "dashboard/initscope_dashboard/screens/home.py"), default_timeout=60)
    page.session_state["outcome"] = ["did not converge"]
    page.session_state["numbers"] = "learning_rate<0.005"
    page.run()
    assert not page.exception and list(page.dataframe[0].value["Name"]) == ["default 0.001"]
    page.multiselect("outcome").set_value(["undecided"]).run()
    assert list(page.dataframe[0].value["Name"]) == ["kaiming_normal 0.001"]
    page.text_input("numbers").set_value("nonsense<1").run()
    assert len(page.error) == 1 and len(page.dataframe[0].value) == 3, "one line, and the rest still counts"
    page.button("clear").click().run()
    assert not page.exception and not page.error and len(page.dataframe[0].value) == 4


def test_what_ended_a_run_stands_beside_it(runs):
    runs.create({"name": "mine", "init": "custom"}, Status.FINISHED, source="recorder", outcome="converged")
    assert "Ended by" not in table() and "Initialization" not in table(), "no column says nothing"
    run = runs.create({"name": "broken", "init": "custom"}, Status.FAILED, source="recorder")
    set_status(run, error="RuntimeError: shapes")
    row = table().iloc[0]
    assert (row["Outcome"], row["Ended by"]) == ("✕ failed", "RuntimeError: shapes")


def home(**state):
    page = AppTest.from_file(str(ROOT / "dashboard/initscope_dashboard/screens/home.py"), default_timeout=60)
    for key, value in state.items():
        page.session_state[key] = value
    page.run()
    assert not page.exception
    return page


def test_columns_are_shown_as_they_are_chosen(runs):
    some(runs)
    runs.create(
        {"name": "tuned", "init": "custom", "own": {"lr": 0.5, "head": {"width": 3}}},
        Status.FINISHED,
        source="recorder",
        outcome="undecided",
    )
    shown = home(columns=["learning_rate", "name", "own.lr", "own.head.width"]).dataframe[0].value
    assert list(shown) == ["Learning rate", "Name", "lr (own)", "head.width (own)"]
    assert shown["Learning rate"].dtype == "float64", "numbers sort as numbers"
    assert dict(zip(shown["Name"], shown["lr (own)"], strict=True))["tuned"] == 0.5


def test_groups_count_outcomes_and_are_compared(runs):
    some(runs)
    page = home(group="learning_rate")
    table = page.dataframe[0].value
    assert list(table["Learning rate"])[:2] == [0.001, 0.01] and list(table["Runs"]) == [2, 1, 1]
    assert list(table["■ did not converge"]) == [1, 0, 0] and list(table["◆ undecided"]) == [1, 1, 1]
    assert table["Converged"][0] == 0 and math.isnan(table["Converged"][1]), "nothing decided, no rate"
    assert any("0 of 1 with 0\\.001" in said.value for said in page.markdown)
    by_tag = home(group="tags").dataframe[0].value
    assert list(by_tag["Tags"])[:2] == ["old", "pilot"] and list(by_tag["Runs"]) == [2, 1, 2]


def test_a_group_is_a_selection_of_exactly_its_runs(runs):
    infos = some(runs)
    for field, expected in (("learning_rate", [2, 1]), ("tags", [2, 1]), ("name", [1, 1, 1, 1])):
        groups = [group for group in run_columns.grouped(infos, field) if group.value is not None]
        for group, number in zip(groups, expected, strict=True):
            found = runs.select(run_columns.selection(field, group))
            assert {run.id for run in found} == {info.run for info in group.members}
            assert len(found) == number


def test_archived_runs_are_hidden_and_come_back(runs):
    infos = some(runs)
    runs.get(infos[0].run).archive()
    runs.get(infos[0].run).edit(name="kept")  # as a version that knows nothing of archives does
    page = home()
    assert len(page.dataframe[0].value) == 3 and "3 of 3 match" in [said.value for said in page.markdown]
    page.toggle("archived").set_value(True).run()
    assert list(page.dataframe[0].value["Name"]) == ["kept"]
    assert [run.id for run in runs.select(infos[0].run)] == [infos[0].run], "by its id it is found"
    with pytest.raises(RunNotFound):
        runs.select("name=kept")
    runs.get(infos[0].run).archive(False)
    assert len(home().dataframe[0].value) == 4
    live = runs.create(quick(), Status.QUEUED)
    with pytest.raises(RunStateError, match="stop it first"):
        live.archive()
