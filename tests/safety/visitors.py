"""Visitors without a browser: Streamlit's own protocol over a real websocket, and the event stream beside it;
and a process's upkeep.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import NamedTuple
from urllib.parse import urlencode

import psutil
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

_WIDGET = re.compile(rb"\$\$ID-[0-9a-f]{32}-([\w.-]+)")
ANSWER_SECONDS = 180


class Visitor:
    """One browser session. Sends what Streamlit's page sends, the timers of fragments too, and keeps what it
    needs of the answers.
    """

    def __init__(self, port: int, cookie: str = ""):
        self.port, self.cookie = port, cookie
        self.widgets: dict[str, str] = {}
        self.failures: list[str] = []
        self.page, self.query = "", ""
        self._finished = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._timers: dict[str, asyncio.Task] = {}

    async def __aenter__(self) -> Visitor:
        address = f"ws://127.0.0.1:{self.port}/_stcore/stream"
        self.socket = await websockets.connect(
            address,
            subprotocols=["streamlit"],
            proxy=None,
            max_size=None,
            ping_interval=None,
            open_timeout=ANSWER_SECONDS,
            additional_headers={"Cookie": self.cookie} if self.cookie else None,
        )
        self._tasks.append(asyncio.create_task(self._listen()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [*self._tasks, *self._timers.values()]:
            task.cancel()
        await self.socket.close()

    async def open(self, page: str = "", **query: object) -> float:
        """Go to a page; the seconds until its script has finished."""
        for timer in self._timers.values():
            timer.cancel()
        self.page, self.query, self.widgets, self._timers = page, urlencode(query, doseq=True), {}, {}
        return await self._run()

    async def click(self, key: str) -> float:
        """Press a button by its key; the seconds until the script has finished."""
        return await self._run(key)

    async def follow(self, run: str, moments: list[float]) -> None:
        """Listen to a run's event stream until cancelled; notes when each message came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(
                f"GET /api/stream?run={run} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode()
            )
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    moments.append(time.monotonic())
        finally:
            writer.close()

    def listen(self, run: str, moments: list[float]) -> None:
        self._tasks.append(asyncio.create_task(self.follow(run, moments)))

    async def _run(self, key: str = "") -> float:
        self._finished.clear()
        began = time.monotonic()
        await self._send(key=key)
        await asyncio.wait_for(self._finished.wait(), ANSWER_SECONDS)
        return time.monotonic() - began

    async def _send(self, key: str = "", fragment: str = "") -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_name = self.query, self.page
        if key:
            state.widget_states.widgets.add(id=self.widgets[key], trigger_value=True)
        if fragment:
            state.fragment_id, state.is_auto_rerun = fragment, True
        message.rerun_script.SetInParent()
        await self.socket.send(message.SerializeToString())

    async def _listen(self) -> None:
        async for data in self.socket:
            message = ForwardMsg.FromString(data)
            kind = message.WhichOneof("type")
            self.widgets |= {found[1].decode(): found[0].decode() for found in _WIDGET.finditer(data)}
            if kind == "delta" and message.delta.new_element.WhichOneof("type") == "exception":
                self.failures.append(message.delta.new_element.exception.type)
            elif kind == "page_info_changed":
                self.query = message.page_info_changed.query_string
            elif kind == "navigation":
                shown = message.navigation.page_script_hash
                self.page = next(
                    (
                        page.url_pathname
                        for page in message.navigation.app_pages
                        if page.page_script_hash == shown
                    ),
                    self.page,
                )
            elif kind == "auto_rerun" and message.auto_rerun.fragment_id not in self._timers:
                timer = self._repeat(message.auto_rerun.fragment_id, message.auto_rerun.interval)
                self._timers[message.auto_rerun.fragment_id] = asyncio.create_task(timer)
            elif kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                self._finished.set()  # a fragment's run, too: a timer may have cut the page's own run short
        self.failures.append("the server has closed the connection")
        self._finished.set()

    async def _repeat(self, fragment: str, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self._send(fragment=fragment)


class Upkeep(NamedTuple):
    """What a process and its children take: file handles, threads, children, zombies among them, and
    megabytes of memory that no file stands behind (a library's pages count for whoever alone has it open:
    they come and go with other programs).
    """

    handles: int
    threads: int
    children: int
    zombies: int
    megabytes: float


def upkeep(pid: int) -> Upkeep | None:
    """Of the process itself (memory, handles, threads) and of what it started (children, zombies); None if it
    has ended.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        children = process.children(recursive=True)
        zombies = 0
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                zombies += child.status() == psutil.STATUS_ZOMBIE
        memory = sum(area.anonymous for area in process.memory_maps()) / 1e6
        return Upkeep(process.num_fds(), process.num_threads(), len(children), zombies, memory)
    return None
