"""Every error a person can meet, in one tree.

Each message says what was wrong, what was expected and what is available, in one line. The command line
prints it and exits with ``exit_status``; the dashboard shows it beside what caused it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InitScopeError(Exception):
    """Base of all errors that are shown to a person without a traceback."""

    exit_status = 2


class ConfigError(InitScopeError):
    """A configuration value is missing, mistyped or out of bounds. ``field`` names it where one is to blame."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


class DataUnavailable(InitScopeError):
    """A data set is neither on disk nor can it be fetched; the message names the folder for the files."""


class RunNotFound(InitScopeError):
    """No run of that id, or no run that fits a group selection."""


class NotAllowed(InitScopeError):
    """Whoever asks may only look: the dashboard is read-only, or the sign-in is one for readers."""


class LimitExceeded(InitScopeError):
    """More than the operator allows, or more than fits into memory; refused before anything starts."""


class EngineTrouble(InitScopeError):
    """The engine that is to carry runs cannot: its cluster is not there, or has gone."""


class RunStateError(InitScopeError):
    """The run is in a state that does not allow this (resume a running run, delete a live one)."""


class RunFolderError(InitScopeError):
    """A run folder, or the folder of all runs, cannot be read or written."""


class RecordingError(InitScopeError):
    """The two lines in somebody's loop are in the wrong order, in the wrong place, or about the wrong model."""


class TrainingFailed(InitScopeError):
    """The training process itself failed; the message is the first line of its reason."""

    exit_status = 1


class FactoryFailed(InitScopeError):
    """Code of one's own (``file.py:factory``) raised an exception; the message is ``file.py:LINE: Type: text``."""

    exit_status = 1


def one_line(value: object, limit: int = 120) -> str:
    """``repr`` of a value for use in a message: one line, at most ``limit`` characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer beyond Python's limit for printing
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def choose_from(what: str, given: object, available: Iterable[str]) -> str:
    """'unknown init "kaimng"; did you mean "kaiming_normal"? available: ...'"""
    names = list(available)
    close = difflib.get_close_matches(str(given), names, n=1)
    hint = f' did you mean "{close[0]}"?' if close else ""
    return f"unknown {what} {one_line(given)};{hint} available: {', '.join(names) or 'none'}"
