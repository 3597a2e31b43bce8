"""When do seeds leave chance? The share that has by step n; runs that ended before it count for as long as
they were watched.

The estimate is Kaplan and Meier's (1958) of the share that has not left yet. A run that was stopped, crashed,
is undecided or goes on is censored at its last step. One that diverged, or whose training was ended because
it was certain not to converge, can leave no more: it stays among those that could have up to the step it was
planned for, as in the subdistribution of Fine and Gray (1999), so that what became of it is not mistaken for
what would have become of the others.

The band is pointwise: Wilson's score interval (1927) at the effective number of seeds of Greenwood's variance
(1926), S (1 - S) / var S, as Rothman (1978, J. Chronic Dis. 31, 557) proposed. Without censoring it is
Wilson's interval of k of n; unlike Greenwood's own it never leaves 0 to 1 and is no point where all or none
have left. There the number of seeds is that of those still watched, over S (Peto et al. 1977).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from initscope.comparison.compare import distinct
from initscope.comparison.statistics import wilson
from initscope.outcome import SKILL
from initscope.schema import Outcome, Status
from initscope.store import Run, RunInfo, Runs
from initscope.store.files import number

WINDOW = 20
"""Recorded steps whose mean accuracy is looked at."""
LEFT = SKILL / 2
"""Share of the way from chance to perfect from which a run has left chance: 25 % of ten classes."""
LOOKS = 4.0
"""Standard errors above chance that the mean must be as well: there are about as many looks as steps."""
STEP, ACCURACY = "step", "accuracy"
COLUMNS = (STEP, ACCURACY)
"""Columns of ``steps`` that are read."""


class Seen(NamedTuple):
    """One run: ``step`` optimizer steps were watched, at the last of which it ``left`` chance or had not
    yet.
    """

    step: int
    left: bool


class Survival(NamedTuple):
    """A curve over ``steps``, from 0: the ``share`` that has left chance by then, its 95 % band ``low`` to
    ``high``, and how many runs are ``watched`` just before. ``runs`` in all, of which ``left`` were seen to
    leave; ``unwatched`` are the steps at which watching another one ended.
    """

    steps: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    watched: np.ndarray
    runs: int
    left: int
    unwatched: tuple[int, ...]

    @property
    def half(self) -> int | None:
        """The step by which half have left; None if they have not."""
        reached = np.flatnonzero(self.share >= 0.5 - 1e-12)
        return int(self.steps[reached[0]]) if len(reached) else None


def left_at(steps: np.ndarray, accuracy: np.ndarray, chance: float, batch: int) -> int | None:
    """After how many optimizer steps the mean training accuracy (0..1) of the last ``WINDOW`` recorded
    batches of ``batch`` samples was first clearly above ``chance``; None if it never was.

    Clearly: ``LEFT`` of the way to perfect, and ``LOOKS`` standard errors of guessing. ``steps`` counts from
    0, as in the table of that name. What is learned by heart counts, too.
    """
    told = np.isfinite(accuracy)
    steps, accuracy = steps[told], accuracy[told]
    if len(accuracy) < WINDOW:
        return None
    mean = np.convolve(accuracy, np.full(WINDOW, 1 / WINDOW), mode="valid")
    error = math.sqrt(chance * (1 - chance) / (WINDOW * max(1, batch)))
    above = np.flatnonzero(mean > chance + max(LEFT * (1 - chance), LOOKS * error))
    return int(steps[above[0] + WINDOW - 1]) + 1 if len(above) else None


def chance_of(info: RunInfo) -> tuple[float, int] | None:
    """(the accuracy of guessing, samples of a batch); None where it is not known."""
    chance, classes = number(info.state.get("chance")), number(info.state.get("num_classes"))
    if chance is None and classes and classes >= 2:
        chance = 1 / classes
    if chance is None or not 0 < chance < 1:
        return None
    return chance, int(number(info.config.get("batch_size")) or 1)


def seen(info: RunInfo, left: int | None) -> Seen:
    """How a run counts that left chance after ``left`` steps, or has not (None)."""
    if left is not None:
        return Seen(left, True)
    done, planned = (int(number(info.state.get(name)) or 0) for name in ("step", "total_steps"))
    certain = info.outcome == Outcome.DIVERGED or (
        info.outcome == Outcome.NOT_CONVERGED and info.status == Status.FINISHED
    )
    return Seen(max(done, planned) if certain and not info.live else done, False)


def survival(runs: Iterable[Seen]) -> Survival | None:
    """Kaplan and Meier's curve of these runs; None without one that was watched for a step."""
    watched = [run for run in runs if run.step > 0]
    if not watched:
        return None
    steps = sorted({0, *(run.step for run in watched)})
    kept, variance, effective = 1.0, 0.0, float(len(watched))
    rows = []
    for step in steps:
        at_risk = sum(run.step >= step for run in watched)
        gone = sum(run.left and run.step == step for run in watched)
        if gone and gone == at_risk:
            effective = min(effective, at_risk / kept)  # Greenwood's variance is zero: Peto's number
            kept = 0.0
        elif gone:
            kept *= 1 - gone / at_risk
            variance += gone / (at_risk * (at_risk - gone))  # Greenwood's sum: var S = S^2 times it
            effective = (1 - kept) / (kept * variance)
        elif kept == 1.0:
            effective = float(sum(run.step > step for run in watched) or at_risk)
        share = 1 - kept
        rows.append((share, *wilson(share * effective, effective), at_risk))
    shares, low, high, waiting = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    return Survival(
        np.array(steps),
        shares,
        low,
        high,
        waiting.astype(int),
        len(watched),
        sum(run.left for run in watched),
        tuple(sorted(run.step for run in watched if not run.left)),
    )


def curves(runs: Runs, infos: Sequence[RunInfo], by: Sequence[str] = ("init",)) -> dict[tuple, Survival]:
    """A curve for each combination of the fields ``by`` among these runs; a seed counts once, and runs of
    which chance is not known are left out. Raises RunFolderError for rows that cannot be read.
    """
    cells: dict[tuple, list[Seen]] = {}
    for info in distinct(list(infos)):
        if (one := observed(runs.get(info.run), info)) is not None:
            cells.setdefault(tuple(info.config.get(field) for field in by), []).append(one)
    found = {cell: survival(members) for cell, members in cells.items()}
    return {cell: curve for cell, curve in found.items() if curve is not None}


def of_runs(runs: Runs, run_ids: Iterable[str]) -> Survival | None:
    """The curve of these runs together, as ``curves``; None where chance is known of none of them."""
    return curves(runs, [runs.get(run_id).info() for run_id in run_ids], ()).get(())


def observed(run: Run, info: RunInfo) -> Seen | None:
    """How this run counts, by its rows; None where chance is not known. Raises RunFolderError."""
    known = chance_of(info)
    if known is None:
        return None
    rows = run.read("steps", list(COLUMNS))
    return seen(info, left_at(rows[STEP].to_numpy(), rows[ACCURACY].to_numpy(), *known))


def phrase(curve: Survival) -> str:
    """'5 of 5 left chance, half by step 32'; '1 of 5 left chance within 115 steps'."""
    counted = f"{curve.left} of {curve.runs} left chance"
    return (
        f"{counted}, half by step {curve.half:,}"
        if curve.half is not None
        else f"{counted} within {int(curve.steps[-1]):,} steps"
    )


def sentence(curves: Mapping[str, Survival]) -> str:
    """What the curves of several groups show, soonest first, with the numbers of seeds; empty for none."""
    ordered = sorted(
        curves.items(), key=lambda item: (item[1].half is None, item[1].half or 0, -item[1].share[-1])
    )
    told = "; with ".join(f"{label} {phrase(curve)}" for label, curve in ordered)
    return f"With {told}." if told else ""
