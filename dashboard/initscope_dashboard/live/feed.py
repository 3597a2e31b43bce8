"""One live run, followed for all who look at it: what came since the last look at its files, as a list of
messages.

One task a run reads, however many viewers there are; each of them walks along the list
(``initscope_dashboard.live.event_stream``).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import anyio
import pyarrow as pa

from initscope.errors import InitScopeError
from initscope.schema import LIVE
from initscope.store import Cursor, Run
from initscope_dashboard.live.live_rows import (
    PACE_STEPS,
    epoch_rows,
    near_end,
    newest_layers,
    progress,
    step_rows,
)

POLL_SECONDS = 0.08
STATE_SECONDS = 1.0
"""A crash changes no file, so the state is looked at this often even if none changed."""
REMEMBERED = 256
"""Messages a run keeps for viewers that lag; who lags more catches up from the files."""


class Feed:
    """Follows one live run for all its viewers while there are any."""

    def __init__(self, run: Run):
        self.run = run
        self.viewers = 0
        self.sequence = 0  # of the newest message
        self.messages: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self.state: dict[str, Any] = {}
        self.ended = False
        self.news = asyncio.Event()
        self._task: asyncio.Task | None = None
        self._cursors: dict[str, Cursor] = {}
        self._recent: pa.Table | None = None
        self._config: Mapping[str, Any] = {}
        self._revision: tuple = ()
        self._looked = -math.inf
        self._cost = 0.0  # processor seconds of the last look

    def enter(self) -> None:
        """One viewer more; the first starts the reading."""
        self.viewers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    def leave(self) -> bool:
        """One viewer less; whether nobody is left, which ends the reading."""
        self.viewers -= 1
        if self.viewers == 0 and self._task:
            self._task.cancel()
            self._task = None
        return self.viewers == 0

    def since(self, sequence: int) -> list[dict[str, Any]] | None:
        """Messages after ``sequence``; None if they are no longer remembered."""
        behind = self.sequence - sequence
        if behind > len(self.messages):
            return None
        return list(self.messages)[len(self.messages) - behind :] if behind else []

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self.ended:
            try:
                message, ended = await anyio.to_thread.run_sync(self._look, clock())
            except InitScopeError as error:  # deleted or unreadable: nothing more will come
                self.state = {"status": "unreadable", "error": str(error)}
                message, ended = {"state": self.state}, True
            if message or ended:
                # All at once: no viewer may see the end before the last message.
                self.sequence, self.ended = self.sequence + 1, ended
                self.messages.append(message)
                self.news.set()
                self.news = asyncio.Event()
            # Reading may never take more than a quarter of a core. Time spent waiting for one does not count:
            # on a busy machine a look of 20 ms took two seconds, and every viewer saw nothing for the six
            # that followed.
            await asyncio.sleep(max(POLL_SECONDS, 3 * self._cost))

    def _look(self, now: float) -> tuple[dict[str, Any], bool]:
        """What came since the last look, and whether that was all. Runs in a thread."""
        began = time.thread_time()
        try:
            return self._news(now)
        finally:
            self._cost = time.thread_time() - began

    def _news(self, now: float) -> tuple[dict[str, Any], bool]:
        revision = self.run.revision()
        if revision == self._revision and now - self._looked < STATE_SECONDS:
            return {}, False
        state = self.run.state()  # before the rows: what an ended run wrote is all there then
        message = self._rows() if revision != self._revision else {}
        self._revision, self._looked = revision, now
        shown = progress(state, self._recent if self._recent is not None else pa.table({}), self._config)
        if shown != self.state:
            self.state = message["state"] = shown
        return message, state.get("status") not in LIVE

    def _rows(self) -> dict[str, Any]:
        if not self._cursors:
            self._cursors = {table: near_end(self.run, table) for table in ("steps", "epochs", "layers")}
            self._config = self.run.info().config
        steps, epochs, layers = (self._tail(table) for table in ("steps", "epochs", "layers"))
        joined = steps if self._recent is None else pa.concat_tables([self._recent, steps])
        self._recent = joined.slice(max(0, joined.num_rows - PACE_STEPS)).combine_chunks()
        message: dict[str, Any] = {}
        if steps.num_rows:
            message["steps"] = step_rows(steps)
        if epochs.num_rows:
            message["epochs"] = epoch_rows(self.run, epochs)
        if layers.num_rows:
            message["layers"] = newest_layers(layers)
        return message

    def _tail(self, table: str) -> pa.Table:
        rows, self._cursors[table] = self.run.tail(table, self._cursors[table])
        return rows
