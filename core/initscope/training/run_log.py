"""What goes into a run's ``log.txt``: the project's own log, and whatever its processes print."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler

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


@contextlib.contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Append the project's log to the run's ``log.txt``."""
    handler = RotatingFileHandler(
        run.path / "log.txt", maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
    )
    handler.setFormatter(Line())
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
