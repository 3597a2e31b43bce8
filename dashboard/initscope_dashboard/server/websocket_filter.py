"""What a page may send over its websocket: values that can be read, and requests that pages make. The rest
never reaches Streamlit.

Whoever has the page open could else have every visitor's cache cleared, git started in the server's event
loop (200 requests kept everybody waiting for three seconds), or a traceback written into the log with every
message.
"""

from __future__ import annotations

import json

from google.protobuf.message import DecodeError
from starlette.types import Message, Receive, Send

from initscope_dashboard.server.streamlit_internals import BackMsg

LARGEST = 1_000_000
"""Bytes of a message; a page's own take some thousand."""
ASKED = ("rerun_script", "stop_script", "app_heartbeat", "deferred_file", "dataframe_chunk")
"""What pages ask for; the last two are operations of a ``backend_operation_request``. Streamlit would also
clear caches, look at the git repository, take files and install skills for programming assistants.
"""


def only_readable(receive: Receive, send: Send) -> Receive:
    """``receive`` of a websocket, without requests that no page makes; it ends with a message that cannot be
    read.
    """

    async def read() -> Message:
        while True:
            message = await receive()
            if message["type"] != "websocket.receive":
                return message
            asked = request(message.get("bytes"))
            if asked is None:
                await send({"type": "websocket.close", "code": 1008, "reason": "this message cannot be read"})
                return {"type": "websocket.disconnect", "code": 1008}
            if asked in ASKED:
                return message

    return read


def request(data: bytes | None) -> str | None:
    """What a message asks for; None if it is text, empty, too large, no message of Streamlit's, or holds JSON
    that is none.
    """
    if data is None or len(data) > LARGEST:
        return None
    try:
        message = BackMsg.FromString(data)
        for widget in message.rerun_script.widget_states.widgets:
            kind = widget.WhichOneof("value") or ""
            if kind.startswith("json") and not isinstance(json.loads(getattr(widget, kind)), (dict, list)):
                return None
    except (DecodeError, ValueError, RecursionError):
        return None
    asked = message.WhichOneof("type")
    if asked == "backend_operation_request":
        return message.backend_operation_request.WhichOneof("payload") or "nothing"
    return asked
