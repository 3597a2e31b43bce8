"""Every error a person can meet, in one tree, each with an example of what it says.

A message is one line: what was wrong, where, and what to do or what is available. The command line prints it
and exits with ``exit_status``; the dashboard shows it beside what caused it. `tests/test_errors.py` brings
each one about.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InitScopeError(Exception):
    """Base of all errors that are shown to a person without a traceback."""

    exit_status = 2


class ConfigError(InitScopeError):
    """A configuration value is missing, mistyped or out of bounds. ``field`` names it where one is to blame.

    "unknown init 'kaimng_normal'; did you mean "kaiming_normal"? available: default, tutorial, …"
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


class DataUnavailable(InitScopeError):
    """A data set is neither on disk nor can it be fetched; the message names the folder for the files.

    "no folder /nowhere; image_folder:DIR needs one sub-folder of images for each class"
    """


class RunNotFound(InitScopeError):
    """No run of that id, or no run that fits a group selection.

    "no run 'nobody' in runs; there are none yet"
    """


class NotAllowed(InitScopeError):
    """Whoever asks may only look: the dashboard is read-only, or the sign-in is one for readers.

    "cannot launch a run: this is read-only (INITSCOPE_READ_ONLY is set); ask its operator, or run your own"
    """


class LimitExceeded(InitScopeError):
    """More than the operator allows, or more than fits into memory; refused before anything starts.

    "9 epochs are over INITSCOPE_MAX_EPOCHS=8; ask for fewer"
    """


class EngineTrouble(InitScopeError):
    """The engine that is to carry runs cannot: its cluster is not there, or has gone.

    "no Ray cluster answers at 127.0.0.1:1 (Connection refused); start it, or use --engine local"
    """


class RunStateError(InitScopeError):
    """The run is in a state that does not allow this (resume a running run, delete a live one).

    "run a-run has finished; there is nothing to resume. Launch a new run with more epochs"
    """


class RunFolderError(InitScopeError):
    """A run folder, or the folder of all runs, cannot be read or written.

    "run a-run: status.json is not valid JSON; delete the run, or correct the file"
    """


class RunTooLarge(RunFolderError):
    """A run's table takes more memory than may be read at once, whatever the size of its file.

    "run a-run: layers cannot be read: 50,001 names, and at most 50,000 are read; query it, or export
    it as it is"
    """


class QueryError(InitScopeError):
    """A question in SQL that is wrong, changes something, or is beyond the bounds of memory and time.

    "no answer within 0.05 seconds; ask for fewer runs or columns, such as WHERE run = '...'"
    """


class RecordingError(InitScopeError):
    """The two lines in somebody's loop are in the wrong order, in the wrong place, or about the wrong model.

    "recorder.step() was called before the `with Recorder(...)` block began; call it inside, once after every
    optimizer.step()"
    """


class Stopped(InitScopeError):
    """Somebody asked the run to stop, and its loop wants to hear of it as an exception (``Recorder(...,
    raise_on_stop=True)``).

    "the run was asked to stop at step 1; leave the loop, it ends as stopped"
    """


class TheoryUnavailable(InitScopeError):
    """Theory does not cover this network; the message says what it does not know. Shown where a prediction
    would stand.

    "theory needs the weights' variance in advance, and 'lsuv' sets it by what the data does"
    """


class TrainingFailed(InitScopeError):
    """The training process itself failed; the message is the first line of its reason.

    "run a-run failed: the disk takes nothing more: …"
    """

    exit_status = 1


class FactoryFailed(InitScopeError):
    """Code of one's own (``file.py:factory``) raised an exception; the message is ``file.py:LINE: Type:
    text``.

    "mine.py:2: ValueError: too deep"
    """

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
