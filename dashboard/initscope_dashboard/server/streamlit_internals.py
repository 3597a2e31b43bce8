"""Every use of what Streamlit does not promise to keep, in one place.
``tests/safety/test_streamlit_internals.py`` has a test for each, which says what breaks when a version moves
it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit import config
from streamlit.auth_util import get_secrets_auth_section
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME
from streamlit.web.server.starlette.starlette_websocket import _get_signed_cookie_with_chunks

__all__ = [
    "LOGGERS",
    "BackMsg",
    "auth_section",
    "home_file",
    "inline_scripts",
    "known",
    "on_settings_read",
    "session_id",
    "set_option",
    "signed_user",
    "stated",
    "variable",
    "where_defined",
]

LOGGERS = (
    "streamlit.error_util",
    "streamlit.components.v2.bidi_component.serialization",
    "streamlit.runtime.app_session",
)
"""Loggers that write a traceback for what a browser has sent."""


def where_defined(name: str) -> str:
    """The file that gives a setting its value, or words for a default, a flag or the environment."""
    return config.get_where_defined(name)


def stated(name: str) -> bool:
    """Whether the operator gave a setting as a flag of ``streamlit run`` or as ``STREAMLIT_…`` in the
    environment.
    """
    return where_defined(name) == config._DEFINED_BY_FLAG


def known(name: str) -> bool:
    """Whether this version of Streamlit has the setting."""
    return name in config._config_options_template  # reads no file yet, as asking for a value would


def variable(name: str) -> str:
    """The environment variable that stands for a setting."""
    return str(config._config_options_template[name].env_var)


def set_option(name: str, value: Any) -> None:
    """Set what ``st.set_option`` refuses to set while the server runs."""
    config.set_option(name, value)


def on_settings_read(action: Callable[[], None]) -> None:
    """Call ``action`` whenever Streamlit has read its settings anew, as it does when a ``config.toml``
    changes under a running server.
    """
    config.on_config_parsed(action, force_connect=True)


def home_file(name: str) -> Path:
    """A file of ``~/.streamlit``."""
    from streamlit import file_util

    return Path(file_util.get_streamlit_file_path(name))


def auth_section() -> Mapping[str, Any]:
    """``[auth]`` of the secrets, as Streamlit's own sign-in reads it; empty if there is none, or if a file
    cannot be read.
    """
    return get_secrets_auth_section()


def signed_user(cookies: Mapping[str, str]) -> Mapping[str, Any]:
    """Who has come back from the OIDC provider: claims from the cookie that Streamlit signs, in pieces if it
    is long. Empty: nobody.
    """
    signed = _get_signed_cookie_with_chunks(dict(cookies), USER_COOKIE_NAME)
    return json.loads(signed) if signed else {}


def session_id() -> str | None:
    """The browser session that this script runs for; None outside of one."""
    context = get_script_run_ctx()
    return context.session_id if context else None


def inline_scripts() -> list[str]:
    """The scripts inside of Streamlit's own page, which the Content-Security-Policy allows by their
    hashes.
    """
    page = (Path(st.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
