"""What became of several runs, in numbers: for one row of a table, whatever put them together."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from initscope.comparison.compare import decided
from initscope.schema import Outcome
from initscope.store import RunInfo
from initscope_dashboard.browser import theme


def converged(infos: Sequence[RunInfo]) -> tuple[int, int]:
    """(converged, decided) runs; what is live, failed or undecided says nothing about convergence."""
    told = [info for info in infos if decided(info)]
    return sum(info.outcome == Outcome.CONVERGED for info in told), len(told)


def marks(infos: Sequence[RunInfo]) -> Counter[str]:
    """{outcome mark: number of runs}, as the table of runs marks them."""
    return Counter(theme.outcome_mark(info.outcome, info.status).text for info in infos)


def median(infos: Sequence[RunInfo], score: int) -> float | None:
    """Of the losses (0) or accuracies (1) that are numbers; None where there is none."""
    values = [info.scores[score] for info in infos]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(finite) if finite else None
