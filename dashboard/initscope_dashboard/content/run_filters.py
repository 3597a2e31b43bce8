"""Which runs of a list are meant: by the values of a field, and by conditions on numbers."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from initscope.config.catalog import data_title, init_title, model_title
from initscope.config.run_config import OPTIONS
from initscope.errors import ConfigError, choose_from, one_line
from initscope.store import RECORDED, RunInfo
from initscope.store.files import number
from initscope_dashboard.browser import theme

FIELDS: dict[str, tuple[str, Callable[[RunInfo], Sequence[str]]]] = {
    "outcome": ("Outcome", lambda info: [theme.outcome_mark(info.outcome, info.status).word]),
    "init": (
        "Initialization",
        lambda info: ["own loop" if info.init == RECORDED else init_title(info.init)],
    ),
    "network": ("Network", lambda info: _titled(info, "model", model_title)),
    "data": ("Data", lambda info: _titled(info, "data", data_title)),
    "tag": ("Tag", lambda info: info.tags),
}
"""By the name in the address: title, and the values that a run has, as the table shows them."""

MEASURED: dict[str, Callable[[RunInfo], float | None]] = {
    "loss": lambda info: info.scores[0],
    "accuracy": lambda info: info.scores[1],
    "steps": lambda info: number(info.state.get("step")),
    "seconds": lambda info: number(info.state.get("seconds")),
}
"""Numbers of a run beside its configuration; accuracy from 0 to 1."""
NUMBERS = (*MEASURED, *(name for name, option in OPTIONS.items() if option.kind in (int, float)))
_COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


class Condition(NamedTuple):
    """``name`` is one of ``NUMBERS``; ``relation`` one of <= >= < > =."""

    name: str
    relation: str
    value: float

    def holds(self, info: RunInfo) -> bool:
        """Whether it is so of a run; not of one that has no such number."""
        known = MEASURED[self.name](info) if self.name in MEASURED else number(info.config.get(self.name))
        return known is not None and _COMPARE[self.relation](known, self.value)


def conditions(text: str) -> list[Condition]:
    """``learning_rate>=0.001 loss<2`` as conditions that must all hold. Raises ConfigError in one line."""
    found = []
    for word in re.sub(r"\s*(<=|>=|<|>|=)\s*", r"\1", text).replace(",", " ").split():
        parts = re.fullmatch(r"([^<>=]+)(<=|>=|<|>|=)([^<>=]+)", word)
        if parts is None:
            raise ConfigError(f"{one_line(word)}: expected a field, one of < <= = >= >, and a number")
        name = parts[1].replace("-", "_")
        if name not in NUMBERS:
            raise ConfigError(choose_from("number", name, NUMBERS))
        try:
            found.append(Condition(name, parts[2], float(parts[3])))
        except ValueError:
            raise ConfigError(
                f"{one_line(word)}: {one_line(parts[3])} is not a number, such as 0.001"
            ) from None
    return found


def choices(infos: Sequence[RunInfo]) -> dict[str, list[str]]:
    """{name of a field: its values among these runs}, of the fields in which the runs differ."""
    found = {}
    for name, (_, values) in FIELDS.items():
        each = [tuple(values(info)) for info in infos]
        if len(set(each)) > 1:
            found[name] = sorted({value for one in each for value in one})
    return found


def fitting(
    infos: Sequence[RunInfo], chosen: Mapping[str, Sequence[str]], numbers: Sequence[Condition]
) -> list[RunInfo]:
    """The runs that have one of the ``chosen`` values of every field, and of which every condition holds."""
    wanted = {name: set(values) for name, values in chosen.items() if values}
    return [
        info
        for info in infos
        if all(wanted[name].intersection(FIELDS[name][1](info)) for name in wanted)
        and all(condition.holds(info) for condition in numbers)
    ]


def _titled(info: RunInfo, field: str, title: Callable[[str], str]) -> list[str]:
    value: Any = info.config.get(field)
    return [title(str(value))] if value else []
