"""A real S3-compatible server on loopback, with the manners of one far away: it counts, its listings may lag,
it may be gone.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import boto3
import psutil
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from initscope.store import Runs

Machine = Callable[..., Runs]


class Quiet(WSGIRequestHandler):
    """Without a line in the log for each request."""

    def log_request(self, *_: object) -> None:
        return


class S3:
    """``requests``: every one it got, as "METHOD /path?query". ``lag``: seconds by which a listing may be
    behind.
    """

    secret = "wJalrXUtnFEMI-K7MDENG-EXAMPLEKEY"

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.lag = 0.0
        self._listings: dict[str, tuple[float, list, list[bytes]]] = {}
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """At the port it had before, with all that it held."""
        self._serving = make_server(
            "127.0.0.1", self.port, self._answer, threaded=True, request_handler=Quiet
        )
        self.port = self._serving.port
        self._thread = threading.Thread(
            target=self._serving.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """From now on nobody answers there."""
        self._serving.shutdown()
        self._serving.server_close()
        self._thread.join()

    @staticmethod
    def on(runs: Runs) -> dict[str, str]:
        """The environment of a process on the machine that has these runs."""
        return {**os.environ, "INITSCOPE_SCRATCH": str(runs.root.parent), "INITSCOPE_RUNS": runs.shown}

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> object:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        self.requests.append(request)
        if not self.lag or "list-type" not in request:
            return self._moto(environ, start)
        told, given, body = self._listings.get(request, (0.0, [], []))
        if time.monotonic() - told > self.lag:
            given = []
            body = list(self._moto(environ, lambda *values: given.append(values)))
            self._listings[request] = time.monotonic(), given, body
        start(*given[0])
        return body


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch, request) -> Iterator[object]:
    """An empty bucket; its address and credentials are in the environment, as usual."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[-50:].strip("-")
    made = boto3.resource("s3").create_bucket(Bucket=name)
    yield made
    made.objects.delete()
    made.delete()


@pytest.fixture
def machine(bucket, tmp_path, monkeypatch) -> Iterator[Machine]:
    """``machine("a")``: the bucket's runs as machine "a" has them. Its shippers end with the test."""

    def at(name: str) -> Runs:
        monkeypatch.setenv("INITSCOPE_SCRATCH", str(tmp_path / name))
        return Runs(f"s3://{bucket.name}/runs")

    yield at
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:4] == ["-P", "-m", "initscope.store.bucket.upload"] and process.cmdline()[
                4
            ].startswith(str(tmp_path)):
                process.kill()
                process.wait(10)
        except (psutil.Error, IndexError):
            continue
