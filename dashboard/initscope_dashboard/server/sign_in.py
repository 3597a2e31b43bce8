"""The sign-in form for passwords: one plain page without a script, before Streamlit is reached at all."""

from __future__ import annotations

import asyncio
import html
from collections import Counter
from urllib.parse import parse_qs, quote

import streamlit as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from initscope_dashboard.server import access

PAUSE_SECONDS = 0.5
"""A wrong password is answered after so long for each wrong one that its address is waiting to hear of."""
MOST_WAITING = 8
"""Wrong passwords of one address that are held; those beyond are told at once to come again."""
LONGEST_BODY = 4096

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sign in · InitScope</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; font: 16px system-ui, sans-serif;
       background: light-dark(#FBF9F4, #10161E); color: light-dark(#22262B, #E4E8ED); }}
form {{ display: grid; gap: 0.75rem; width: min(20rem, 86vw); }}
h1 {{ font: 600 1.7rem Georgia, serif; margin: 0; }}
p {{ margin: 0; min-height: 1.4em; color: light-dark(#B8442A, #F0805F); }}
input, button {{ font: inherit; padding: 0.55rem 0.7rem; border-radius: 4px; border: 1px solid light-dark(#8a8272, #5c6b7d); }}
button {{ border: 0; color: #fff; background: light-dark(#2B4C7E, #4575B8); cursor: pointer; }}
</style></head>
<body><form method="post" action="{action}">
<h1>InitScope</h1>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button>
<p role="alert">{message}</p>
</form></body></html>"""  # noqa: E501

_waiting: Counter[str] = Counter()
"""Wrong passwords by address, while their answers wait."""


def path(name: str) -> str:
    """A path of ours under the server's base path."""
    prefix = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return (f"/{prefix}" if prefix else "") + name


def local(target: str) -> str:
    """Where to go after signing in: a path on this server, nothing else."""
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if safe else path("/")


def form(request: Request, message: str = "", status: int = 200) -> Response:
    """The page with the password field."""
    action = path("/sign-in") + "?next=" + quote(local(request.query_params.get("next", "/")), safe="/")
    return HTMLResponse(
        _PAGE.format(action=html.escape(action), message=html.escape(message)),
        status,
        {"Cache-Control": "no-store"},
    )


async def sign_in(request: Request) -> Response:
    """``GET``: the form. ``POST``: a session, or the form again."""
    if request.method == "GET":
        return form(request)
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST_BODY:
                return PlainTextResponse("too long", 413)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is there to read it
    given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
    role = access.policy().role_of(given)
    if role is None:
        return await _refused(request)
    access.sessions.end(request.cookies.get(access.cookie_name(), ""))  # one browser, one session
    answer = RedirectResponse(local(request.query_params.get("next", "/")), 303)
    answer.set_cookie(
        access.cookie_name(),
        access.sessions.begin(role),
        max_age=access.SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path=path("/"),
    )
    return answer


async def _refused(request: Request) -> Response:
    """The answer to a wrong password, the later the more of them its address sends. A right one never waits:
    whoever guesses, also from behind the same proxy, keeps nobody out.
    """
    address = request.client.host if request.client else ""
    if _waiting.get(address, 0) >= MOST_WAITING:
        return form(
            request, "That is not the password, and many are being tried. Wait a little, then try again.", 429
        )
    _waiting[address] += 1
    try:
        await asyncio.sleep(PAUSE_SECONDS * _waiting[address])
    finally:
        _waiting[address] -= 1
        if not _waiting[address]:
            del _waiting[address]
    return form(request, "That is not the password.", 403)


async def sign_out(request: Request) -> Response:
    """End the session here, not only in the browser. A link on another site ends none: with it the browser
    sends no strict cookie, and is then not told to forget it either.
    """
    session = request.cookies.get(access.cookie_name())
    if session is None:
        return RedirectResponse(path("/sign-in"), 303)
    access.sessions.end(session)
    answer = RedirectResponse(path("/sign-in"), 303)
    answer.delete_cookie(access.cookie_name(), path=path("/"))
    return answer


def routes() -> list[Route]:
    """Sign-in and sign-out, where there are passwords."""
    if not access.policy().passwords:
        return []
    return [Route("/sign-in", sign_in, methods=["GET", "POST"]), Route("/sign-out", sign_out)]
