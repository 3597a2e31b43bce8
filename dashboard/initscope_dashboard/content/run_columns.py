"""What a table of runs can show of a run beside its standard columns, and runs grouped by one of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from initscope.comparison.differences import OWN, is_own, own_config
from initscope.config.catalog import data_title, init_title, model_title
from initscope.config.run_config import OPTIONS
from initscope.store import RECORDED, RunInfo
from initscope_dashboard.content import formatting, run_filters, tally

STANDARD = ("name", "init", "outcome", "error", "loss", "accuracy", "curve", "tags", "age")
"""Columns that are shown where none is chosen, by their name in the address."""
_BASIC = {
    "name": "Name",
    "init": "Initialization",
    "outcome": "Outcome",
    "error": "Ended by",
    "loss": "Loss",
    "accuracy": "Accuracy",
    "curve": "Loss over time",
    "tags": "Tags",
    "age": "Age",
    "steps": "Steps",
    "seconds": "Seconds",
}
_TITLED: dict[str, Callable[[str], str]] = {"init": init_title, "model": model_title, "data": data_title}
NONE = "none"
"""The group of the runs that have no value."""


class Group(NamedTuple):
    """The runs that share a value of a field. ``value`` is the value as it is stored, None where there is
    none.
    """

    title: str
    value: Any
    members: tuple[RunInfo, ...]

    @property
    def counts(self) -> dict[str, int]:
        return tally.marks(self.members)

    @property
    def converged(self) -> tuple[int, int]:
        return tally.converged(self.members)

    def median(self, score: int) -> float | None:
        return tally.median(self.members, score)


def titles(infos: Sequence[RunInfo]) -> dict[str, str]:
    """{name in the address: title} of every column that some of these runs fill, the standard ones first;
    fields of an own configuration as ``own.NAME``.
    """
    configured = {key for info in infos for key, value in info.config.items() if value not in (None, [], "")}
    fields = [name for name in OPTIONS if name in configured and name not in _BASIC]
    own = sorted({OWN + key for info in infos if is_own(info) for key in own_config(info)})
    return {name: title(name) for name in (*_BASIC, *fields, *own)}


def title(name: str) -> str:
    """What a person calls a column."""
    if name.startswith(OWN):
        return f"{name.removeprefix(OWN)} (own)"
    return _BASIC.get(name) or (OPTIONS[name].title if name in OPTIONS else name)


def value_of(info: RunInfo, field: str) -> Any:
    """A run's value of a column of ``titles`` or a field to group by, as it is stored; None without one."""
    if field.startswith(OWN):
        return own_config(info).get(field.removeprefix(OWN)) if is_own(info) else None
    if field in run_filters.MEASURED:
        return run_filters.MEASURED[field](info)
    shown = {"name": info.name, "init": info.init, "tags": list(info.tags)}
    return shown.get(field, info.config.get(field))


def text(field: str, value: Any) -> str:
    """A value as a cell shows it."""
    if value is None or value == [] or value == "":
        return NONE
    if field == "init" and value == RECORDED:
        return "own loop"
    if field in _TITLED:
        return _TITLED[field](str(value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ", ".join(text("", item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def cells(infos: Sequence[RunInfo], field: str) -> list[Any]:
    """One column: numbers as numbers where all that there are are numbers, else as texts; None is empty."""
    return typed(field, [value_of(info, field) for info in infos])


def typed(field: str, values: Sequence[Any]) -> list[Any]:
    """Values of one field as a column: numbers if there is nothing else, so that they sort as numbers."""
    if all(value is None or _is_number(value) for value in values):
        return list(values)
    return [None if value is None else text(field, value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def groupable(infos: Sequence[RunInfo]) -> dict[str, str]:
    """{field: title} of the fields in which these runs differ, those that people group by first."""
    found = {**titles(infos), "tags": "Tag"}
    wanted = ["init", "name", "tags", "model", "data", "sweep"]
    order = [*wanted, *(name for name in found if name not in (*wanted, *_BASIC))]
    return {
        name: found[name]
        for name in order
        if name in found and len({repr(value_of(info, name)) for info in infos}) > 1
    }


def grouped(infos: Sequence[RunInfo], field: str) -> list[Group]:
    """The runs by their value of ``field``: numbers in order, then texts, then those without one. A run with
    several tags is in the group of each.
    """
    found: dict[str, tuple[Any, list[RunInfo]]] = {}
    for info in infos:
        value = value_of(info, field)
        for one in (value or [None]) if field == "tags" else [value]:
            one = None if one in ("", []) else one
            found.setdefault(repr(one), (one, []))[1].append(info)
    groups = [Group(text(field, value), value, tuple(members)) for value, members in found.values()]
    return sorted(groups, key=_place)


def _place(group: Group) -> tuple:
    number = _is_number(group.value)
    return group.value is None, not number, group.value if number else 0, group.title.lower()


def selection(field: str, group: Group) -> str:
    """The group as ``Runs.select`` and the command line take it; empty where they know no such field."""
    value = group.value
    if value is None or field not in OPTIONS:
        return ""
    typed = (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else repr(value)
        if isinstance(value, float)
        else str(value)
    )
    return f"{field}={typed}"


def sentence(field: str, groups: Sequence[Group], most: int = 4) -> str:
    """What became of the groups, those that converged most often first."""
    told: list[tuple[float, str]] = []
    for group in groups:
        converged, of = group.converged
        if of:
            told.append((-converged / of, f"{converged} of {of} with {group.title}"))
    if not told:
        return f"No run of these {formatting.count(len(groups))} groups has come far enough to tell."
    told.sort(key=lambda pair: pair[0])
    more = f" and {formatting.count(len(told) - most)} more groups" if len(told) > most else ""
    return f"Converged by {field.lower()}: {', '.join(words for _, words in told[:most])}{more}."


def share(group: Group) -> float | None:
    """Converged of those decided, 0 to 1; None where none is decided."""
    converged, of = group.converged
    return converged / of if of else None


def outcome_columns(groups: Sequence[Group]) -> Mapping[str, list[int]]:
    """{outcome mark: number of runs in each group}, for every mark there is, the commonest first."""
    marks: dict[str, int] = {}
    for group in groups:
        for mark, number in group.counts.items():
            marks[mark] = marks.get(mark, 0) + number
    return {
        mark: [group.counts.get(mark, 0) for group in groups]
        for mark in sorted(marks, key=lambda one: -marks[one])
    }
