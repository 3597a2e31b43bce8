"""The story's claims from a sweep's rows: what counts as training, what the controls decide, what is missing;
and sweeps over networks.
"""

from __future__ import annotations

import pytest

from initscope.comparison import network_study, sweep
from initscope.comparison.statistics import wilson
from initscope.config import catalog
from initscope.config.run_config import RunConfig
from initscope.errors import ConfigError
from initscope.schema import Outcome
from initscope.store import RunInfo, Runs
from initscope.store.writer import RunWriter

SEEDS = 3
ALL, NONE = (SEEDS, SEEDS), (0, SEEDS)


def members(
    runs: Runs, results: dict[network_study.Network, tuple[int, int]], sweep_name: str = "s"
) -> list[RunInfo]:
    """A folder with finished runs: of each network ``SEEDS`` with default and ``SEEDS`` with Kaiming weights,
    so many converged.
    """
    for network, converged in results.items():
        for init, count in zip(network_study.INITS, converged, strict=True):
            for seed in range(SEEDS):
                run = runs.create(
                    network_study.base().replace(
                        init=init, init_seed=seed, sweep=sweep_name, **network._asdict()
                    )
                )
                outcome = Outcome.CONVERGED if seed < count else Outcome.NOT_CONVERGED
                RunWriter(run).update(status="finished", outcome=str(outcome))
    return runs.list()


def story(
    default: dict[tuple[str, bool], int], kaiming: int = SEEDS
) -> dict[network_study.Network, tuple[int, int]]:
    """The study with so many default runs converged, by (model, batch norm); all where it is not said."""
    return {n: (default.get((n.model, n.batch_norm), SEEDS), kaiming) for n in network_study.STUDY}


def test_the_storys_own_outcome_is_called_so(runs):
    """What the story expects: VGG and GoogLeNet lost by default; 34 layers lost without shortcuts."""
    lost = {
        ("vgg11", False): 0,
        ("vgg16", False): 0,
        ("vgg19", False): 1,
        ("googlenet", False): 0,
        ("plain34", False): 0,
        ("plain34", True): 0,
    }
    table = network_study.rows(members(runs, story(lost)))
    assert [found.holds for found in network_study.findings(table)] == [True, True, True]
    assert network_study.sentence(table) == (
        "5 of 11 networks train with PyTorch's default weights; Kaiming weights rescue VGG11, VGG16, VGG19, "
        "GoogLeNet, Plain-34 and Plain-34 without batch norm (3 seeds each)."
    )
    assert list(dict.fromkeys(row["label"] for row in table))[:3] == ["LeNet-5", "AlexNet", "VGG11"]
    row = next(row for row in table if row["label"] == "VGG19" and row["init"] == "default")
    assert (row["converged"], row["runs"]) == (1, 3) and (row["low"], row["high"]) == wilson(1, 3)


@pytest.mark.parametrize(
    ("lost", "claim", "holds", "says"),
    [
        ({("alexnet", False): 1}, 0, False, "AlexNet 1 of 3"),
        (
            {("vgg16", False): 0, ("vgg11", False): 2, ("vgg19", False): 0, ("googlenet", False): 0},
            1,
            False,
            "so for VGG16, VGG19 and GoogLeNet, not for VGG11",
        ),
        (
            {},
            2,
            False,
            "with batch norm 34 layers train without shortcuts too (3 of 3); without batch norm 34 layers "
            "train without shortcuts too",
        ),
        (
            {("plain34", False): 0},
            2,
            True,
            "without batch norm the shortcuts decide: of 34 layers 3 of 3 with them, 0 of 3 without",
        ),
        ({("resnet18", True): 1, ("plain34", False): 0}, 2, False, "ResNet-18 1 of 3"),
        (
            {("resnet34", False): 0, ("plain34", False): 0},
            2,
            False,
            "train neither with shortcuts (0 of 3) nor without (0 of 3)",
        ),
    ],
)
def test_each_claim_can_fail(runs, lost, claim, holds, says):
    found = network_study.findings(network_study.rows(members(runs, story(lost))))[claim]
    assert (found.holds, says in found.text) == (holds, True), found


def test_what_is_missing_is_not_decided(runs):
    assert [found.holds for found in network_study.findings([])] == [None] * 3
    assert network_study.sentence([]) == "No network has come far enough to tell."
    some = {n: result for n, result in story({}).items() if n.model == "lenet"}
    table = network_study.rows(members(runs, some))
    assert [found.holds for found in network_study.findings(table)] == [True, None, None]
    assert (
        network_study.sentence(table)
        == "1 of 1 networks train with PyTorch's default weights (3 seeds each)."
    )


def test_two_widths_of_a_network_are_told_apart(runs):
    table = network_study.rows(
        members(
            runs,
            {
                network_study.Network("vgg16", 0.25, False): ALL,
                network_study.Network("vgg16", 0.5, False): NONE,
            },
        )
    )
    assert list(dict.fromkeys(row["label"] for row in table)) == ["VGG16, width 0.25", "VGG16, width 0.5"]


def test_the_plan_runs_what_is_missing_with_the_sweeps_own_settings(runs):
    plan = network_study.plan(seeds=2)
    assert len(plan) == len(network_study.STUDY) * 4 and len(set(plan)) == len(plan)
    assert [config.init_seed for config in plan] == sorted(config.init_seed for config in plan), (
        "a seed of everything before the next"
    )
    assert {(c.model, c.width, c.batch_norm) for c in plan} == set(network_study.STUDY)
    assert {c.sweep for c in plan} == {sweep.name_of(network_study.base(), networks=True)}
    assert set(catalog.MODELS) >= {c.model for c in plan}

    there = members(
        runs,
        {network_study.Network("lenet", 1.0, False): ALL, network_study.Network("vgg16", 0.1, True): ALL},
        "mine",
    )
    again = network_study.plan("mine", there, SEEDS)
    assert not sweep.missing(again, there)
    more = sweep.missing(network_study.plan("mine", there, SEEDS + 1), there)
    assert sorted((c.model, c.batch_norm, c.init, c.init_seed) for c in more) == [
        ("lenet", False, "default", 3),
        ("lenet", False, "kaiming_normal", 3),
        ("vgg16", True, "default", 3),
        ("vgg16", True, "kaiming_normal", 3),
    ]


def test_a_sweep_over_networks_keeps_each_papers_batch_norm():
    axis = sweep.models_axis("vgg16, resnet18,vgg16")
    assert axis.values == ("vgg16", "resnet18")
    plan = sweep.plan(network_study.base(), ["default"], 1, "s", [axis])
    assert {c.model: c.batch_norm for c in plan} == {"vgg16": False, "resnet18": True}
    plan = sweep.plan(
        network_study.base(), ["default"], 1, "s", [axis, sweep.parse_axis("batch_norm=no,yes")]
    )
    assert {(c.model, c.batch_norm) for c in plan} == {(m, on) for m in axis.values for on in (False, True)}
    names = {
        sweep.name_of(RunConfig(model=m, width=w), networks=True) for m, w in (("vgg16", 1.0), ("lenet", 0.5))
    }
    assert len(names) == 1 and names.pop().startswith("family-digits-")
    for bad, words in (("lenet,vgg99", 'did you mean "vgg19"'), (" , ", "no networks given")):
        with pytest.raises(ConfigError, match=words):
            sweep.models_axis(bad)
    with pytest.raises(ConfigError, match="once, not twice"):
        sweep.plan(network_study.base(), ["default"], 1, "s", [axis, sweep.parse_axis("depth=11")])
