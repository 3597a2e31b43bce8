"""The definition of an outcome: its worked example, its edges, and its claim about guessing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from initscope import outcome
from initscope.outcome import CERTAIN_SIGNAL, MIN_STEPS, certain, chance_ceiling, converged_floor, judge
from initscope.schema import Outcome


def judged(**changes) -> Outcome:
    return judge(**{"loss_finite": True, "steps": 1000, "accuracy": 0.5, "chance": 0.1, "samples": 359, **changes})


def test_the_docstrings_example():
    assert chance_ceiling(0.1, 359) == pytest.approx(0.148, abs=5e-4) and "14.8 %" in outcome.__doc__
    assert converged_floor(0.1) == pytest.approx(0.40) and "from 40 %" in outcome.__doc__


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"accuracy": 0.1}, Outcome.NOT_CONVERGED),
        ({"accuracy": 0.0}, Outcome.NOT_CONVERGED),
        ({"accuracy": 0.147}, Outcome.NOT_CONVERGED),
        ({"accuracy": 0.149}, Outcome.UNDECIDED),
        ({"accuracy": 0.399}, Outcome.UNDECIDED),
        ({"accuracy": 0.4}, Outcome.CONVERGED),
        ({"accuracy": 1.0}, Outcome.CONVERGED),
        ({"accuracy": 1.0, "loss_finite": False}, Outcome.DIVERGED),
        ({"accuracy": None, "loss_finite": False, "steps": 1}, Outcome.DIVERGED),
        ({"accuracy": None}, Outcome.UNDECIDED),
        ({"steps": outcome.MIN_STEPS - 1, "accuracy": 1.0}, Outcome.UNDECIDED),
        ({"steps": outcome.MIN_STEPS, "accuracy": 1.0}, Outcome.CONVERGED),
        ({"samples": 0, "accuracy": 0.9}, Outcome.UNDECIDED),
        # One sample proves nothing: guessing gets it right one time in ten, and the ceiling is above 1.
        ({"samples": 1, "accuracy": 1.0}, Outcome.NOT_CONVERGED),
        # Two classes of 90 and 10 percent: always saying the first is guessing.
        ({"chance": 0.9, "accuracy": 0.9}, Outcome.NOT_CONVERGED),
        ({"chance": 0.9, "accuracy": 0.96}, Outcome.CONVERGED),
        ({"chance": 1.0, "accuracy": 1.0}, Outcome.NOT_CONVERGED),
    ],
)
def test_each_branch(changes, expected):
    assert judged(**changes) is expected


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1), st.integers(1, 10**6))
def test_more_accuracy_is_never_a_worse_outcome(low, high, chance, samples):
    rank = [Outcome.NOT_CONVERGED, Outcome.UNDECIDED, Outcome.CONVERGED]
    low, high = sorted((low, high))
    assert rank.index(judged(accuracy=low, chance=chance, samples=samples)) <= rank.index(
        judged(accuracy=high, chance=chance, samples=samples)
    )


@pytest.mark.parametrize("samples", [20, 100, 359, 10_000])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_guessing_is_not_called_convergence(samples, classes):
    hits = range(samples + 1)
    outcomes = [judged(accuracy=k / samples, chance=1 / classes, samples=samples) for k in hits]
    chances = stats.binom.pmf(hits, samples, 1 / classes)
    assert sum(p for p, found in zip(chances, outcomes, strict=True) if found is Outcome.CONVERGED) < 0.002
    assert sum(p for p, found in zip(chances, outcomes, strict=True) if found is Outcome.NOT_CONVERGED) > 0.98


@pytest.mark.parametrize(
    ("accuracies", "changes", "expected"),
    [
        ([], {}, False),
        ([0.1, 0.1], {}, True),  # at chance twice, and the output ignores the input
        ([0.1], {}, False),
        ([0.2, 0.1], {}, False),
        ([0.1, 0.1], {"relative_signal": 10 * CERTAIN_SIGNAL}, False),  # at chance, but something still arrives
        ([0.1, 0.1], {"steps": MIN_STEPS - 1}, False),
        ([0.1, 0.1], {"planned": 2001}, False),  # before half time it may still escape
        ([0.65], {"relative_signal": 1.0}, True),  # 61 % of the way
        ([0.6], {"relative_signal": 1.0}, False),
        ([0.95], {"steps": MIN_STEPS - 1}, False),
    ],
)
def test_when_a_run_may_end_early(accuracies, changes, expected):
    given = {"accuracies": accuracies, "steps": 1000, "planned": 2000, "chance": 0.1, "samples": 359, "relative_signal": 1e-8, **changes}
    assert certain(**given) is expected
    if expected:
        assert judged(accuracy=accuracies[-1]) in (Outcome.CONVERGED, Outcome.NOT_CONVERGED), "an early end has an outcome"
