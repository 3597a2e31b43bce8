"""When seeds leave chance: Kaplan and Meier's curve against scipy's, its band, and what runs count for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from initscope.comparison import survival
from initscope.comparison.statistics import wilson
from initscope.comparison.survival import Seen
from initscope.config.run_config import quick
from initscope.schema import Outcome, Status
from initscope.store import Run, Runs, RunWriter

SEEN = st.lists(st.builds(Seen, st.integers(1, 30), st.booleans()), min_size=1, max_size=25)


@given(SEEN)
def test_the_curve_is_scipys(runs):
    curve = survival.survival(runs)
    times, gone = np.array([run.step for run in runs]), np.array([run.left for run in runs])
    theirs = stats.ecdf(stats.CensoredData.right_censored(times.astype(float), ~gone)).cdf
    np.testing.assert_allclose(curve.share, theirs.evaluate(curve.steps), atol=1e-12)
    assert curve.steps[0] == 0 and curve.share[0] == 0
    assert (curve.low <= curve.share + 1e-12).all() and (curve.share <= curve.high + 1e-12).all()
    assert (np.diff(curve.share) >= -1e-12).all()
    assert (curve.runs, curve.left) == (len(runs), gone.sum())


def test_by_hand_with_two_that_were_not_watched_to_the_end():
    """Six seeds: one leaves at 3, one is stopped at 5, two leave at 7, one is stopped at 8, one leaves at 9.

    S = 5/6 after 3, times (1 - 2/4) after 7, times (1 - 1/1) after 9. Greenwood's sum is 1/(6 5) and then
    + 2/(4 2); the effective number of seeds is (1 - S) / (S sum).
    """
    curve = survival.survival(
        [Seen(3, True), Seen(5, False), *[Seen(7, True)] * 2, Seen(8, False), Seen(9, True)]
    )
    assert curve.steps.tolist() == [0, 3, 5, 7, 8, 9] and curve.watched.tolist() == [6, 6, 5, 4, 2, 1]
    np.testing.assert_allclose(curve.share, [0, 1 / 6, 1 / 6, 7 / 12, 7 / 12, 1])
    after_seven = (7 / 12) / (5 / 12 * (1 / 30 + 2 / 8))
    for at, effective in ((0, 6.0), (1, 6.0), (3, after_seven), (4, after_seven)):
        expected = wilson(curve.share[at] * effective, effective)
        assert (curve.low[at], curve.high[at]) == pytest.approx(expected)
    assert (curve.low[5], curve.high[5]) == pytest.approx(wilson(2.4, 2.4)), (
        "one watched, for 5/12 that are left"
    )
    assert curve.half == 7 and curve.unwatched == (5, 8)


@pytest.mark.parametrize(("left", "of"), [(0, 5), (2, 5), (5, 5)])
def test_watched_to_the_end_the_band_is_wilsons(left, of):
    curve = survival.survival([Seen(10, True)] * left + [Seen(50, False)] * (of - left))
    assert (curve.low[-1], curve.high[-1]) == pytest.approx(wilson(left, of))
    assert survival.survival([]) is None and survival.survival([Seen(0, False)]) is None


def test_the_variance_behind_the_band_is_greenwoods():
    """scipy's linear interval is S -+ z times the root of Greenwood's variance: from it the effective number
    of seeds.
    """
    runs = [Seen(step, step % 3 != 0) for step in range(1, 21)]
    curve = survival.survival(runs)
    times, gone = np.array([run.step for run in runs], float), np.array([run.left for run in runs])
    sf = stats.ecdf(stats.CensoredData.right_censored(times, ~gone)).sf
    with pytest.warns(RuntimeWarning, match="undefined at some observations"):
        band = sf.confidence_interval(0.95, method="linear")
    at = 10
    kept, high = sf.evaluate(at), band.high.evaluate(at)
    deviation = (high - kept) / stats.norm.ppf(0.975)
    effective = kept * (1 - kept) / deviation**2
    i = curve.steps.tolist().index(at)
    assert (curve.low[i], curve.high[i]) == pytest.approx(wilson((1 - kept) * effective, effective))


def test_a_run_leaves_chance_when_twenty_batches_say_so():
    """25 % of ten classes, as the tables of the log; neither a lucky batch nor a window of few samples."""
    steps = np.arange(100)
    accuracy = np.where(steps < 40, 0.1, 0.9)
    # the mean of the window passes 25 % with the fourth batch at 90 %: 0.1 + 4 * 0.8 / 20
    assert survival.left_at(steps, accuracy, 0.1, 64) == 44
    assert survival.left_at(steps, np.where(steps == 40, 1.0, 0.1), 0.1, 64) is None
    assert survival.left_at(steps[:19], accuracy[:19] + 1, 0.1, 64) is None
    assert survival.left_at(steps, np.full(100, 0.3), 0.1, 64) == 20
    assert survival.left_at(steps, np.full(100, 0.3), 0.1, 1) is None, "twenty samples: four of them by luck"
    assert survival.left_at(10 * steps, np.where(steps < 40, math.nan, 0.9), 0.1, 64) == 591


def trained(
    runs: Runs, seed: int, leaves: int | None, done: int, status: Status, outcome: Outcome | None
) -> Run:
    """A run of ``done`` of 200 steps that is at 10 % up to step ``leaves`` and at 90 % from there on."""
    config = quick().replace(init="default", init_seed=seed, sweep="s")
    state = {"outcome": str(outcome)} if outcome else {}
    run = runs.create(config, status, step=done, total_steps=200, chance=0.1, num_classes=10, **state)
    writer = RunWriter(run)
    for step in range(done):
        accuracy = 0.9 if leaves is not None and step >= leaves else 0.1
        writer.step(step, 0, 2.3, accuracy, 1e-3, 0.1 * step)
    writer.flush()
    writer.compact()
    return run


def test_what_runs_count_for(runs: Runs):
    """A stopped and an undecided run are watched as long as they went on; one that broke, or was ended as
    certain not to converge, stays among those that did not leave; a seed that was run twice counts once.
    """
    trained(runs, 0, 46, 200, Status.FINISHED, Outcome.CONVERGED)
    trained(runs, 1, None, 60, Status.STOPPED, Outcome.UNDECIDED)
    trained(runs, 2, None, 30, Status.FINISHED, Outcome.DIVERGED)
    trained(runs, 3, None, 100, Status.FINISHED, Outcome.NOT_CONVERGED)
    trained(runs, 4, 146, 200, Status.FINISHED, Outcome.CONVERGED)
    trained(runs, 4, 146, 200, Status.FINISHED, Outcome.CONVERGED)
    [(cell, curve)] = survival.curves(runs, runs.list()).items()
    assert cell == ("default",) and (curve.runs, curve.left) == (5, 2)
    assert curve.unwatched == (60, 200, 200)
    # 1/5 after 50; four of five left to watch until the stopped one went, then one of three leaves
    np.testing.assert_allclose(curve.share[-1], 1 - 4 / 5 * 2 / 3)
    assert curve.half is None
    assert survival.phrase(curve) == "2 of 5 left chance within 200 steps"
    assert survival.sentence({"default": curve}) == "With default 2 of 5 left chance within 200 steps."
    alone = survival.of_runs(runs, [runs.list()[0].run])
    assert survival.phrase(alone) == "1 of 1 left chance, half by step 150"
    runs.create({"name": "own", "init": "custom"}, Status.FINISHED, source="recorder")
    assert len(survival.curves(runs, runs.list())) == 1, "of which chance is not known"
