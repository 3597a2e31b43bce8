"""Every planted fault is called by its name, healthy runs are left alone, and the remedy works."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from initscope.diagnosis.diagnose import diagnose
from initscope.schema import Cause, Outcome
from initscope.store import Runs
from initscope.training.trainer import train
from tests.diagnosis.structure_cases import CASES as STRUCTURE_CASES
from tests.faults.bench import CASES
from tests.faults.kit import trained

SYMPTOMS = {
    "signal_collapse",
    "vanishing_gradient",
    "exploding_gradient",
    "loss_plateau_at_chance",
    "loss_nonfinite",
    "loss_oscillates",
    "dead_units",
    "saturated_units",
    "weights_frozen",
    "identical_units",
}
"""The symptom ids of the contract (DESIGN.md)."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Using a target size")  # planted


def firsts() -> list[str]:
    """The first case of each cause, and those that must show a symptom: a fifth of the bench's time."""
    first = {case.causes: name for name, case in reversed(CASES.items())}
    return [name for name, case in CASES.items() if case.finds or first[case.causes] == name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", CASES if metafunc.config.getoption("--every-case") else firsts())


def test_cause_is_named(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    found = diagnose(case.make(tmp_path))
    evidence = "\n".join(f"{finding.id}: {finding.text}" for finding in (*found.findings, *found.set_aside))
    assert str(found.cause) in case.causes, f"{found.cause} ({found.confidence}) for {name}\n{evidence}"
    assert 0 < found.confidence <= 1
    assert (not found.findings) == (found.cause is Cause.HEALTHY)
    assert found.remedy.text
    assert case.finds <= {finding.id for finding in found.findings}, evidence


def test_bench_is_wide_enough() -> None:
    expected = [cause for case in CASES.values() for cause in case.causes]
    assert len(CASES) >= 30
    assert len({case.architecture for case in CASES.values()}) >= 6
    assert expected.count("healthy") >= 8
    structural = [cause for causes, _ in STRUCTURE_CASES.values() for cause in causes]
    assert {cause for cause in Cause if (expected + structural).count(cause) < 2} <= {Cause.UNKNOWN}
    assert frozenset().union(*(case.finds for case in CASES.values())) >= SYMPTOMS, (
        "each of the contract's, from a real fault"
    )
    assert sum(len(case.causes) > 1 for case in CASES.values()) == 0, (
        "a case with two names proves half as much"
    )


@pytest.mark.parametrize(
    "fault",
    [
        {"model": "vgg13", "init": "normal_0.01"},
        {"init": "zeros"},
        {"init": "kaiming_normal", "gain": 6.0},
        {"init": "kaiming_normal", "learning_rate": 0.3},
        {"init": "kaiming_normal", "learning_rate": 1e-7},
        {"init": "kaiming_normal", "learning_rate": 1e-7, "optimizer": "sgd"},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_remedy_fixes_the_run(fault: dict, tmp_path: Path) -> None:
    """The same run, seeds and order of data with the remedy's changes converges."""
    broken = trained(tmp_path, **{"epochs": 5, "width": 0.125, **fault})
    found = diagnose(broken)
    assert found.cause is not Cause.HEALTHY and found.remedy.changes
    repaired = Runs(tmp_path).create(broken.config().replace(**found.remedy.changes))
    assert train(repaired) is Outcome.CONVERGED, (found.cause, found.remedy)
    assert diagnose(repaired).cause is Cause.HEALTHY
