"""What goes into a run's ``log.txt``: the project's own log, and whatever its processes print."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from initscope.store import Run
from initscope.store.files import NO_LINK

log = logging.getLogger("initscope")
LOG_BYTES = 1_000_000
"""A log that has grown so long becomes ``log.txt.1``, and a new one begins."""


class Line(logging.Formatter):
    """One line an event: time in UTC, level, what happened. A text from elsewhere cannot begin a line of its
    own.
    """

    converter = staticmethod(time.gmtime)

    def __init__(self):
        super().__init__("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = " ".join(record.message.splitlines())
        return super().formatMessage(record)


class LogFile(RotatingFileHandler):
    """A run's ``log.txt``, never through a link. What the disk will not take is told once, on the standard
    error: a log is not worth a training.
    """

    def __init__(self, path: Path):
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(Line())
        self._told = False

    def _open(self) -> Any:
        return open(
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=lambda path, flags: os.open(path, flags | NO_LINK, 0o666),
        )

    def handleError(self, record: logging.LogRecord) -> None:
        self._tell(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        if not self._told and sys.stderr is not None:
            self._told = True
            reason = getattr(error, "strerror", None) or error
            print(f"initscope: {self.baseFilename} is not written any more: {reason}", file=sys.stderr)


@contextlib.contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Append the project's log to the run's ``log.txt``."""
    handler = LogFile(run.path / "log.txt")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def output_to(run: Run) -> None:
    """From now on what this process prints, and what libraries print below Python, goes to the run's
    ``log.txt``.
    """
    file = os.open(run.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
