"""How often pages ask again by themselves: the more people look, the less often each, so that one process can
answer all.
"""

from __future__ import annotations

import time

from initscope_dashboard.server.streamlit_internals import session_id

SECONDS_EACH = 0.3
"""A look costs a tenth of a second of processor time at most: three looks a second leave room for whoever
clicks.
"""
FORGET_SECONDS = 60.0
_seen: dict[str, float] = {}


def watchers() -> int:
    """Sessions that have been seen lately, the one that asks included."""
    now = time.monotonic()
    if session := session_id():
        _seen[session] = now
    for session, when in list(_seen.items()):
        if now - when > FORGET_SECONDS:
            _seen.pop(session, None)
    return max(1, len(_seen))


def every(seconds: float) -> float:
    """The pause between two looks that are meant to be ``seconds`` apart, seconds."""
    return min(FORGET_SECONDS / 2, max(seconds, SECONDS_EACH * watchers()))
