"""Did B fix what A suffers from: verdicts from counts, labels, fairness, gradients; on run folders made by
hand.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from initscope.__main__ import main
from initscope.comparison.compare import SIGNIFICANT, compare, gradient_ratios, judge_rates
from initscope.comparison.statistics import fisher_exact, newcombe
from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError, RunFolderError
from initscope.recording.recorder import Recorder
from initscope.schema import LAYER_METRICS, Outcome, Status, Verdict
from initscope.store import Run, Runs, RunWriter
from tests.store.test_store import DEPTHS, KINDS, NAMES


@pytest.fixture
def made(runs: Runs):
    """Writes an ended run with the given outcome and first gradients of its two layers."""

    def make(
        outcome: str | None, gradients=(1e-6, 1e-1), status=Status.FINISHED, steps=(0, 1), **changes
    ) -> Run:
        run = runs.create(RunConfig(**changes))
        writer = RunWriter(run)
        for step in steps:
            grown = [None if g is None else g * (1 + step) for g in gradients]
            writer.layers(step, NAMES, KINDS, DEPTHS, [grown] * (len(LAYER_METRICS) - 1) + [[0, 0]])
        writer.compact()
        writer.update(status=str(status), outcome=outcome)
        return run

    return make


def counts(k: int, n: int) -> list[str]:
    return ["converged"] * k + ["not_converged"] * (n - k)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ((0, 1), (1, 1), Verdict.FIXED),
        ((1, 1), (0, 1), Verdict.WORSE),
        ((0, 1), (0, 1), Verdict.NOT_FIXED),
        ((1, 1), (1, 1), Verdict.NOT_NEEDED),
        ((0, 5), (5, 5), Verdict.FIXED),
        ((5, 5), (0, 5), Verdict.WORSE),
        ((0, 2), (2, 3), Verdict.UNDECIDED),
        ((1, 5), (4, 5), Verdict.UNDECIDED),
        ((1, 20), (19, 20), Verdict.FIXED),
        ((0, 5), (1, 5), Verdict.NOT_FIXED),
        ((4, 5), (5, 5), Verdict.NOT_NEEDED),
        ((60, 100), (99, 100), Verdict.FIXED),
        ((99, 100), (60, 100), Verdict.WORSE),
        ((0, 0), (3, 3), Verdict.UNDECIDED),
        ((3, 3), (0, 0), Verdict.UNDECIDED),
    ],
)
def test_verdicts(a, b, verdict):
    assert judge_rates(*a, *b, fisher_exact(*a, *b)) is verdict


def test_swapping_the_sides_swaps_the_verdict():
    mirror = {Verdict.FIXED: Verdict.WORSE, Verdict.WORSE: Verdict.FIXED}
    for n_a in range(6):
        for n_b in range(6):
            for k_a in range(n_a + 1):
                for k_b in range(n_b + 1):
                    p = fisher_exact(k_a, n_a, k_b, n_b)
                    verdict = judge_rates(k_a, n_a, k_b, n_b, p)
                    assert judge_rates(k_b, n_b, k_a, n_a, p) is mirror.get(verdict, verdict)
                    if verdict is Verdict.FIXED:
                        assert k_b / n_b > k_a / n_a and (p < SIGNIFICANT or (k_a == 0 and k_b == n_b))


def test_the_contracts_keys_and_sentence(made):
    a = [made("not_converged", init="default", init_seed=seed) for seed in range(5)]
    b = [made("converged", (1e-1, 1e-1), init="kaiming_normal", init_seed=seed) for seed in range(5)]
    answer = compare(a, b)
    keys = {"verdict", "headline", "converged", "p_value", "interval", "changed_fields", "fair", "layers"}
    assert keys <= set(answer.to_dict())
    assert answer.headline == "fixed: 5 of 5 converge with kaiming_normal, 0 of 5 with default (p = 0.008)"
    assert answer.converged == {"a": [0, 5], "b": [5, 5]} and answer.fair and answer.warning is None
    assert answer.p_value == pytest.approx(2 / math.comb(10, 5)) and answer.interval == list(
        newcombe(0, 5, 5, 5)
    )
    assert answer.changed_fields == {"init": ["default", "kaiming_normal"]}
    assert answer.layers == [
        {"layer": "conv1_1", "called": "conv1_1", "log10_grad_ratio": pytest.approx(5, abs=1e-5)},
        {"layer": "fc3", "called": "fc3", "log10_grad_ratio": pytest.approx(0, abs=1e-5)},
    ]
    assert answer.runs == {"a": [run.id for run in a], "b": [run.id for run in b]}


def test_one_seed_is_called_an_anecdote(made):
    answer = compare([made("not_converged")], [made("converged", init="kaiming_normal")])
    assert (
        answer.headline
        == "fixed: 1 of 1 converge with kaiming_normal, 0 of 1 with default (one seed each: an anecdote, "
        "not yet evidence)"
    )


def test_runs_that_say_nothing_are_not_counted(made):
    decided = [made("not_converged"), made("diverged", init_seed=1)]
    silent = [
        made("undecided", init_seed=2),
        made(None, init_seed=3, status=Status.FAILED),
        made("converged", init_seed=4, status=Status.QUEUED),
    ]
    answer = compare(
        decided + silent,
        [made("converged", init="kaiming_normal"), made("converged", init="kaiming_normal", init_seed=1)],
    )
    assert answer.converged == {"a": [0, 2], "b": [2, 2]}, (
        "diverged counts as not converged; undecided, failed and live as nothing"
    )
    assert "2 of 2 converge with kaiming_normal, 0 of 2 with default" in answer.headline

    waiting = compare([made(None, status=Status.QUEUED)], [made("converged", init="zeros")])
    assert (
        waiting.verdict is Verdict.UNDECIDED and waiting.headline == "undecided: 1 of 2 runs are still going"
    )
    early = compare([made("undecided")], [made("converged", init="zeros")])
    assert early.headline == "undecided: no run with default has come far enough to tell"


def test_no_verdict_while_runs_that_are_going_can_turn_it(made):
    """1 of 1 against 0 of 1 with eight live is not yet "fixed"; 5 of 5 against 0 of 5 is, whatever comes."""

    def side(init: str, outcome: str, ended: int, live: int) -> list[Run]:
        return [made(outcome, init=init, init_seed=seed) for seed in range(ended)] + [
            made(None, init=init, init_seed=ended + seed, status=Status.QUEUED) for seed in range(live)
        ]

    early = compare(side("default", "not_converged", 1, 4), side("kaiming_normal", "converged", 1, 4))
    assert early.verdict is Verdict.UNDECIDED and early.headline == (
        "undecided: 8 of 10 runs are still going; so far 1 of 1 converge with kaiming_normal, 0 of 1 with "
        "default"
    )
    sure = compare(side("zeros", "not_converged", 5, 1), side("orthogonal", "converged", 5, 1))
    assert sure.verdict is Verdict.FIXED and sure.p_value < SIGNIFICANT


def test_other_networks_are_named(made):
    """Two things differ: "with kaiming_normal" alone would hide one."""
    answer = compare(
        [made("not_converged", model="vgg16")], [made("converged", model="lenet", init="kaiming_normal")]
    )
    assert "kaiming_normal in LeNet-5, 0 of 1 with default in VGG16" in answer.headline and not answer.fair
    same = compare([made("not_converged", model="vgg16")], [made("converged", model="lenet")])
    assert "converge with LeNet-5, 0 of 1 with VGG16" in same.headline


def test_fairness(made):
    def answer(a: dict, b: dict):
        return compare([made("not_converged", **a)], [made("converged", **b)])

    for changes in (
        {"init": "zeros"},
        {"gain": 2},
        {"init_seed": 9},
        {"name": "x"},
        {"tags": "x"},
        {"record_every": 5},
        {"sweep": "s"},
    ):
        assert answer({}, changes).fair, changes
    for field, value in {
        "learning_rate": 0.1,
        "epochs": 3,
        "batch_norm": True,
        "data": "mnist",
        "data_seed": 5,
        "max_steps": 7,
    }.items():
        unfair = answer({}, {"init": "zeros", field: value})
        assert not unfair.fair and field in unfair.warning and unfair.changed_fields[field][1] == value
    assert answer({}, {}).headline.startswith("fixed: 1 of 1 converge with B, 0 of 1 with A"), (
        "two runs of one name"
    )
    assert (
        "converge with learning_rate 0.1, 0 of 1 with learning_rate 0.001"
        in answer({}, {"learning_rate": 0.1}).headline
    )
    groups = compare(
        [made("converged", init_seed=s) for s in (0, 1)],
        [made("converged", init_seed=s, learning_rate=0.1 * (s + 1)) for s in (0, 1)],
    )
    assert groups.changed_fields == {"learning_rate": [0.001, [0.1, 0.2]]}


def test_few_seeds_are_said_to_be_few(made):
    """Unanimous is not yet significant; a single seed on one side is an anecdote; what is left out is
    counted.
    """
    bad = [made("not_converged", init_seed=s) for s in range(3)]
    good = [made("converged", init="zeros", init_seed=s) for s in range(3)]
    assert (
        compare(bad, good).headline
        == "fixed: 3 of 3 converge with zeros, 0 of 3 with default (p = 0.1: too few seeds to rule out luck)"
    )
    assert (
        compare(bad, good[:1]).headline
        == "fixed: 1 of 1 converge with zeros, 0 of 3 with default (p = 0.25; one seed with zeros: an "
        "anecdote)"
    )
    waiting = made("undecided", init_seed=7)
    assert compare([*bad, waiting], good).headline.endswith(
        "luck; 1 undecided, failed or unfinished not counted)"
    )


def test_a_seed_that_ran_twice_counts_once(made, runs):
    again = [
        made("not_converged", steps=()),
        made("not_converged", steps=(), stop_when_certain=True),
        made(None, steps=(), status=Status.FAILED),
    ]
    answer = compare(again, [made("converged", init="zeros", steps=())])
    assert answer.converged == {"a": [0, 1], "b": [1, 1]} and "anecdote" in answer.headline
    mine = [
        runs.create({"init": "custom", "name": "mine"}, Status.FINISHED, outcome="converged")
        for _ in range(3)
    ]
    assert compare(mine, again).converged["a"] == [3, 3], "a loop of somebody's own tells no seed"


def test_a_run_on_both_sides_is_refused(made):
    run, other = made("converged", steps=()), made("converged", init="zeros", steps=())
    with pytest.raises(ConfigError, match=rf"run {run.id} is on both sides"):
        compare([run, other], [run])


def test_sides_that_mix_networks_unevenly_are_unfair(made):
    """Default weights on five easy networks and a hard one, Kaiming's on one and five: the networks decide,
    not the weights.
    """

    def side(outcome: str, init: str, **models: int) -> list[Run]:
        return [
            made(outcome, init=init, model=m, init_seed=s, steps=())
            for m, n in models.items()
            for s in range(n)
        ]

    uneven = compare(
        side("converged", "default", vgg11=3, vgg19=1), side("not_converged", "zeros", vgg11=1, vgg19=3)
    )
    assert (
        not uneven.fair
        and "mix several values of model" in uneven.warning
        and "model" not in uneven.changed_fields
    )
    assert compare(
        side("converged", "default", vgg11=2, vgg19=2), side("not_converged", "zeros", vgg11=1, vgg19=1)
    ).fair


def test_gradients_that_have_no_logarithm(made):
    ones = made("converged", (1.0, 1.0))
    for odd in (0.0, math.nan, math.inf, None):
        for side in ([made("converged", (odd, 1.0))], [made("converged", (odd, 1.0)), ones]):
            assert [row["log10_grad_ratio"] for row in gradient_ratios(side, [ones])] == [None, 0]
            assert [row["log10_grad_ratio"] for row in gradient_ratios([ones], side)] == [None, 0]
    assert gradient_ratios([made("converged", steps=())], [ones]) == []
    # The median of three, and the first recorded step whatever its number.
    three = [made("converged", (10.0**k, 1.0), steps=(5, 10)) for k in (-3, 0, 7)]
    assert gradient_ratios([ones], three)[0]["log10_grad_ratio"] == pytest.approx(math.log10(6), abs=1e-5)


def test_foreign_runs_can_be_compared_and_unreadable_ones_are_named(made, runs):
    torn = made("converged")
    (torn.path / "config.json").write_text("{")
    custom = runs.create({"init": "custom", "model": "Net", "name": "mine"}, Status.FINISHED, outcome=None)
    RunWriter(custom).update(outcome=str(Outcome.CONVERGED))
    good = made("not_converged")
    for a, b in ((torn, good), (good, torn)):
        with pytest.raises(RunFolderError, match="is not valid JSON"):
            compare([a], [b])
    for a, b in ((custom, good), (good, custom)):
        answer = compare([a], [b])
        assert answer.headline and len(answer.headline.splitlines()) == 1


def test_numbered_layers_are_called_by_what_they_are(tmp_path, capsys):
    """Layers of a Sequential, in the evidence of a comparison; of networks that differ, both sides'."""
    runs = {}
    for hidden in (16, 8):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
        with Recorder(model, torch.optim.SGD(model.parameters(), 0.1), runs=tmp_path, quiet=True) as recorder:
            loss = model(torch.randn(6, 4)).square().mean()
            loss.backward()
            recorder.step(loss)
        runs[hidden] = recorder.run
    called = [row["called"] for row in gradient_ratios([runs[16]], [runs[8]])]
    assert called == [
        "layer 0 (Linear 4 to 16) against layer 0 (Linear 4 to 8)",
        "layer 2 (Linear 16 to 3) against layer 2 (Linear 8 to 3)",
    ]
    assert [row["called"] for row in gradient_ratios([runs[8]], [runs[8]])] == [
        "layer 0 (Linear 4 to 8)",
        "layer 2 (Linear 8 to 3)",
    ]
    assert main(["compare", runs[16].id, runs[8].id, "--runs", str(tmp_path)]) == 0
    assert "layer 2 (Linear 16 to 3) against layer 2 (Linear 8 to 3) first-step" in capsys.readouterr().out
