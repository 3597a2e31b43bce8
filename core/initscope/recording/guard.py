"""Keeps what goes wrong inside the Recorder away from the training it watches.

The rule, in one place: a fault of ours is one warning, a missing number, and a training that goes on.
Everything that the Recorder does inside somebody's loop runs in a ``with guard(...)`` block, and every hook
of the meter is ``@guarded``. Exceptions of the loop itself never pass through here, nor do KeyboardInterrupt
and SystemExit; what a signal's handler raises (a time limit) is the loop's, wherever it strikes.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from initscope.errors import InitScopeError

_PACKAGE = __name__.partition(".")[0]
_BETWEEN = (_PACKAGE, "torch", "contextlib", "functools")
"""Packages whose frames stand between a fault and the line of the loop."""
LONGEST = 300
"""Characters of an error in a warning; the run's log.txt has the whole traceback."""


class Guard:
    """Notes faults: each kind is warned of once, all are counted, the first is kept for the run's facts.

    ``strict``: faults are raised as they are, for the project's own trainer, which answers for its run.
    ``step`` is named in messages.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.step = 0
        self.count = 0
        self.first = ""
        self.passing = False
        """Whether an exception of the loop is on its way: then nothing may take its place, not even a warning
        that is turned into an error.
        """
        self.tracebacks: list[str] = []
        """Of faults that are not yet in the run's log."""
        self._told: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, doing: str, *, refuse: bool = False) -> Iterator[None]:
        """A block whose faults are noted as "while ``doing``". ``refuse``: a person's mistake
        (InitScopeError) is raised all the same.
        """
        try:
            yield
        except Exception as error:
            if (refuse and isinstance(error, InitScopeError)) or _from_a_signal(error):
                raise
            self.note(doing, error)

    def note(self, doing: str, error: Exception) -> None:
        """Count a fault; the first of its kind is also warned of and kept. Raises it if ``strict``."""
        if self.strict:
            raise error
        self.count += 1
        text = " ".join(str(error).split())[:LONGEST]
        text = text if isinstance(error, InitScopeError) else f"{type(error).__name__}: {text}"
        self.first = self.first or f"at step {self.step}, while {doing}: {text}"
        if doing not in self._told:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.tracebacks.append(
                f"{when} WARNING at step {self.step}, while "
                f"{doing}:\n{''.join(traceback.format_exception(error))}"
            )
            self.tell_once(
                f"the Recorder failed at step {self.step}, while {doing}: {text}; the training goes on, and "
                "what could not be recorded is missing",
                key=doing,
            )

    def tell_once(self, message: str, key: str | None = None) -> None:
        """Warn, unless that has been done for ``key`` (the message); the warning points at the loop's own
        line.
        """
        if (key or message) not in self._told:
            self._told.add(key or message)
            try:
                warnings.warn(message, stacklevel=_levels_to_caller())
            # `-W error`: whoever asks for that gets it, but not in place of the loop's own exception
            except Warning as error:
                if not self.passing:
                    raise
                say(f"{type(error).__name__}: {message}")
            except ValueError:  # standard error is closed: the run's log says it
                self.tracebacks.append(f"WARNING at step {self.step}: {message}\n")

    @property
    def fact(self) -> str | None:
        """What went wrong first, and how often something did; None if nothing has."""
        more = f" ({self.count} faults in all)" if self.count > 1 else ""
        return self.first + more if self.count else None


def guarded(doing: str) -> Callable[[Callable], Callable]:
    """Decorator of a hook: what it raises goes to ``self.fault(doing, error)`` instead of into the
    training.
    """

    def decorate(hook: Callable) -> Callable:
        @functools.wraps(hook)
        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            try:
                return hook(self, *arguments, **named)
            except Exception as error:
                if _from_a_signal(error):
                    raise
                self.fault(doing, error)

        return call

    return decorate


def raise_fault(doing: str, error: Exception) -> None:
    """What a meter that no Recorder watches does with a fault."""
    raise error


def say(line: str) -> None:
    """Print ``line`` on standard error, unless nobody can be reached there: it may be closed, or a pipe whose
    reader has gone.
    """
    if sys.stderr is None:  # a program without a console
        return
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr)


def _from_a_signal(error: Exception) -> bool:
    """Whether a signal's handler has raised ``error``."""
    handlers = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if not callable(handler):
            continue
        while isinstance(handler, functools.partial):
            handler = handler.func
        for one in (handler, getattr(handler, "__func__", None), type(handler).__call__):
            handlers.add(getattr(one, "__code__", None))
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def _levels_to_caller() -> int:
    """``stacklevel`` for a warning of this module's caller: the loop's own line."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    return level
