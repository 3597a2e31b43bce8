"""What Compare offers: titles that name one thing each and stay the same while runs go on."""

from pathlib import Path

from initscope.comparison.compare import compare
from initscope.comparison.sweep import plan
from initscope.config.run_config import quick
from initscope.schema import Outcome, Status
from initscope.store import Runs
from initscope_dashboard.content import comparison_choices, headlines


def test_titles_are_unique_and_do_not_change_when_a_run_ends(tmp_path: Path) -> None:
    """Runs of a sweep begin in the same second with the same initialization and seed; the browser sends their
    titles back.
    """
    runs = Runs(tmp_path)
    base = quick()
    axis_values = [base.replace(learning_rate=rate) for rate in (1e-4, 1e-3, 1e-2)]
    for sweep in ("a" * 60 + "1", "a" * 60 + "2"):
        made = [
            runs.create(config)
            for one in axis_values
            for config in plan(one, ["default", "kaiming_normal"], 2, sweep)
        ]
    before = comparison_choices.choices(runs.list())
    assert len(set(before.values())) == len(before) == 24 + 12, (
        "a group is of one learning rate: seeds of several are not pooled"
    )
    runs.create(made[0].config().replace(init_seed=9), Status.FINISHED, outcome=str(Outcome.CONVERGED))
    after = comparison_choices.choices(runs.list())
    assert {key: after[key] for key in before} == before


def test_the_pair_that_is_suggested_is_evidence_where_there_is_some(tmp_path: Path) -> None:
    """Two runs of a sweep over seeds stand for all of its seeds, also when something else was launched since;
    cells of a varied sweep do not.
    """
    runs = Runs(tmp_path)
    ended = {"default": Outcome.NOT_CONVERGED, "kaiming_normal": Outcome.CONVERGED}

    def sweep(name: str, rates: tuple[float, ...]) -> list[str]:
        configs = [
            config
            for rate in rates
            for config in plan(quick().replace(learning_rate=rate), list(ended), 2, name)
        ]
        return [
            runs.create(config, Status.FINISHED, outcome=str(ended[config.init])).id for config in configs
        ]

    made = sweep("varied", (1e-4, 1e-3))
    assert comparison_choices.suggested_pair(runs.list()) == (
        "init=default,sweep=varied,learning_rate=0.001",
        "init=kaiming_normal,sweep=varied,learning_rate=0.001",
    ), "the newest sweep, like with like"
    runs.create(quick().replace(epochs=9))
    a, b = comparison_choices.suggested_pair(runs.list())
    assert {a, b} <= set(made) and [runs.info(run).init for run in (a, b)] == list(ended)
    sweep("seeds", (1e-3,))
    for seed in range(2):  # neither the worst nor the best, and the newest to fail
        outcome = (Outcome.CONVERGED, Outcome.NOT_CONVERGED)[seed]
        runs.create(
            quick().replace(init="xavier_normal", init_seed=seed, sweep="seeds"),
            Status.FINISHED,
            outcome=str(outcome),
        )
    runs.create(quick().replace(epochs=9))
    assert comparison_choices.suggested_pair(runs.list()) == (
        "init=default,sweep=seeds",
        "init=kaiming_normal,sweep=seeds",
    )


def own(runs: Runs, name: str, outcome: Outcome, *, tags: tuple[str, ...] = ()) -> str:
    state = {
        "source": "recorder",
        "outcome": str(outcome),
        "outcome_by": "training loss",
        "outcome_because": "it is gone",
    }
    return runs.create(
        {"name": name, "init": "custom", "model": "Net", "tags": list(tags)}, Status.FINISHED, **state
    ).id


def test_own_runs_of_one_name_or_tag_are_a_side(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for _ in range(3):
        own(runs, "N(0, 1), lr=0.1", Outcome.NOT_CONVERGED, tags=("first",))
        own(runs, "N(0, 1/fan_in)", Outcome.CONVERGED)
    own(runs, "single", Outcome.CONVERGED)
    offered = comparison_choices.choices(runs.list())
    assert {
        "name=N(0, 1), lr=0.1",
        "name=N(0, 1/fan_in)",
        "tags=first",
    } <= offered.keys() and "name=single" not in offered
    for selection in ("name=N(0, 1), lr=0.1", "name=N(0, 1/fan_in)", "tags=first"):
        assert len(runs.select(selection)) == 3, "as on the command line"
    assert comparison_choices.suggested_pair(runs.list()) == ("name=N(0, 1), lr=0.1", "name=N(0, 1/fan_in)")


def test_a_headline_calls_initializations_as_the_page_does(runs):
    """Whole labels only: with another network "default" is a part of the other side's label."""
    made = {}
    for init, model, outcome in (
        ("default", "vgg16", "not_converged"),
        ("kaiming_normal", "vgg16", "converged"),
        ("default", "vgg11", "converged"),
    ):
        config = quick().replace(init=init, model=model)
        made[init, model] = runs.create(config, Status.FINISHED, outcome=outcome)
    worst = made["default", "vgg16"]
    found = headlines.comparison(compare([worst], [made["kaiming_normal", "vgg16"]]))
    assert found.startswith("fixed: 1 of 1 converge with Kaiming normal, 0 of 1 with PyTorch default (")
    other = headlines.comparison(compare([made["default", "vgg11"]], [made["kaiming_normal", "vgg16"]]))
    assert "with Kaiming normal in VGG16, 1 of 1 with PyTorch default in VGG11" in other
    same = compare([worst], [made["default", "vgg11"]])
    assert headlines.comparison(same) == same.headline
