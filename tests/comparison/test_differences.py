"""What differs between loops of somebody's own, and how their runs are counted and paired."""

from __future__ import annotations

import pytest

from initscope.comparison import differences
from initscope.comparison.compare import BY_DEPTH, BY_NAME, compare, distinct, pair_layers
from initscope.schema import Outcome, Status, Verdict
from initscope.store import Run, Runs

CHAIN = {"chain": ["NllLoss", "LogSoftmax"], "classes": 10}


def own(
    runs: Runs,
    name: str,
    outcome: Outcome,
    steps: int = 100,
    config: dict | None = None,
    status: Status = Status.FINISHED,
    **facts,
) -> Run:
    values = {"name": name, "init": "custom", "model": "Net", **({"own": config} if config else {})}
    state = {
        "source": "recorder",
        "step": steps,
        "outcome": str(outcome),
        "outcome_by": "training loss",
        "outcome_because": "it is gone",
    }
    return runs.create(
        values,
        status,
        facts={"optimizer": "Adam", "batch_size": 64, "parameters": 10, "loss": CHAIN, **facts},
        **state,
    )


def test_own_configuration_and_recorded_facts_are_compared(runs):
    a = own(
        runs,
        "a",
        Outcome.NOT_CONVERGED,
        config={"lr": 0.1, "seed": 1, "data": {"name": "digits"}},
        optimizer="SGD",
        scales={"x": {"gain": 5.0}},
    )
    b = own(
        runs,
        "b",
        Outcome.CONVERGED,
        config={"lr": 0.01, "seed": 2, "data": {"name": "digits"}},
        scales={"x": {"gain": 1.0}},
    )
    found = compare([a], [b])
    assert found.changed_fields == {
        "own.lr": [0.1, 0.01],
        "recorded.optimizer": ["SGD", "Adam"],
        "recorded.weights": [5.0, 1.0],
    }
    assert [differences.title(field) for field in found.changed_fields] == [
        "lr",
        "Optimizer",
        "Weights at the start, std × √fan_in",
    ]
    assert not found.fair and "Several things differ (lr, optimizer, weights)" in found.warning
    assert found.labels == ["a", "b"] and found.headline.startswith(
        "fixed: 1 of 1 converge with b, 0 of 1 with a (one seed each"
    )


def test_weights_of_other_seeds_are_no_difference_and_nothing_is_told_is_none(runs):
    a, b = (
        own(runs, "a", Outcome.CONVERGED, scales={"x": {"gain": 1.0}}),
        own(runs, "b", Outcome.CONVERGED, scales={"x": {"gain": 1.02}}),
    )
    assert compare([a], [b]).changed_fields == {}
    bare = runs.create(
        {"init": "custom"},
        Status.FINISHED,
        source="recorder",
        outcome="converged",
        outcome_by="validation",
        outcome_because="x",
    )
    assert compare([a], [bare]).verdict is Verdict.NOT_NEEDED, "a run without facts is compared all the same"


def test_layers_bring_their_parameters_along():
    assert differences.things(["recorded.parameters", "recorded.activations"]) == 1
    assert differences.things(["own.lr", "recorded.optimizer.lr"]) == 1
    assert differences.things(["own.lr", "own.width"]) == 2


def test_a_seed_that_was_told_counts_once_and_one_that_was_not_each_time(runs):
    told = [own(runs, "a", Outcome.CONVERGED, config={"seed": seed}).info() for seed in (0, 0, 1)]
    silent = [own(runs, "b", Outcome.CONVERGED).info() for _ in range(3)]
    assert (len(distinct(told)), len(distinct(silent))) == (2, 3)


@pytest.mark.parametrize(
    ("steps", "status", "counts"),
    [
        (100, Status.FINISHED, [0, 3]),
        (99, Status.FINISHED, [0, 0]),
        (100, Status.STOPPED, [0, 0]),
        (40, Status.FINISHED, [0, 0]),
    ],
)
def test_a_run_that_learns_a_little_tells_something_beside_one_that_converged_in_as_many_steps(
    runs, steps, status, counts
):
    slow = [own(runs, "slow", Outcome.UNDECIDED, steps, status=status) for _ in range(3)]
    good = [own(runs, "good", Outcome.CONVERGED, 100) for _ in range(3)]
    found = compare(slow, good)
    assert found.converged == {"a": counts, "b": [3, 3]}
    assert found.verdict is (Verdict.FIXED if counts[1] else Verdict.UNDECIDED)
    assert (
        not counts[1]
        or "0 of 3 with slow within 100 steps (p = 0.1: too few seeds to rule out luck; by training loss)"
        in found.headline
    )
    assert compare(slow, [own(runs, "other", Outcome.NOT_CONVERGED)]).converged["a"] == [0, 0], (
        "nothing to be slower than"
    )


def test_layers_are_paired_by_name_only_where_the_networks_have_the_same():
    assert pair_layers(["conv", "fc"], ["conv", "fc"]) == ([("conv", "conv"), ("fc", "fc")], BY_NAME)
    shallow, deep = ["0", "2", "4"], [str(2 * i) for i in range(13)]
    pairs, how = pair_layers(shallow, deep)
    assert how == BY_DEPTH and pairs == [("0", "0"), ("2", "12"), ("4", "24")], (
        "an output with an output, never with a hidden layer of its name"
    )
    assert pair_layers(deep, shallow)[0] == [(y, x) for x, y in pairs]
    assert pair_layers(["a"], ["b", "c"]) == ([("a", "b")], BY_DEPTH)
    assert pair_layers([], ["a"]) == ([], BY_NAME)
