"""Strangers who keep the doors busy: unfinished requests, more connections than handles, streams nobody
reads, a flood of passwords.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from initscope.config.run_config import RunConfig
from initscope.store import Runs, own_process
from initscope_dashboard.live import connection_limits
from tests.browser.conftest import Server
from tests.safety.test_doors import PASSWORD, ask, signed_in

HANDLES = 640


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A locked dashboard with few file handles."""
    folder = tmp_path_factory.mktemp("crowd") / "runs"
    Runs(folder).root.mkdir()
    started = Server(folder, INITSCOPE_PASSWORD=PASSWORD)
    psutil.Process(started.process.pid).rlimit(psutil.RLIMIT_NOFILE, (HANDLES, HANDLES))
    yield started
    started.close()


BEGUN = [
    b"",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ",
    b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\npass",
]


def test_unfinished_requests_keep_nobody_out(small, until):
    """More than there are handles, never finished: soon others are answered again, and the log stays
    short.
    """
    strangers = []
    for i in range(HANDLES + 64):
        strangers.append(socket.create_connection(("127.0.0.1", small.port), timeout=10))
        try:
            strangers[-1].sendall(BEGUN[i % 3])
        except ConnectionError:
            continue  # turned away already

    def answered() -> bool:
        try:
            return ask(small, "/_stcore/health")[0] == 200
        except (ConnectionError, TimeoutError):
            return False

    until(answered, seconds=60)
    assert signed_in(small, PASSWORD), "with all of them still there"
    for stranger in strangers:
        stranger.close()
    process = psutil.Process(small.process.pid)
    until(lambda: process.num_fds() < 30)
    log = small.log.read_text()
    assert "more are turned away" in log and "Traceback" not in log and len(log) < 5000, log[-2000:]


def test_streams_that_nobody_reads_leave_room_for_pages(small, until):
    """Half of all connections may be streams; the next one is told so, and pages are answered. Those that end
    make room.
    """
    live = Runs(small.runs).create(RunConfig(), "running", **own_process())
    cookie = signed_in(small, PASSWORD)
    question = (
        f"GET /api/stream?run={live.id} HTTP/1.1\r\nHost: 127.0.0.1:{small.port}\r\nCookie: {cookie}\r\n\r\n"
    )
    streams, most = [], (HANDLES - connection_limits.HANDLES_APART) // connection_limits.HANDLES_EACH // 2
    for _ in range(most):
        streams.append(socket.create_connection(("127.0.0.1", small.port), timeout=60))
        streams[-1].sendall(question.encode())
        assert streams[-1].recv(12).endswith(b"200")
    assert ask(small, f"/api/stream?run={live.id}", Cookie=cookie)[::2] == (
        503,
        "too many pages follow runs at this moment; close some, then reload this one",
    )
    assert ask(small, "/live", Cookie=cookie)[0] == 200 and signed_in(small, PASSWORD)
    for stream in streams:
        stream.close()
    until(lambda: ask(small, f"/api/stream?run={live.id}", Cookie=cookie)[0] == 200)


def test_who_guesses_keeps_nobody_out(small, until):
    """While twenty guess without a pause, every right password of the same address is taken at once; a few
    wrong ones wait, those beyond are told to come again.
    """
    told: Counter = Counter()
    over = threading.Event()

    def guess() -> None:
        while not over.is_set():
            told[ask(small, "/sign-in", "POST", "password=wrong")[0]] += 1

    guessers = [threading.Thread(target=guess) for _ in range(20)]
    for guesser in guessers:
        guesser.start()
    try:
        until(lambda: told[429] >= 20)
        assert all(signed_in(small, PASSWORD) for _ in range(40))
    finally:
        over.set()
        for guesser in guessers:
            guesser.join()
    assert set(told) == {403, 429} and told[403] >= 1, told
