"""What the server does beside Streamlit: scripts, the event stream, and keeping strangers out.

Everything here runs in the ASGI server, not in a page; no Streamlit element is touched.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import sys
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import plotly
import streamlit as st
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from initscope import permission
from initscope.errors import ConfigError, InitScopeError
from initscope.resources.slots import slots
from initscope.scheduling import launcher
from initscope.store import Runs
from initscope_dashboard.browser import assets
from initscope_dashboard.live import connection_limits
from initscope_dashboard.live.event_stream import Hub
from initscope_dashboard.server import access, log, preload, settings, sign_in, websocket_filter
from initscope_dashboard.server import streamlit_internals as internals

MAIN = Path(__file__).resolve().parents[1] / "main.py"
"""The script that draws every page."""
FOREIGN = "another site may not ask this"
NOT_HERE = (
    "nobody is asked to sign in here, so only this machine is answered; set INITSCOPE_PASSWORD or [auth] to "
    "answer others"
)
YEAR = "public, max-age=31536000, immutable"


def around_the_pages() -> dict[str, Any]:
    """Routes, middleware and lifespan for ``st.App``. Ends the process in one line if it would not be
    protected.

    The server imports this before it listens, so nobody is answered by one that is about to end.
    """
    try:
        settings.settle()
        slots()
        if access.policy().open and settings.others_come() and not permission.read_only():
            raise ConfigError(
                f"this server is to answer others (server.address {st.get_option('server.address')}, hosts "
                f"{', '.join(settings.allowed_hosts())}), and nobody "
                "would be asked to sign in; set INITSCOPE_PASSWORD or [auth], or INITSCOPE_READ_ONLY=1 to "
                "have everybody look"
            )
        return {"routes": routes(), "middleware": middleware(), "lifespan": lifespan}
    except ConfigError as error:
        sys.exit(f"error: {error}")


# -- scripts


@cache
def _packed(name: str) -> bytes:
    """A script, gzipped once: Plotly's 4.5 MB become 1.4 MB."""
    return gzip.compress(
        assets.PLOTLY.read_bytes() if name == "plotly.min.js" else assets.own_scripts()[name], 6, mtime=0
    )


def asset(request: Request) -> Response:
    """``/assets/<version>/<name>``. Not a coroutine: Starlette runs it in a thread, where packing Plotly
    blocks nobody.
    """
    name = request.path_params["name"]
    version = request.path_params["version"]
    known = version == (
        f"plotly-{plotly.__version__}" if name == "plotly.min.js" else assets.assets_path().rsplit("/", 1)[1]
    )
    if not known or (name != "plotly.min.js" and name not in assets.own_scripts()):
        return PlainTextResponse("no such file in this version; reload the page", 404)
    headers = {"Cache-Control": YEAR, "Vary": "Accept-Encoding"}
    body = _packed(name)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        body = gzip.decompress(body)
    return Response(body, media_type=assets.SCRIPTS.get(name, "text/javascript"), headers=headers)


def routes(runs: Runs | None = None) -> list[BaseRoute]:
    """Our routes. ``runs`` is the folder that the event stream follows."""
    hub = Hub(
        runs or Runs(shown="the folder of runs"), lambda request: access.role_of(request.cookies) is not None
    )
    return [*sign_in.routes(), Route("/assets/{version}/{name}", asset), Route("/api/stream", hub.endpoint)]


# -- who may ask, and what a browser may do with the answer


@cache
def _policy() -> str:
    """The Content-Security-Policy: this server only. The page's own inline scripts are allowed by their
    hashes.
    """
    digests = [hashlib.sha256(script.encode()).digest() for script in internals.inline_scripts()]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    rules = {
        "default-src": "'self'",
        # blob: is how Streamlit loads a component's script
        "script-src": f"'self' blob: {hashes}",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "worker-src": "'self' blob:",
        "media-src": "'self' data: blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


class Guard:
    """Security headers on every answer; other sites, and browsers that have not signed in, are refused before
    Streamlit or a route of ours is reached. Plain ASGI: streams pass through.
    """

    PUBLIC = ("/sign-in", "/sign-out", "/_stcore/health")
    OURS = ("/api/", "/_stcore/metrics")
    """What OIDC's own pages do not need."""
    CLOSED = ("/_stcore/upload_file",)
    """No page takes a file; Streamlit would keep what anybody with a websocket sends there."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._from_outside(scope) or self._foreign(headers) or self._stranger(scope)
        if scope["type"] == "websocket":
            if refused:
                await send({"type": "websocket.close", "code": 1008, "reason": refused})
            else:
                await self.app(scope, websocket_filter.only_readable(receive, send), send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = (
                    "same-origin"  # with "no-referrer" a browser sends our own form with Origin: null
                )
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Permissions-Policy"] = "camera=(), microphone=(), geolocation=()"
                if headers.get("content-type", "").startswith("text/html"):
                    headers["Content-Security-Policy"] = _policy()
                    # Plotly is needed by every page but Home: fetch it while Streamlit starts, or when Home
                    # has nothing else to fetch.
                    plotly_url = (
                        f"{assets.assets_path().rsplit('/', 1)[0]}/plotly-{plotly.__version__}/plotly.min.js"
                    )
                    home = scope["path"].rstrip("/") == assets.assets_path().rsplit("/", 2)[0]
                    headers["Link"] = f"<{plotly_url}>; rel={'prefetch' if home else 'preload'}; as=script"
            await send(message)

        app = self._refusal(scope, headers, refused) if refused else self.app
        if self._path(scope).startswith(self.CLOSED):
            app = PlainTextResponse("nothing is uploaded here", 403)
        await app(scope, receive, with_headers)

    @staticmethod
    def _from_outside(scope: Scope) -> str:
        """Why a connection that came in by an address of the network is refused while nobody is asked to sign
        in: a server that something else than ``streamlit run`` started listens where that says, whatever
        Streamlit's settings are.
        """
        if (
            permission.read_only()
            or not access.policy().open
            or not scope.get("server")
            or settings.loopback(scope["server"][0])
        ):
            return ""
        return NOT_HERE

    @staticmethod
    def _foreign(headers: Headers) -> str:
        """Why a request that another site's page made is refused. Following a link from there is no such
        request.
        """
        try:
            own = {None, headers.get("host")}
            foreign = (urlsplit(headers["origin"]).netloc if "origin" in headers else None) not in own
        except ValueError:  # "http://[": not an address
            foreign = True
        followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not followed:
            foreign = True
        return FOREIGN if foreign else ""

    @staticmethod
    def _path(scope: Scope) -> str:
        """What is asked for, below the server's base path."""
        return str(scope["path"]).removeprefix(sign_in.path("/").rstrip("/"))

    def _stranger(self, scope: Scope) -> str:
        """Why a browser that has not signed in is refused. With OIDC it reaches Streamlit, whose page asks it
        to sign in.
        """
        rules, path = access.policy(), self._path(scope)
        if rules.open or path in self.PUBLIC or (rules.oidc and not path.startswith(self.OURS)):
            return ""
        return "" if access.role_of(HTTPConnection(scope).cookies) else "sign in first"

    @staticmethod
    def _refusal(scope: Scope, headers: Headers, reason: str) -> Response:
        if reason in (FOREIGN, NOT_HERE):
            return PlainTextResponse(reason, 403)
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse(sign_in.path("/sign-in") + "?next=" + quote(scope["path"], safe="/"), 303)
        return PlainTextResponse(reason, 401)


def middleware(hosts: Sequence[str] | None = None) -> list[Middleware]:
    """Host check (``server.allowedHosts``, the setting that guards the websocket too), then headers."""
    allowed = list(hosts or settings.allowed_hosts())
    return [Middleware(TrustedHostMiddleware, allowed_hosts=allowed), Middleware(Guard)]


# -- the queue


QUEUE_SECONDS = 5.0


@contextlib.asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[dict[str, Any]]:
    """While the server runs, whatever waits in the queue has a supervisor, after a restart and if one was
    killed; pages find what they import.
    """
    connection_limits.guard()
    log.guard()
    permission.guard(access.check)
    if settings.said_when_ready:
        print(settings.said_when_ready, flush=True)
    tasks = [asyncio.create_task(anyio.to_thread.run_sync(preload.load))]
    if not permission.read_only():
        tasks.append(asyncio.create_task(_keep_queue_going()))
    try:
        yield {}
    finally:
        for task in tasks:
            task.cancel()


async def _keep_queue_going() -> None:
    """Look after the queue; at the start have a supervisor ready, for whoever opens the dashboard to
    launch.
    """
    runs = Runs()
    with contextlib.suppress(InitScopeError, OSError):
        await anyio.to_thread.run_sync(launcher.prepare, runs)
    while True:
        with contextlib.suppress(InitScopeError, OSError):  # an unreadable folder is told on the page
            await anyio.to_thread.run_sync(launcher.ensure_served, runs)
        await asyncio.sleep(QUEUE_SECONDS)
