"""Three runs or groups and more beside each other: what became of each, and in which fields they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from initscope.comparison.compare import distinct
from initscope.comparison.differences import changed
from initscope.comparison.statistics import wilson
from initscope.config.catalog import init_title
from initscope.store import RunInfo
from initscope_dashboard.content import formatting, tally

TOLD = 4
"""Sides that the headline names; the table names all."""


class Side(NamedTuple):
    """One side: a run or a group, in which a seed counts once."""

    label: str
    members: tuple[RunInfo, ...]

    @property
    def converged(self) -> int:
        return tally.converged(self.members)[0]

    @property
    def decided(self) -> int:
        """Runs that say something about convergence: not those that are live, failed or undecided."""
        return tally.converged(self.members)[1]


def sides(chosen: Mapping[str, Sequence[RunInfo]], titles: Mapping[str, str]) -> list[Side]:
    """{selection: runs} as sides with labels of their own: the initialization if that tells all apart, else
    the title of the choice.
    """
    inits = [{info.init for info in infos} for infos in chosen.values()]
    by_init = all(len(one) == 1 for one in inits) and len(set().union(*inits)) == len(chosen)
    return [
        Side(infos[0].init if by_init else titles[selection], tuple(distinct(infos)))
        for selection, infos in chosen.items()
    ]


def sentence(found: Sequence[Side]) -> str:
    """The counts of every side, those that converged most often first; no cause is named, none was tested."""
    told = sorted((side for side in found if side.decided), key=lambda side: -side.converged / side.decided)
    if not told:
        return f"None of the {len(found)} sides has come far enough to tell"
    parts = [f"{side.converged} of {side.decided} with {init_title(side.label)}" for side in told[:TOLD]]
    if len(told) > TOLD:
        parts.append(f"{len(told) - TOLD} more below")
    so_far = " so far" if any(info.live for side in found for info in side.members) else ""
    return f"Converged{so_far}: {', '.join(parts)}"


def notes(found: Sequence[Side]) -> list[str]:
    """What the counts do not say."""
    said = []
    if any(side.decided == 1 for side in found):
        said.append("One seed is an anecdote, not yet evidence.")
    silent = [side for side in found if side.decided < len(side.members)]
    if silent:
        number = sum(len(side.members) - side.decided for side in silent)
        said.append(
            f"{formatting.count(number)} {'run says' if number == 1 else 'runs say'} nothing about "
            "convergence yet: live, failed or undecided."
        )
    said.append(
        "Counts, and no test: with many sides one is best by chance. Take the others away for a test of A "
        "against B."
    )
    return said


def table(found: Sequence[Side]) -> list[dict[str, Any]]:
    """One row a side. Rate from 0 to 1 with Wilson's 95 % interval; the median of those scores that are
    numbers.
    """
    shown = [tally.marks(side.members) for side in found]
    marks = dict.fromkeys(mark for one in shown for mark in one)
    rows = []
    for side, one in zip(found, shown, strict=True):
        low, high = wilson(side.converged, side.decided)
        rows.append(
            {
                "Side": init_title(side.label),
                "Runs": len(side.members),
                "Rate": side.converged / side.decided if side.decided else None,
                "95 % interval": formatting.interval(low, high) if side.decided else None,
                **{mark: one[mark] for mark in marks},
                "Median loss": tally.median(side.members, 0),
                "Median accuracy": tally.median(side.members, 1),
            }
        )
    return rows


def differing(found: Sequence[Side]) -> dict[str, list[Any]]:
    """{field: the value on each side} of the fields in which some side differs from the first. A side's
    several values are a list.
    """
    first, *others = found
    each = [changed(first.members, other.members) for other in others]
    fields = dict.fromkeys(field for one in each for field in one)
    return {
        field: [
            next(one[field][0] for one in each if field in one),
            *(
                one[field][1] if field in one else next(o[field][0] for o in each if field in o)
                for one in each
            ),
        ]
        for field in fields
    }
