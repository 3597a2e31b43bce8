"""The server's log: a line an event, and each kind of traceback once a minute, so that no visitor can fill a
disk with them.
"""

from __future__ import annotations

import logging
import math
import time

from initscope_dashboard.server.streamlit_internals import LOGGERS

SAY_SECONDS = 60.0
SPEAKERS = (*LOGGERS, "uvicorn.error")
"""Loggers that write a traceback for what a browser has sent."""


class Seldom(logging.Filter):
    """Lets a traceback of one type and place pass once in ``SAY_SECONDS``; whatever has none passes
    always.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[object, ...], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, _, trace = record.exc_info or (None, None, None)
        if trace is None:
            return True
        while trace.tb_next:
            trace = trace.tb_next
        place = kind, trace.tb_frame.f_code, trace.tb_lineno
        if time.monotonic() - self._said.get(place, -math.inf) < SAY_SECONDS:
            return False
        self._said[place] = time.monotonic()
        return True


def guard() -> None:
    """Have those loggers filtered that answer to a browser."""
    seldom = Seldom()
    for name in SPEAKERS:
        logging.getLogger(name).addFilter(seldom)
