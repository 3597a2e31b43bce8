"""Compare with three sides and more: counts of every side, a seed once, in the address."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from initscope.config.run_config import quick
from initscope.schema import Status
from initscope_dashboard.content import several
from tests.conftest import ROOT

INITS = {"default": 0, "xavier_normal": 1, "kaiming_normal": 2}


def made(runs):
    """Two seeds of three initializations; 0, 1 and 2 of them converge. The last seed of one runs twice."""
    for init, number in INITS.items():
        for seed in (0, 1, 1) if init == "default" else (0, 1):
            outcome = "converged" if seed < number else "not_converged"
            config = quick().replace(init=init, init_seed=seed, sweep="three")
            runs.create(config, Status.FINISHED, outcome=outcome, loss=2.0 - number, accuracy=0.5)
    return {init: [run.info() for run in runs.select(f"init={init},sweep=three")] for init in INITS}


def test_a_seed_counts_once_and_what_says_nothing_is_left_out(runs):
    chosen = made(runs)
    chosen["kaiming_normal"].append(runs.create(quick().replace(init="kaiming_normal", init_seed=7)).info())
    found = several.sides(chosen, {init: init for init in INITS})
    assert [(side.converged, side.decided) for side in found] == [(0, 2), (1, 2), (2, 2)]
    assert several.sentence(found) == (
        "Converged so far: 2 of 2 with Kaiming normal, 1 of 2 with Xavier normal, 0 of 2 with PyTorch default"
    )
    assert any(note.startswith("1 run says nothing") for note in several.notes(found))
    assert [row["Rate"] for row in several.table(found)] == [0, 0.5, 1]
    assert several.differing(found) == {
        "init": ["default", "xavier_normal", "kaiming_normal"],
        "init_seed": [[0, 1], [0, 1], [0, 1, 7]],
    }
    assert several.sentence(found[:0]) and "come far enough" in several.sentence(
        several.sides({"x": [chosen["kaiming_normal"][-1]]}, {"x": "x"})
    )


def test_three_sides_of_an_address_are_one_picture(runs):
    made(runs)
    page = AppTest.from_file(
        str(ROOT / "dashboard/initscope_dashboard/screens/compare.py"), default_timeout=60
    )
    a, b, c = (f"init={init},sweep=three" for init in INITS)
    page.query_params["a"], page.query_params["b"], page.query_params["more"] = a, b, [c, "init=nothing"]
    page.run()
    assert not page.exception and page.title[0].value.startswith("Converged\\: 2 of 2 with")
    assert list(page.dataframe[0].value["Side"]) == ["PyTorch default", "Xavier normal", "Kaiming normal"]
    assert list(page.dataframe[0].value["Runs"]) == [2, 2, 2]
    assert len(page.warning) == 1 and "init=nothing" in page.warning[0].value, "what is gone is said"
    assert page.multiselect("compare_more").value == [c]
