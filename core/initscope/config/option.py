"""How a field of the configuration is declared: shown, parsed and checked by the same few words, whoever
reads it.

Importing this costs no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from initscope.config import factory
from initscope.errors import ConfigError, choose_from, one_line


@dataclass(frozen=True)
class Option:
    """How a field is shown, parsed and checked."""

    name: str
    kind: type
    default: Any
    title: str
    help: str
    unit: str = ""
    choices: tuple[str, ...] | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    optional: bool = False
    group: str = "more"
    check: Callable[[Any], str | None] | None = None
    own: bool = False
    """Whether a factory of one's own (``FILE.py:FACTORY``) is a value too."""

    @property
    def flag(self) -> str:
        """The command-line spelling: ``--learning-rate``."""
        return "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """The bounds in words, as in an error message: 'a number above 0, at most 1000'."""
        noun = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "text",
            tuple: "a list of words",
        }[self.kind]
        if self.choices:
            return "one of " + ", ".join(self.choices) + (f", or {factory.FORM}" if self.own else "")
        parts = []
        if self.above is not None:
            parts.append(f"above {_shown(self.above)}")
        if self.low is not None:
            parts.append(f"at least {_shown(self.low)}")
        if self.high is not None:
            parts.append(f"at most {_shown(self.high)}")
        return noun + (" " + ", ".join(parts) if parts else "") + (", or nothing" if self.optional else "")

    def parse(self, value: Any) -> Any:
        """The validated value. ``value`` may be the Python value, its JSON form or what a person typed.

        Raises ConfigError with one line that names field, value and what was expected.
        """
        if value is None or (
            isinstance(value, str) and self.optional and value.strip().lower() in ("", "none", "auto")
        ):
            if self.optional:
                return None
            raise self._wrong(value)
        parsed = self._convert(value)
        if self.choices and parsed not in self.choices and not (self.own and factory.parse(parsed)):
            raise ConfigError(
                choose_from(self.name, parsed, (*self.choices, factory.FORM) if self.own else self.choices),
                self.name,
            )
        if self.kind in (int, float):
            too_low = (self.above is not None and parsed <= self.above) or (
                self.low is not None and parsed < self.low
            )
            if too_low or (self.high is not None and parsed > self.high):
                raise self._wrong(value)
        if self.check and (problem := self.check(parsed)):
            raise ConfigError(f"{self.name}: {problem}", self.name)
        return parsed

    def _convert(self, value: Any) -> Any:
        if self.kind is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.strip().lower() in ("true", "yes", "1", "false", "no", "0"):
                return value.strip().lower() in ("true", "yes", "1")
        elif self.kind is int:
            number = _number(value) if isinstance(value, str) else value
            if isinstance(number, int) and not isinstance(number, bool):
                return number
            if isinstance(number, float) and number.is_integer():
                return int(number)
        elif self.kind is float:
            number = _number(value) if isinstance(value, str) else value
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                try:
                    number = float(number)
                except OverflowError:
                    raise self._wrong(value) from None
                if math.isfinite(number):
                    return number
        elif self.kind is str:
            if isinstance(value, str) and is_plain_text(value):
                return value.strip()
        elif self.kind is tuple:
            items = value.split(",") if isinstance(value, str) else value
            if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
                return tuple(dict.fromkeys(item.strip() for item in items if item.strip()))
        raise self._wrong(value)

    def _wrong(self, value: Any) -> ConfigError:
        return ConfigError(f"{self.name} must be {self.expected}, not {one_line(value)}", self.name)


def _shown(bound: float) -> str:
    """A whole bound in full, another with six digits."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _number(text: str) -> int | float | None:
    """The number a person typed, or None."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def is_plain_text(text: str) -> bool:
    """Whether it is one line that can be shown as it is."""
    return all(char.isprintable() for char in text)


def option(default: Any, kind: type, title: str, help: str, **extra: Any) -> Any:
    """Declare a config field: its default, and what every reader of the declaration needs to know."""
    spec = {"kind": kind, "default": default, "title": title, "help": help, **extra}
    return dataclasses.field(default=default, metadata=spec)
