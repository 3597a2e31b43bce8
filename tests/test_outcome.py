"""The definition of an outcome: its worked example, its edges, and its claim about guessing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from initscope import outcome
from initscope.diagnosis.diagnose import diagnose
from initscope.outcome import CERTAIN_SIGNAL, MIN_STEPS, certain, chance_ceiling, converged_floor, judge
from initscope.schema import Outcome, Status
from initscope.store import RunWriter


def judged(**changes) -> Outcome:
    return judge(
        **{"loss_finite": True, "steps": 1000, "accuracy": 0.5, "chance": 0.1, "samples": 359, **changes}
    )


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
        (
            [0.1, 0.1],
            {"relative_signal": 10 * CERTAIN_SIGNAL},
            False,
        ),  # at chance, but something still arrives
        ([0.1, 0.1], {"steps": MIN_STEPS - 1}, False),
        ([0.1, 0.1], {"planned": 2001}, False),  # before half time it may still escape
        ([0.65], {"relative_signal": 1.0}, True),  # 61 % of the way
        ([0.6], {"relative_signal": 1.0}, False),
        ([0.95], {"steps": MIN_STEPS - 1}, False),
    ],
)
def test_when_a_run_may_end_early(accuracies, changes, expected):
    given = {
        "accuracies": accuracies,
        "steps": 1000,
        "planned": 2000,
        "chance": 0.1,
        "samples": 359,
        "relative_signal": 1e-8,
        **changes,
    }
    assert certain(**given) is expected
    if expected:
        assert judged(accuracy=accuracies[-1]) in (Outcome.CONVERGED, Outcome.NOT_CONVERGED), (
            "an early end has an outcome"
        )


# -- loops of anybody


CROSS_ENTROPY = {
    "loss": {"chain": ["NllLoss", "LogSoftmax"], "classes": 10, "scale": 1.0},
    "batch_size": 64,
    "outputs": 10,
}


def decided(losses, facts=CROSS_ENTROPY, steps=None, **epochs):
    return outcome.decide(
        losses,
        steps=len(losses) if steps is None else steps,
        state={"source": "recorder", "facts": facts},
        **epochs,
    )


def course(first: float, last: float, steps: int = 100) -> list[float]:
    """A loss that falls within the first half."""
    return list(np.linspace(first, last, steps // 2)) + [last] * (steps - steps // 2)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (course(2.31, 0.5), Outcome.CONVERGED),
        (course(2.31, 2.30), Outcome.NOT_CONVERGED),
        (course(8.0, 2.29), Outcome.NOT_CONVERGED),  # most of the first loss is gone, and it only guesses
        (course(8.0, 2.0), Outcome.UNDECIDED),
        (course(2.31, 0.5, 48), Outcome.UNDECIDED),
        (course(2.31, 5.0), Outcome.NOT_CONVERGED),
        ([*course(2.31, 0.5), math.nan], Outcome.DIVERGED),
        ([math.inf], Outcome.DIVERGED),
        (course(2.31, -3.0), Outcome.UNDECIDED),  # no cross-entropy is negative
    ],
)
def test_the_training_loss_is_judged_against_the_price_of_guessing(losses, expected):
    found = decided(losses)
    assert found.outcome is expected
    assert found.by is (
        outcome.Basis.TRAINING_LOSS
        if (len(losses) >= MIN_STEPS and losses[-1] != -3.0) or not math.isfinite(losses[-1])
        else None
    )


def test_validation_goes_before_the_training_loss():
    memorised = decided(course(2.31, 0.01), val_accuracies=[0.5, 0.11])
    assert memorised.outcome is Outcome.NOT_CONVERGED and memorised.by is outcome.Basis.VALIDATION
    assert decided(course(2.31, 2.3), val_accuracies=[0.9]).outcome is Outcome.CONVERGED
    assert (
        decided(course(2.31, 0.01), val_losses=[2.5], val_accuracies=[None]).outcome is Outcome.NOT_CONVERGED
    )


def test_a_frequent_class_is_guessed_more_often():
    """90 % of one class of two: always answering it is no learning, whatever the accuracy."""
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    facts = {
        "loss": {
            "chain": ["NllLoss", "LogSoftmax"],
            "classes": 2,
            "scale": 1.0,
            "constant_answer": entropy,
            "constant_answer_error": 0.0,
        },
        "batch_size": 64,
    }
    assert decided(course(0.7, entropy), facts, val_accuracies=[0.9]).outcome is Outcome.NOT_CONVERGED
    assert decided(course(0.7, entropy), facts).outcome is Outcome.NOT_CONVERGED
    assert outcome.most_frequent(entropy, 2) == pytest.approx(0.9)
    assert outcome.most_frequent(math.log(10), 10) == pytest.approx(0.1, abs=1e-3)


def test_a_regression_is_judged_against_the_targets_mean_where_that_is_known():
    known = {
        "loss": {"chain": ["MseLoss"], "constant_answer": 4.0, "constant_answer_error": 0.1},
        "batch_size": 64,
    }
    assert decided(course(400.0, 4.0), known).outcome is Outcome.NOT_CONVERGED, (
        "all but the mean is left to learn"
    )
    assert decided(course(400.0, 1.0), known).outcome is Outcome.CONVERGED
    unsure = {
        "loss": {"chain": ["MseLoss"], "constant_answer": 4.0, "constant_answer_error": 2.0},
        "batch_size": 64,
    }
    assert decided(course(5.0, 3.9), unsure).outcome is Outcome.UNDECIDED


def test_of_other_losses_the_share_of_the_first_is_told_or_what_to_add():
    found = decided([7.0] * 50 + [1.0] * 50, {})
    assert (found.outcome, found.by) == (
        Outcome.CONVERGED,
        outcome.Basis.FIRST_LOSS,
    ) and "85.7 % of the first loss (7) is gone" in found.because
    assert decided(course(7.0, 6.9), {}).outcome is Outcome.NOT_CONVERGED
    for losses, facts in (
        (course(-1.0, -5.0), {}),
        (course(1.0, -5.0), {}),
        (course(0.7, 0.1), {"discriminator": True}),
    ):
        silent = decided(losses, facts)
        assert (
            silent.outcome is Outcome.UNDECIDED
            and silent.by is None
            and "recorder.validate" in silent.because
        )


@pytest.mark.parametrize("status", [Status.STOPPED, Status.FAILED, Status.CRASHED])
def test_a_run_that_broke_off_has_not_shown_that_it_does_not_converge(status):
    assert outcome.settled(decided(course(2.31, 2.3)), status).outcome is Outcome.UNDECIDED
    assert outcome.settled(decided(course(2.31, 0.3)), status).outcome is Outcome.CONVERGED
    assert outcome.settled(decided([math.nan]), status).outcome is Outcome.DIVERGED
    assert outcome.settled(decided(course(2.31, 2.3)), Status.FINISHED).outcome is Outcome.NOT_CONVERGED


def test_a_run_of_an_older_version_is_judged_when_it_is_read(runs):
    """A folder without ``outcome_by``, as before: lists, diagnosis and comparison say the same."""
    run = runs.create(
        {"name": "old", "init": "custom"},
        Status.FINISHED,
        source="recorder",
        outcome="undecided",
        step=100,
        facts=CROSS_ENTROPY,
    )
    writer = RunWriter(run)
    for step, loss in enumerate(course(2.31, 0.3)):
        writer.step(step, 0, loss, math.nan, 1e-3, 0.1)
    writer.compact()
    info = run.info()
    assert (
        (info.outcome, info.state["outcome_by"])
        == ("converged", "training loss")
        == (diagnose(run).outcome, "training loss")
    )
