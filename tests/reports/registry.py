"""What a report is, and the list of all of them.

A report is a public complaint about a network that does not train (or that looks as if it did not),
re-created in our own words and small. Its function takes ``fixed`` and returns the loop as its author wrote
it, broken or mended; the runner trains it under a Recorder and asks the diagnosis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Scalar = Tensor | float
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None

HEALTHY = "healthy"
UNKNOWN = "unknown"


@dataclass
class Loop:
    """A training loop: ``step(i)`` trains once and returns the loss, or (loss, accuracy) if the author has
    both.

    ``score()`` is what the author wanted, measured at the end and on held-out data where there are such: 0 is
    the best constant answer, 1 is perfect. No recorder sees it; it proves that the broken loop fails and that
    the mended one does not. ``epoch`` steps make an epoch; after each, ``validate()`` gives the validation
    loss and accuracy (NaN in a regression) for ``recorder.epoch``.
    """

    model: nn.Module
    optimizer: Optimizers
    step: Callable[[int], Scalar | tuple[Scalar, Scalar]]
    score: Callable[[], float]
    steps: int = 200
    epoch: int | None = None
    validate: Callable[[], tuple[float, float]] | None = None


@dataclass(frozen=True)
class Report:
    """``cause``: the true one, by the words of the verdict; ``also``: other words that are as true of it.

    ``evidence``: ids of findings, or words in their text, that lead to the cause: with one of them
    ``unknown`` is a fair answer. ``source``: where the report stands. ``held_out``: kept for judging; who
    mends the diagnosis looks at the others. A report whose cause is healthy looks odd and is not to be
    alarmed about: it has no mended form.
    """

    name: str
    kind: str
    cause: str
    make: Callable[[bool], Loop]
    source: str
    also: frozenset[str]
    evidence: tuple[str, ...]
    held_out: bool

    @property
    def forms(self) -> tuple[bool, ...]:
        """The values of ``fixed`` that there are."""
        return (False,) if self.cause == HEALTHY else (False, True)


REPORTS: dict[str, Report] = {}


def report(
    cause: str, source: str, *, also: Sequence[str] = (), evidence: Sequence[str] = (), held_out: bool = False
) -> Callable[[Callable[[bool], Loop]], Callable[[bool], Loop]]:
    """Register a function of ``fixed`` as a report; its file ``cases_KIND`` is its kind."""

    def register(make: Callable[[bool], Loop]) -> Callable[[bool], Loop]:
        name, kind = make.__name__, make.__module__.rsplit("cases_", 1)[-1]
        if name in REPORTS:
            raise ValueError(f"two reports are named {name!r}; choose another name")
        if not source.startswith("https://"):
            raise ValueError(f"report {name!r} needs the address of its source, not {source!r}")
        REPORTS[name] = Report(name, kind, cause, make, source, frozenset(also), tuple(evidence), held_out)
        return make

    return register
