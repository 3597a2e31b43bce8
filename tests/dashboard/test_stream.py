"""The event stream: its messages from a hub in this process, its manners from a real server."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from initscope.config.run_config import quick
from initscope.errors import RunNotFound
from initscope.schema import LAYER_METRICS
from initscope.store import Run, Runs, RunWriter, own_process
from initscope_dashboard.live import event_stream, feed, live_rows

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["conv1_1", "conv1_2", "fc1"]


class Training:
    """A run that is written by hand, a few rows at a time."""

    def __init__(self, runs: Runs, **state: Any):
        self.run = runs.create(quick(), status="running", total_steps=100, **{**own_process(), **state})
        self.writer = RunWriter(self.run)
        self.done = 0

    def rows(self, n: int, loss: float = 2.3, gradient: float = 1.0) -> None:
        names = pa.DictionaryArray.from_arrays(pa.array(range(3), pa.int32()), NAMES)
        kinds = pa.DictionaryArray.from_arrays(pa.array([0, 0, 0], pa.int32()), ["conv2d"])
        values = np.full((len(LAYER_METRICS), 3), gradient, np.float32)
        values[LAYER_METRICS.index("nonfinite")] = 0  # a count, whatever the gradient
        for _ in range(n):
            self.writer.step(self.done, self.done // 10, loss, 0.1, 1e-3, 0.1 * (self.done + 1))
            self.writer.layers(self.done, names, kinds, pa.array(range(3), pa.int32()), values)
            self.done += 1
            if self.done % 10 == 0:
                self.writer.epoch(self.done // 10 - 1, loss, 0.1, loss, 0.2, 0.1 * self.done)
        self.writer.flush()

    def end(self, outcome: str = "not_converged") -> None:
        self.writer.compact()
        self.writer.update(status="finished", outcome=outcome, step=self.done)


@pytest.fixture
def training(runs: Runs) -> Training:
    return Training(runs)


def parsed(lines: str) -> dict[str, Any]:
    """One event of the stream: {"id", "event", "data"}."""
    fields = dict(
        line.split(": ", 1)
        for line in lines.strip().splitlines()
        if ": " in line and not line.startswith(":")
    )
    return {
        "id": fields.get("id"),
        "event": fields.get("event", "message"),
        "data": json.loads(fields["data"]) if "data" in fields else None,
    }


class Listener:
    """What one viewer has received, in this process."""

    def __init__(self, hub: event_stream.Hub, **positions: event_stream.Position):
        runs = {run.replace("_dot_", "."): hub.runs.get(run) for run in positions}
        self.welcome = True
        self.events = hub._events(runs, positions, lambda: self.welcome)
        self.got: list[dict[str, Any]] = []

    async def until(self, enough, seconds: float = 120) -> list[dict[str, Any]]:
        async with asyncio.timeout(seconds):
            while not enough(self.got):
                self.got.append(parsed(await anext(self.events)))
        return self.got

    def steps(self) -> list[int]:
        return [x for event in self.got if event["data"] for x in event["data"].get("steps", {}).get("x", [])]


def listening(runs: Runs, run: Run, step: int = -1) -> tuple[event_stream.Hub, Listener]:
    hub = event_stream.Hub(runs)
    listener = Listener(hub, **{run.id: event_stream.Position(step)})
    return hub, listener


def has(*keys: str):
    return lambda events: any(event["data"] and all(key in event["data"] for key in keys) for event in events)


def ended(events: list[dict[str, Any]]) -> bool:
    return bool(events) and events[-1]["event"] == "end"


# -- messages


def test_a_viewer_gets_what_there_is_then_what_comes_then_the_end(runs, training):
    async def watch() -> Listener:
        _, listener = listening(runs, training.run)
        training.rows(12)
        await listener.until(has("steps"))
        training.rows(3, loss=2.0)
        await listener.until(lambda _: len(listener.steps()) == 15)
        training.end()
        await listener.until(ended)
        return listener

    listener = asyncio.run(watch())
    assert listener.steps() == list(range(15))
    first = next(e["data"] for e in listener.got if e["data"] and "steps" in e["data"])
    assert first["steps"]["loss"] == [2.3] * 12
    assert first["epochs"] == {"x": [10], "val_loss": [2.3], "val_accuracy": [0.2]}
    assert first["layers"] == {"step": 11, "names": NAMES, "grad_norm": [1, 1, 1]}
    assert first["state"]["status"] == "running"
    assert (first["state"]["step"], first["state"]["total_steps"]) == (12, 100)
    assert first["state"]["images_per_second"] == pytest.approx(640, rel=1e-3)
    assert first["state"]["seconds_left"] == pytest.approx(8.8, rel=1e-3)
    last = [e["data"]["state"] for e in listener.got if e["data"] and e["data"].get("state")][-1]
    assert (last["status"], last["outcome"]) == ("finished", "not_converged")
    assert listener.got[-1]["data"] == {"runs": [training.run.id]}


def test_a_viewer_that_knows_a_step_gets_only_later_ones(runs, training):
    training.rows(12)

    async def watch() -> Listener:
        _, listener = listening(runs, training.run, step=8)
        await listener.until(has("steps"))
        return listener

    assert asyncio.run(watch()).steps() == [9, 10, 11]


def test_the_id_of_an_event_is_the_place_to_go_on_from(runs, training):
    training.rows(12)

    async def watch() -> tuple[str, list[int]]:
        _, listener = listening(runs, training.run)
        await listener.until(has("steps"))
        last = listener.got[-1]["id"]
        await listener.events.aclose()
        training.rows(9)
        again = Listener(event_stream.Hub(runs), **event_stream._last_event(last))
        await again.until(has("steps"))
        assert again.got[-1]["data"]["epochs"]["x"] == [20]
        return last, again.steps()

    last, steps = asyncio.run(watch())
    assert last == f"{training.run.id}:11:0"
    assert steps == list(range(12, 21))


def test_nan_and_infinity_are_null_and_said_in_words(runs, training):
    training.rows(5)
    training.rows(2, loss=math.nan, gradient=math.inf)

    async def watch() -> dict[str, Any]:
        _, listener = listening(runs, training.run)
        return (await listener.until(has("steps")))[-1]["data"]

    data = asyncio.run(watch())
    assert data["steps"]["loss"][-2:] == [None, None]
    assert data["layers"]["grad_norm"] == [None] * 3
    assert data["state"]["broken"] is True
    assert data["state"]["standing"] == "broken"


def test_ten_viewers_share_one_reader_and_the_last_turns_off_the_light(runs, training):
    training.rows(3)

    async def watch() -> tuple[int, int, list[list[int]]]:
        hub = event_stream.Hub(runs)
        listeners = [Listener(hub, **{training.run.id: event_stream.Position()}) for _ in range(10)]
        await asyncio.gather(*(listener.until(has("steps")) for listener in listeners))
        feeds, viewers = len(hub.feeds), hub.feeds[training.run.id].viewers
        training.rows(4)
        await asyncio.gather(
            *(listener.until(lambda _, one=listener: len(one.steps()) == 7) for listener in listeners)
        )
        for listener in listeners:
            await listener.events.aclose()
        assert hub.feeds == {}
        return feeds, viewers, [listener.steps() for listener in listeners]

    feeds, viewers, steps = asyncio.run(watch())
    assert (feeds, viewers) == (1, 10)
    assert steps == [list(range(7))] * 10


def test_who_lags_beyond_memory_catches_up_from_the_files(runs, training, monkeypatch):
    monkeypatch.setattr(feed, "REMEMBERED", 2)
    monkeypatch.setattr(feed, "POLL_SECONDS", 0.01)
    training.rows(2)

    async def watch() -> list[int]:
        hub, listener = listening(runs, training.run)
        await listener.until(has("steps"))
        followed = hub.feeds[training.run.id]
        for _ in range(6):
            before = followed.sequence
            training.rows(2)
            async with asyncio.timeout(120):
                while followed.sequence == before:
                    await asyncio.sleep(0.01)
        await listener.until(lambda _: len(listener.steps()) >= 14)
        return listener.steps()

    assert asyncio.run(watch()) == list(range(14))


def test_a_long_past_is_thinned_and_its_end_kept(runs, training):
    training.rows(6000)

    async def watch() -> list[int]:
        _, listener = listening(runs, training.run)
        await listener.until(has("steps"))
        return listener.steps()

    steps = asyncio.run(watch())
    assert len(steps) <= live_rows.CATCH_UP
    assert steps[0] == 0
    assert steps[-400:] == list(range(5600, 6000))
    assert steps == sorted(set(steps))


def test_a_process_that_dies_is_noticed_though_no_file_changes(runs):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    training = Training(runs, pid=process.pid, pid_created=None)
    training.rows(2)

    async def watch() -> list[str]:
        _, listener = listening(runs, training.run)
        await listener.until(has("steps"))
        process.kill()
        process.wait()
        await listener.until(ended)
        return [e["data"]["state"]["status"] for e in listener.got if e["data"] and "state" in e["data"]]

    assert asyncio.run(watch())[-1] == "crashed"


def test_a_run_that_is_deleted_ends_the_stream(runs, training):
    training.rows(2)

    async def watch() -> dict[str, Any]:
        _, listener = listening(runs, training.run)
        await listener.until(has("steps"))
        training.run.path.rename(training.run.path.with_name(".gone"))
        await listener.until(ended)
        return listener.got[-2]["data"]["state"]

    state = asyncio.run(watch())
    assert state["status"] == "unreadable"
    assert "missing" in state["error"]


def test_a_run_that_is_gone_already_is_said_to_be_and_the_others_go_on(runs, training):
    hub = event_stream.Hub(runs)
    with pytest.raises(RunNotFound):
        hub._find(["gone", "also-gone"])
    with pytest.raises(RunNotFound):
        hub._find([training.run.id, "../elsewhere"])

    async def watch() -> Listener:
        listener = Listener(hub, **{training.run.id: event_stream.Position()})
        listener.events = hub._events(
            hub._find([training.run.id, "gone"]),
            {training.run.id: event_stream.Position(), "gone": event_stream.Position()},
            lambda: True,
        )
        training.rows(2)
        await listener.until(
            lambda got: (
                any(event["data"] and event["data"].get("run") == "gone" for event in got)
                and has("steps")(got)
            )
        )
        return listener

    told = [event["data"] for event in asyncio.run(watch()).got if event["data"]]
    assert {event["state"]["status"] for event in told if event["run"] == "gone"} == {"unreadable"}
    assert {
        event["state"]["status"] for event in told if event["run"] == training.run.id and "state" in event
    } == {"running"}


def test_a_run_that_comes_or_goes_is_announced_and_a_row_is_not(runs, training):
    async def watch() -> Listener:
        _, listener = listening(runs, training.run)
        training.rows(1)
        await listener.until(has("steps"))
        training.rows(1)
        await listener.until(lambda _: len(listener.steps()) == 2)
        assert not [event for event in listener.got if event["event"] == "runs"]
        other = runs.create(quick(), status="stopped")
        await listener.until(lambda got: got[-1]["event"] == "runs")
        other.delete()
        await listener.until(lambda got: [event["event"] for event in got].count("runs") == 2)
        return listener

    assert asyncio.run(watch()).steps() == [0, 1]


def test_a_session_that_ends_takes_its_streams_along(runs, training):
    async def watch() -> Listener:
        hub, listener = listening(runs, training.run)
        training.rows(3)
        await listener.until(has("steps"))
        listener.welcome = False
        with pytest.raises(StopAsyncIteration):
            await listener.until(ended)
        assert hub.feeds == {}, "nobody reads on for it"
        return listener

    assert not ended(asyncio.run(watch()).got), "cut off: no word of the runs' end"


def test_silence_is_broken_by_a_comment(runs, training, monkeypatch):
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.2)
    training.rows(1)

    async def watch() -> str:
        _, listener = listening(runs, training.run)
        await listener.until(has("steps"))
        async with asyncio.timeout(120):
            return await anext(listener.events)

    assert asyncio.run(watch()).startswith(":")


def test_a_queued_run_waits_and_then_starts(runs):
    run = runs.create(quick())

    async def watch() -> list[str]:
        _, listener = listening(runs, run)
        await listener.until(has("state"))
        writer = RunWriter(run)
        writer.step(0, 0, 2.3, 0.1, 1e-3, 0.1)
        writer.update(status="running", **own_process())
        writer.flush()
        await listener.until(has("steps"))
        return [e["data"]["state"]["status"] for e in listener.got if e["data"] and "state" in e["data"]]

    statuses = asyncio.run(watch())
    assert statuses[0] == "queued"
    assert statuses[-1] == "running"


@pytest.mark.parametrize(
    "text", ["run:x", "run:1:2:3", "run:1.5", "run:-2", "run:2147483648", "run:1:" + "9" * 30]
)
def test_a_position_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError):
        event_stream.Position.parse(text)


# -- a real server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Runs, subprocess.Popen]]:
    """The dashboard on a free port of this machine, over a folder of its own."""
    root = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "dashboard/Home.py", "--server.port", str(port)]
    environment = {**os.environ, "INITSCOPE_RUNS": str(root)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.1)
    yield port, Runs(root), process
    if process.poll() is None:
        process.kill()
    process.wait()


def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(
        "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_the_route_streams_and_ends(served):
    port, runs, _ = served
    training = Training(runs)
    training.rows(3)
    answer = urllib.request.urlopen(
        f"http://127.0.0.1:{port}/api/stream?run={training.run.id}:0", timeout=240
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    text = ""
    while '"steps"' not in text:
        text += answer.readline().decode()
    training.end("converged")
    text += answer.read().decode()
    events = [parsed(part) for part in text.split("\n\n") if "data: " in part]
    assert events[0]["data"]["steps"]["x"] == [1, 2]
    assert events[-1]["event"] == "end"


def test_questions_that_make_no_sense_are_answered_in_words(served):
    port, _, _ = served
    assert get(port, "/api/stream?run=a:b")[0] == 400
    assert get(port, "/api/stream?" + "&run=x" * 65)[0] == 400
    status, _, body = get(port, "/api/stream?run=../../etc/passwd")
    assert (status, b"no run" in body) == (404, True)


def test_strangers_are_refused(served):
    port, _, _ = served
    path = "/api/stream?run=x"
    assert get(port, path, Origin="http://evil.example")[0] == 403
    assert get(port, path, Sec_Fetch_Site="cross-site")[0] == 403
    assert get(port, path, Origin=f"http://127.0.0.1:{port}")[0] == 404
    assert get(port, "/", Host="evil.example")[0] == 400
    assert get(port, "/", Host="localhost")[0] == 200


def test_pages_carry_headers_and_name_the_chart_library(served):
    port, _, _ = served
    status, headers, _ = get(port, "/")
    assert status == 200
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-eval" not in headers["content-security-policy"]
    path = headers["link"].split(">")[0].strip("<")
    status, headers, body = get(port, path, Accept_Encoding="gzip")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert "immutable" in headers["cache-control"]
    assert len(body) < 1_600_000
    assert get(port, path.replace("plotly-", "plotly-0"))[0] == 404
    assert get(port, "/assets/x/Home.py")[0] == 404


def test_an_open_stream_does_not_hold_up_the_servers_end(served):
    port, runs, process = served
    training = Training(runs)
    training.rows(1)
    answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/api/stream?run={training.run.id}", timeout=240)
    answer.readline()
    process.send_signal(signal.SIGINT)
    process.wait(20)
