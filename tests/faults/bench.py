"""The bench of planted faults, put together: every case by its name."""

from tests.faults import cases_fresh, cases_start, cases_targets, cases_training  # they register themselves
from tests.faults.registry import CASES, Case, first, relabelled, times

__all__ = [
    "CASES",
    "Case",
    "cases_fresh",
    "cases_start",
    "cases_targets",
    "cases_training",
    "first",
    "relabelled",
    "times",
]
