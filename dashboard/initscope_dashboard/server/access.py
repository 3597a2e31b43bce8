"""Who may look and who may change: nobody is asked on one's own machine; a password, OIDC or read-only mode
where others come.

- ``INITSCOPE_READ_ONLY=1``: everybody looks, nobody changes anything (``initscope.permission``).
- ``INITSCOPE_PASSWORD``, ``INITSCOPE_READER_PASSWORD``: the server answers nothing but the sign-in form to a
  browser without a session.
- ``[auth]`` in ``.streamlit/secrets.toml``: Streamlit's own OIDC sign-in; ``INITSCOPE_EDITORS`` names who may
  change things.

A policy that was asked for and cannot be had is a ConfigError: the server does not start as one that is open
to everybody.

A session is a random number in a cookie that scripts cannot read; this process alone knows what it stands
for.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import importlib.util
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path

import streamlit as st

from initscope import permission
from initscope.errors import ConfigError, NotAllowed
from initscope_dashboard.server import settings
from initscope_dashboard.server import streamlit_internals as internals

SESSION_SECONDS = 12 * 3600
LEAST_PASSWORD = 8
MOST_SESSIONS = 10_000


class Role(StrEnum):
    EDITOR = "editor"
    READER = "reader"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class Policy:
    """How strangers are told from others. ``passwords`` holds digests; ``editors`` e-mail addresses, empty:
    all who sign in.
    """

    passwords: Mapping[Role, bytes] = field(default_factory=dict)
    oidc: bool = False
    editors: frozenset[str] = frozenset()

    @property
    def open(self) -> bool:
        """Whether nobody is asked to sign in."""
        return not self.passwords and not self.oidc

    def role_of(self, password: str) -> Role | None:
        """The role that a password gives, compared in constant time with every one there is."""
        given, found = _digest(password), None
        for role, digest in self.passwords.items():
            if hmac.compare_digest(given, digest):
                found = found or role
        return found


@cache
def policy() -> Policy:
    """What the operator set, read once. Passwords leave the environment then: no training process inherits
    them.

    Raises ConfigError for a password that is too short, two that are equal, both ways of signing in at once,
    an ``[auth]`` that cannot work, or editors of a sign-in that there is not.
    """
    passwords = {}
    for role, name in ((Role.EDITOR, "INITSCOPE_PASSWORD"), (Role.READER, "INITSCOPE_READER_PASSWORD")):
        if (given := os.environ.pop(name, None)) is not None:
            wipe(name)
            if len(given) < LEAST_PASSWORD:
                raise ConfigError(
                    f"{name} must have at least {LEAST_PASSWORD} characters; set a longer one and start "
                    "again, or unset it"
                )
            passwords[role] = _digest(given)
    if len(set(passwords.values())) < len(passwords):
        raise ConfigError(
            "INITSCOPE_PASSWORD and INITSCOPE_READER_PASSWORD are equal; set two different ones"
        )
    auth = internals.auth_section()
    if auth and passwords:
        raise ConfigError(
            "there are both a password and [auth] in .streamlit/secrets.toml; choose one way to sign in"
        )
    if auth:
        settings.check_auth(auth)
        if missing := [
            package for package in ("authlib", "httpx") if importlib.util.find_spec(package) is None
        ]:
            raise ConfigError(
                f"[auth] needs {' and '.join(missing)}, not installed here: pip install authlib httpx"
            )
    editors = frozenset(
        name.strip().lower() for name in os.environ.get("INITSCOPE_EDITORS", "").split(",") if name.strip()
    )
    if not auth and "INITSCOPE_EDITORS" in os.environ:
        raise ConfigError(
            "INITSCOPE_EDITORS says who may change things among those who sign in, and there is no [auth] "
            f"in .streamlit/secrets.toml; name the file with {settings.SECRETS}, or unset INITSCOPE_EDITORS"
        )
    if auth and not editors and "INITSCOPE_EDITORS" in os.environ:
        raise ConfigError(
            "INITSCOPE_EDITORS is set and names nobody; give e-mail addresses with commas between, or unset "
            "it: all who sign in may change things then"
        )
    return Policy(passwords, bool(auth), editors)


def wipe(name: str) -> None:
    """Blank a variable in the block of memory that this process was started with: ``/proc/PID/environ`` shows
    that, whatever was unset.
    """
    try:
        block = Path("/proc/self/environ").read_bytes()
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47])  # env_start, field 50
    except (OSError, IndexError, ValueError):
        return  # not Linux
    at = (b"\0" + block).find(f"\0{name}=".encode())
    if at >= 0 and start:
        value = at + len(name) + 1
        ctypes.memset(start + value, ord("*"), block.index(b"\0", value) - value)


class Sessions:
    """Who has signed in with a password: digests of session numbers, so that a dump of them opens nothing."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Role, float]] = {}

    def begin(self, role: Role) -> str:
        """A new session's number."""
        now = time.monotonic()
        self._known = {key: value for key, value in self._known.items() if value[1] > now}
        while len(self._known) >= MOST_SESSIONS:
            del self._known[next(iter(self._known))]
        number = secrets.token_urlsafe(32)
        self._known[_digest(number)] = (role, now + SESSION_SECONDS)
        return number

    def role(self, number: str) -> Role | None:
        role, until = self._known.get(_digest(number), (None, 0.0))
        return role if until > time.monotonic() else None

    def end(self, number: str) -> None:
        self._known.pop(_digest(number), None)


sessions = Sessions()


def cookie_name() -> str:
    """One a port: browsers share cookies between the ports of a host."""
    return f"initscope_session_{st.get_option('server.port')}"


def role_of(cookies: Mapping[str, str]) -> Role | None:
    """The role of a browser with these cookies; None: it has not signed in."""
    rules = policy()
    if rules.open:
        return Role.EDITOR
    if rules.passwords:
        return sessions.role(str(cookies.get(cookie_name(), "")))
    return _oidc_role(dict(cookies))


def _oidc_role(cookies: dict[str, str]) -> Role | None:
    """From the cookie that Streamlit signs when somebody has come back from the provider."""
    user = internals.signed_user(cookies)
    if not user.get("is_logged_in"):
        return None
    editors = policy().editors
    known = user.get("email_verified") in (True, "true") and str(user.get("email", "")).lower() in editors
    return Role.EDITOR if known or not editors else Role.READER


def role() -> Role | None:
    """The role of whoever this page is drawn for."""
    return Role.EDITOR if policy().open else role_of(st.context.cookies)


def may_change() -> bool:
    """Whether pages offer to launch, change or delete. What they hide is refused all the same
    (``initscope.permission``).
    """
    return not permission.read_only() and role() == Role.EDITOR


def check(action: str) -> None:
    """The store's question before every change. Raises NotAllowed."""
    if role() != Role.EDITOR:
        raise NotAllowed(f"cannot {action}: you are signed in to look, not to change; sign in as an editor")


def gate() -> None:
    """Let nobody past who has not signed in; to be called before a page is drawn."""
    if role() is not None:
        return
    if not policy().oidc:  # signed out, or the session has ended, with the page still open
        st.markdown("Your session has ended. [Sign in](/sign-in)")
        st.stop()
    st.title("InitScope", anchor=False)
    st.button("Sign in", type="primary", on_click=st.login, key="sign-in")
    st.stop()


def sign_out() -> None:
    """In the sidebar, where there is something to sign out of."""
    if policy().oidc:
        st.button("Sign out", type="tertiary", icon=":material/logout:", on_click=st.logout, key="sign-out")
    elif policy().passwords:
        st.link_button("Sign out", "/sign-out", type="tertiary", icon=":material/logout:")
