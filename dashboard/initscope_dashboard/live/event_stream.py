"""Live rows as server-sent events: ``GET /api/stream?run=ID&run=ID:STEP&there=RUNS``.

``ID:STEP`` asks for the rows after that step, ``ID`` alone for all; ``there`` is what the page knows of the
folder (``standing``). Every message is JSON for one run:

    {"run", "position", "steps": {"x", "loss", "accuracy"}, "epochs": {"x", "val_loss", "val_accuracy"},
     "layers": {"step", "names", "grad_norm"}, "state": {...}}

Only what changed is in it. A ``runs`` event says that a run has come or gone in the folder, and how it stands
now; a stream that follows no run tells only that. NaN and infinity are null. ``id:`` holds the positions of
all runs, so a browser that lost the connection goes on where it was (``Last-Event-ID``). When every run has
ended an ``end`` event closes the stream.

What a run's files have to say is read once for all viewers (``initscope_dashboard.live.feed``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import pyarrow.compute as pc
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from initscope.errors import InitScopeError
from initscope.store import RUN_ID, Run, Runs
from initscope.store.files import stamp
from initscope_dashboard.live import connection_limits
from initscope_dashboard.live.feed import Feed
from initscope_dashboard.live.live_rows import epoch_rows, near_end, newest_layers, step_rows, thin

HEARTBEAT_SECONDS = 15
SHUTDOWN_SECONDS = 1.0
"""A server that is told to stop waits for open streams: each looks this often whether it should end."""
MOST_RUNS = 64
MOST_STREAMS = 500
"""Streams that may be open at once, read or not: 400 on two live runs take half a core. At most half of all
connections, so that pages are still answered.
"""
LAST = 2**31 - 1
"""No step and no epoch is later: their columns have 32 bits."""


@dataclass(frozen=True)
class Position:
    """How far a viewer is: the last step and the last epoch it has of a run."""

    step: int = -1
    epoch: int = -1

    @classmethod
    def parse(cls, text: str) -> tuple[str, Position]:
        """'ID', 'ID:STEP' or 'ID:STEP:EPOCH'. Raises ValueError."""
        run, *numbers = text.split(":")
        given = [int(n) for n in numbers]
        if len(given) > 2 or not all(-1 <= n <= LAST for n in given):
            raise ValueError(text)
        return run, cls(*given)

    def text(self, run: str) -> str:
        return f"{run}:{self.step}:{self.epoch}"


@dataclass
class Viewer:
    """One connection's place in one run."""

    feed: Feed
    position: Position
    sequence: int = 0
    ended: bool = False
    catching_up: bool = True
    sent: dict[str, Any] = field(default_factory=dict)


class Hub:
    """The feeds of all runs that somebody is looking at. ``welcome`` says whether whoever asked may still
    look.
    """

    def __init__(self, runs: Runs, welcome: Callable[[Request], bool] = lambda request: True):
        self.runs = runs
        self.welcome = welcome
        self.feeds: dict[str, Feed] = {}
        self.streams = 0
        self._seen: tuple[int, int] | None = None
        self._there = standing(())

    async def endpoint(self, request: Request) -> Response:
        """The route. 404 names a run if none is there, 400 a question that makes no sense, 503 one too many
        at once.
        """
        if self.streams >= min(MOST_STREAMS, connection_limits.room() // 2):
            return PlainTextResponse(
                "too many pages follow runs at this moment; close some, then reload this one", 503
            )
        asked = request.query_params.getlist("run")
        if len(asked) > MOST_RUNS:
            return PlainTextResponse(f"give at most {MOST_RUNS} runs: /api/stream?run=ID", 400)
        try:
            wanted = dict(Position.parse(text) for text in asked)
            wanted |= {
                run: at
                for run, at in _last_event(request.headers.get("last-event-id", "")).items()
                if run in wanted
            }
            found = await anyio.to_thread.run_sync(self._find, list(wanted))
        except ValueError:
            return PlainTextResponse("a run is asked for as ID, ID:STEP or ID:STEP:EPOCH", 400)
        except InitScopeError as error:
            return PlainTextResponse(str(error), 404)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = self._events(found, wanted, lambda: self.welcome(request), request.query_params.get("there"))
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    def _find(self, ids: Sequence[str]) -> dict[str, Run]:
        """The runs of these ids; one that was deleted a moment ago is followed too, and said to be gone. Runs
        in a thread.

        Raises InitScopeError if none is there.
        """
        there = set(self.runs.ids())
        lost = [run for run in ids if run not in there and not RUN_ID.fullmatch(run)] or (
            ids if there.isdisjoint(ids) else []
        )
        for run in lost:
            self.runs.get(run)
        return {run: self.runs.get(run) if run in there else Run(self.runs.root / run) for run in ids}

    async def _events(
        self,
        runs: Mapping[str, Run],
        positions: Mapping[str, Position],
        welcome: Callable[[], bool],
        there: str | None = None,
    ) -> AsyncIterator[str]:
        """The text of the stream, until the runs, the server or the viewer's session end. Starlette cancels
        it when the viewer is gone.
        """
        viewers = {run: Viewer(self._feed(runs[run]), position) for run, position in positions.items()}
        clock = asyncio.get_running_loop().time
        quiet_since = clock()
        there = await self._standing() if there is None else there
        for viewer in viewers.values():
            viewer.feed.enter()
        self.streams += 1
        try:
            yield "retry: 1000\n\n"
            while welcome() and not server_stops():
                # Taken before looking, so that nothing that comes meanwhile is missed.
                news = [viewer.feed.news for viewer in viewers.values() if not viewer.ended]
                for run, viewer in viewers.items():
                    for message in await self._fresh(viewer):
                        body = {"run": run, "position": viewer.position.text(run), **message}
                        where = ",".join(v.position.text(r) for r, v in viewers.items())
                        yield (
                            f"id: {where}\ndata: "
                            f"{json.dumps(body, allow_nan=False, separators=(',', ':'))}\n\n"
                        )
                if there != (there := await self._standing()):
                    yield f"event: runs\ndata: {json.dumps({'there': there})}\n\n"
                if viewers and all(viewer.ended for viewer in viewers.values()):
                    yield f"event: end\ndata: {json.dumps({'runs': list(viewers)})}\n\n"
                    return
                if await _any(news, min(SHUTDOWN_SECONDS, HEARTBEAT_SECONDS)):
                    quiet_since = clock()
                elif server_stops():
                    return
                elif clock() - quiet_since >= HEARTBEAT_SECONDS:
                    quiet_since = clock()
                    yield ": still here\n\n"
        finally:
            self.streams -= 1
            for run, viewer in viewers.items():
                if viewer.feed.leave() and self.feeds.get(run) is viewer.feed:
                    del self.feeds[run]

    async def _standing(self) -> str:
        """``standing`` of the folder; looked up when an entry of it has come or gone."""
        if (seen := stamp(self.runs.root)) != self._seen:
            self._seen = seen
            with contextlib.suppress(InitScopeError):  # an unreadable folder is told on the page
                self._there = standing(await anyio.to_thread.run_sync(self.runs.ids))
        return self._there

    def _feed(self, run: Run) -> Feed:
        feed = self.feeds.get(run.id)
        if feed is None or feed.ended:
            feed = self.feeds[run.id] = Feed(run)
        return feed

    async def _fresh(self, viewer: Viewer) -> list[dict[str, Any]]:
        """Messages this viewer has not had, its position moved on."""
        feed = viewer.feed
        came = feed.since(viewer.sequence)
        if viewer.catching_up or came is None:
            if feed.sequence == 0:
                return []  # the feed has not looked yet
            viewer.sequence, viewer.catching_up = feed.sequence, False
            message = await anyio.to_thread.run_sync(_catch_up, feed.run, viewer.position)
            came = [message | {"state": feed.state}]
        else:
            viewer.sequence += len(came)
        viewer.ended = feed.ended and viewer.sequence == feed.sequence
        return [fresh for message in came if (fresh := _after(viewer, message))]


def standing(ids: Iterable[str]) -> str:
    """Which runs there are, in a few letters: others for every other set of ids."""
    return hashlib.sha256("/".join(sorted(ids)).encode(errors="surrogatepass")).hexdigest()[:16]


def server_stops() -> bool:
    """Whether Ctrl-C or a SIGTERM has reached uvicorn, which then waits for every open answer before it tells
    anybody.
    """
    server = connection_limits.running()
    return server is not None and server.should_exit


def _last_event(text: str) -> dict[str, Position]:
    return dict(Position.parse(part) for part in text.split(",") if part)


def _catch_up(run: Run, position: Position) -> dict[str, Any]:
    """Rows of the files after a position, thinned. Runs in a thread."""
    try:
        steps, epochs = run.read("steps", ["step", "loss", "accuracy"]), run.read("epochs")
        layers = run.tail("layers", near_end(run, "layers"))[0]
        steps = thin(steps.filter(pc.greater(steps["step"], position.step)))
        epochs = epochs.filter(pc.greater(epochs["epoch"], position.epoch))
        found = {"steps": step_rows(steps), "epochs": epoch_rows(run, epochs)}
        return found | ({"layers": newest_layers(layers)} if layers.num_rows else {})
    except InitScopeError:
        return {}  # the feed's next look says what is wrong


def _after(viewer: Viewer, message: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a message that lies after the viewer's position, which moves on."""
    fresh = {key: value for key, value in message.items() if key in ("layers", "state")}
    for table, last in (("steps", viewer.position.step), ("epochs", viewer.sent.get("epoch_end", -1))):
        rows = message.get(table)
        if not rows:
            continue
        new = [i for i, x in enumerate(rows["x"]) if x > last]
        if not new:
            continue
        fresh[table] = {name: [values[i] for i in new] for name, values in rows.items()}
        if table == "steps":
            viewer.position = Position(rows["x"][new[-1]], viewer.position.epoch)
        else:
            viewer.sent["epoch_end"] = rows["x"][new[-1]]
            viewer.position = Position(viewer.position.step, viewer.position.epoch + len(new))
    return fresh


async def _any(events: list[asyncio.Event], timeout: float) -> bool:
    """Wait until one of the events is set; whether one was."""
    if not events:
        await asyncio.sleep(timeout)
        return False
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
