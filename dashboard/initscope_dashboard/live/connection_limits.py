"""Connections to the server: never more than there are file handles for, and none that keeps a place without
asking anything.

uvicorn waits for ever for a request that is never finished, and a server without a free handle answers nobody
and fills its log (asyncio, Python 3.11: 400 MB in half a minute). Whoever can reach the port could bring that
about, without a password.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import signal
import time
from typing import Any

import uvicorn

PATIENCE_SECONDS = 5.0
"""So often a connection is looked at; one that has not gone on with its request since the last look is
closed.
"""
MOST = 2000
HANDLES_EACH = 4
"""A connection may be a session's, for whose scripts Streamlit keeps an event loop of three handles."""
HANDLES_APART = 448
"""For files, and for the sessions (128 at most) that Streamlit keeps for two minutes after their browser has
gone.
"""
HANDLES_WANTED = 65_536
AT_ONCE = 100
"""Connections that are taken in one turn of the event loop, before the first of them is counted."""
SAY_SECONDS = 60.0

log = logging.getLogger(__name__)
_said = -math.inf


def running() -> uvicorn.Server | None:
    """The server that this process runs: whoever handles Ctrl-C."""
    server = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def guard() -> None:
    """From now on every new connection is a guarded one. To be called before the server listens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE,
        (max(soft, HANDLES_WANTED if hard == resource.RLIM_INFINITY else min(hard, HANDLES_WANTED)), hard),
    )
    if (server := running()) is not None:
        server.config.backlog = AT_ONCE
        server.config.http_protocol_class = guarded(server.config.http_protocol_class)  # type: ignore[arg-type]


def room() -> int:
    """Connections that may be open at once."""
    handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        MOST
        if handles == resource.RLIM_INFINITY
        else max(16, min(MOST, (handles - HANDLES_APART) // HANDLES_EACH))
    )


def guarded(protocol: Any) -> type[asyncio.Protocol]:
    """uvicorn's class for an HTTP connection, with a limit to their number and to its patience."""

    class Guarded(protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > room():
                _turned_away()
                transport.abort()
            else:
                self._look(None)

        def _look(self, before: object) -> None:
            """Every few seconds, until it is closed or has become a websocket (which has pings of its
            own).
            """
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            waits = self._waits_for()
            if waits is not None and waits == before:
                self.transport.close()
            else:
                self.loop.call_later(PATIENCE_SECONDS, self._look, waits)

        def _waits_for(self) -> object:
            """Which request, and which part of it, the browser owes; None while the server owes the
            answer.
            """
            if self.cycle is None or self.cycle.response_complete:
                return id(self.cycle), "head"
            return (id(self.cycle), "body") if self.cycle.more_body else None

    return Guarded


def _turned_away() -> None:
    """Tell the operator, but not once a connection."""
    global _said
    if time.monotonic() - _said > SAY_SECONDS:
        _said = time.monotonic()
        log.warning(
            "%d connections are open, all that there are file handles for (ulimit -n); more are turned away",
            room(),
        )
