"""What readers may rely on in a run's JSON files: the types and ranges of what is there. Missing values are
allowed.

A run folder may come from another version, another program or a damaged disk. One wrong value makes one run
unreadable, with a line that names it; no page and no list has to expect it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from initscope.config.run_config import MAX_NAME, OPTIONS
from initscope.errors import one_line
from initscope.schema import Outcome, Status

LAST_SECOND = 253_402_300_799.0
"""The end of the year 9999: the last moment that a date can name."""
LONGEST = 2_000
"""Characters of a text that are shown."""


class Wrong(ValueError):
    """A value is not what the field holds; the message names both."""


def _whole(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value // 1
        or not 0 <= value < 2**53
    ):
        raise Wrong("a whole number from 0")
    return int(value)


def _number(value: Any) -> float:
    if value in ("nan", "inf", "-inf"):  # what JSON lacks
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong("a number")
    try:
        return float(value)
    except OverflowError:
        raise Wrong("a number") from None


def _share(value: Any) -> float:
    found = _number(value)
    if not (0 <= found <= 1 or found != found):  # noqa: PLR0124 (NaN: it was measured, and is no number)
        raise Wrong("a share from 0 to 1")
    return found


def _moment(value: Any) -> float:
    found = _number(value)
    if not 0 <= found <= LAST_SECOND:
        raise Wrong("seconds since 1970")
    return found


def text(value: Any, limit: int = LONGEST) -> str:
    """A text as it may be shown anywhere: valid Unicode, no control characters, at most ``limit``
    characters.
    """
    if not isinstance(value, str):
        raise Wrong("text")
    cut = value if len(value) <= limit else value[: limit - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in cut)


def _curve(value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) > 10_000:
        raise Wrong("a list of numbers")
    return [_number(item) for item in value]


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Wrong("an object")
    return value


def _one_of(names: type[Status] | type[Outcome]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in [str(name) for name in names]:
            raise Wrong("one of " + ", ".join(names))
        return str(value)

    return check


_STATE: dict[str, Callable[[Any], Any]] = {
    "status": _one_of(Status),
    "outcome": _one_of(Outcome),
    **dict.fromkeys(
        ("step", "total_steps", "epoch", "num_classes", "validation_samples", "train_samples", "parameters"),
        _whole,
    ),
    **dict.fromkeys(("heartbeat", "created", "started", "ended"), _moment),
    **dict.fromkeys(("loss", "train_loss", "val_loss", "seconds", "images_per_second"), _number),
    **dict.fromkeys(("accuracy", "train_accuracy", "val_accuracy", "chance"), _share),
    **dict.fromkeys(("error", "phase", "device", "source", "host", "outcome_by", "outcome_because"), text),
    "curve": _curve,
    "facts": _object,
}


def state(found: Mapping[str, Any]) -> dict[str, Any]:
    """``status.json`` with every known field of its type; "nan" and "inf" become the numbers. Raises
    Wrong.
    """
    if found.get("status") is None:
        raise Wrong("there is no status")
    return {key: _checked(key, value, _STATE.get(key)) for key, value in found.items()}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("true or false")
    return value


def _words(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise Wrong("a list of texts")
    return [text(item, MAX_NAME) for item in value[:1000]]


_OF_KIND: dict[type, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    str: text,
    bool: _flag,
    tuple: _words,
}


def config(found: Any) -> dict[str, Any]:
    """The ``config`` of ``config.json``: known fields of their kind, whatever their range. Raises Wrong."""
    values = {} if found is None else dict(_object(found))
    for key, value in values.items():
        option = OPTIONS.get(key)
        if option is None or (value is None and option.optional):
            continue
        values[key] = _checked(key, value, _OF_KIND[option.kind])
    return values


def meta(found: Mapping[str, Any]) -> dict[str, Any]:
    """``meta.json``: name, tags, notes and archived of their kind; what is there beside them is kept. Raises
    Wrong.
    """
    kinds = {"name": _title, "tags": _words, "notes": _notes, "archived": _flag}
    return {key: _checked(key, value, kinds.get(key)) for key, value in found.items()}


def _title(value: Any) -> str:
    return text(value, MAX_NAME)


def _notes(value: Any) -> str:
    """Like ``text``, line breaks kept."""
    if not isinstance(value, str):
        raise Wrong("text")
    return "\n".join(text(line, LONGEST) for line in value[:100_000].splitlines())


def _checked(key: str, value: Any, kind: Callable[[Any], Any] | None) -> Any:
    if kind is None or value is None:
        return value
    try:
        return kind(value)
    except Wrong as expected:
        raise Wrong(f"{key} must be {expected}, not {one_line(value)}") from None
