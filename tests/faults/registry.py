"""The bench of planted faults: each case trains a small network with one thing wrong (or nothing), and names
the cause.

A case lists more than one cause only where physics allows more than one name. Every case is first of all a
recipe that trains when the fault is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from initscope.store import Run
from tests.faults.kit import digits, shuffled


@dataclass(frozen=True)
class Case:
    """One planted fault: where, what it is called, how to make its run, and findings that must be among its
    evidence.
    """

    name: str
    architecture: str
    causes: frozenset[str]
    make: Callable[[Path], Run]
    finds: frozenset[str] = frozenset()


CASES: dict[str, Case] = {}


def case(
    architecture: str, *causes: str, finds: Iterable[str] = ()
) -> Callable[[Callable[[Path], Run]], Callable[[Path], Run]]:
    """Register a function of the runs folder as a case on ``architecture`` that is called by one of
    ``causes``, with ``finds`` among its findings.
    """

    def register(make: Callable[[Path], Run]) -> Callable[[Path], Run]:
        CASES[make.__name__] = Case(make.__name__, architecture, frozenset(causes), make, frozenset(finds))
        return make

    return register


def times(factor: float, offset: float = 0.0) -> tuple:
    """The digits with every pixel scaled and shifted."""
    x, y, val_x, val_y = digits()
    return x * factor + offset, y, val_x * factor + offset, val_y


def relabelled(samples: tuple, share: float = 1.0) -> tuple:
    """The samples with a share of all labels permuted, validation too."""
    x, y, val_x, val_y = samples
    return x, shuffled(y, share), val_x, shuffled(val_y, share)


def first(count: int, samples: tuple | None = None) -> tuple:
    """Only the first ``count`` training samples."""
    x, y, val_x, val_y = samples or digits()
    return x[:count], y[:count], val_x, val_y


def one_class_of_ten() -> tuple:
    """Is it a three? One yes to nine noes."""
    x, y, val_x, val_y = digits()
    return x, (y == 3).long(), val_x, (val_y == 3).long()
