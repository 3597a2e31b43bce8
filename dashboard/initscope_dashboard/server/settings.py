"""Streamlit's settings, as this server must have them, whatever started it and from wherever.

Streamlit reads ``~/.streamlit``, ``.streamlit`` of the working folder and of the script's folder, the
environment and flags. Our own ``config.toml`` is one file among these: it may not be found, and others may
say more. So what protects is set here, in code.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from initscope.errors import ConfigError, one_line
from initscope.installation import checkout
from initscope_dashboard.server import streamlit_internals as internals

PROTECTIONS: dict[str, Any] = {
    "browser.gatherUsageStats": False,
    "client.showErrorDetails": "type",
    "client.showErrorLinks": False,
    "global.developmentMode": False,
    "runner.magicEnabled": False,
    "server.allowRunOnSave": False,
    "server.corsAllowedOrigins": [],
    "server.enableAgentApi": False,
    "server.enableCORS": True,
    "server.enableStaticServing": False,
    "server.enableXsrfProtection": True,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 1,
    "server.runOnSave": False,
    "server.scriptHealthCheckEnabled": False,
    "server.trustedUserHeaders": {},
    "server.unsafeMetricsUserAttributes": [],
}
"""What nobody may set otherwise. A file that does is overruled; a flag or an environment variable that does
is refused.
"""
ADDRESS = "127.0.0.1"
HOSTS = ["localhost", "127.0.0.1", "[::1]"]
"""Names in ``Host`` that are answered, unless the operator states others."""
SECRETS = "INITSCOPE_SECRETS"
"""The environment variable that names a secrets file of this dashboard's own."""
said_when_ready = ""
"""A line for standard output once the server answers."""
AUTH = ("redirect_uri", "cookie_secret")
PROVIDER = ("client_id", "client_secret", "server_metadata_url")
"""What Streamlit's sign-in cannot do without: of ``[auth]``, and of it or each provider in it."""


def project_folder() -> Path:
    """The ``.streamlit`` that belongs to this installation: its checkout's, or the one beside the installed
    entry.
    """
    root = checkout()
    return (root or Path(__file__).resolve().parents[1]) / ".streamlit"


def settle() -> None:
    """Have every protection on, and keep them on when a ``config.toml`` changes later. Raises ConfigError
    where that cannot be.
    """
    for name, wanted in PROTECTIONS.items():
        if (
            internals.known(name)
            and internals.stated(name)
            and st.get_option(name) not in (wanted, str(wanted).lower())
        ):
            given = f"{one_line(st.get_option(name))} by a flag or by {internals.variable(name)}"
            raise ConfigError(f"{name} is {given}; this server needs {one_line(wanted)}: leave it out")
    _check_address()
    hosts = allowed_hosts()
    files = secrets_files()

    def put() -> None:
        for name, wanted in {
            **PROTECTIONS,
            "server.allowedHosts": hosts,
            "secrets.files": [str(path) for path in files],
        }.items():
            if internals.known(name):
                internals.set_option(name, wanted)

    put()
    internals.on_settings_read(put)


def loopback(address: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _ours(name: str) -> bool:
    """Whether the operator of this installation gave the setting: by flag, by environment, or in the
    project's own file.
    """
    return (
        internals.stated(name)
        or Path(internals.where_defined(name)).resolve() == (project_folder() / "config.toml").resolve()
    )


def _check_address() -> None:
    """The socket is bound by now, and not yet listened to: an address that nobody asked for can only be
    refused.
    """
    address = str(st.get_option("server.address") or "")
    if not loopback(address) and not _ours("server.address"):
        asked = (
            f"as {internals.where_defined('server.address')} says"
            if address
            else "as Streamlit does unless told otherwise"
        )
        raise ConfigError(
            f"this server would listen on {address or 'every address'}, {asked}; start it with `initscope "
            f"ui`, or give --server.address={ADDRESS}"
        )


@cache
def allowed_hosts() -> list[str]:
    """Names in ``Host`` that are answered; found out once, before ``settle`` makes them Streamlit's."""
    stated = list(st.get_option("server.allowedHosts") or []) if _ours("server.allowedHosts") else []
    return [str(host) for host in stated] or HOSTS


def others_come() -> bool:
    """Whether the operator has the server listen on an address that other machines reach, or answer to any
    name.
    """
    return not loopback(str(st.get_option("server.address") or "")) or "*" in allowed_hosts()


# -- secrets


def secrets_files() -> list[Path]:
    """The files that secrets are read from. Raises ConfigError if one that was named, or that asks for a
    sign-in, cannot be had.
    """
    if named := os.environ.get(SECRETS, "").strip():
        path = Path(named).expanduser().absolute()
        if not auth_of(path):
            raise ConfigError(f"{SECRETS} names {path}, which has no [auth]; correct the path, or unset it")
        return [path]
    if internals.stated("secrets.files"):
        found = [Path(path).absolute() for path in st.get_option("secrets.files")]
        for path in found:
            if not path.is_dir() and not path.is_file():
                raise ConfigError(
                    f"secrets.files names {path}, which is not there; correct the path, or leave it out"
                )
        return found
    found = [internals.home_file("secrets.toml"), project_folder() / "secrets.toml"]
    for path in found:
        auth_of(path)
    here = Path.cwd() / ".streamlit" / "secrets.toml"
    if here.resolve() not in [path.resolve() for path in found] and auth_of(here):
        raise ConfigError(
            f"{here} asks for a sign-in ([auth]), and the working folder's secrets are not read; if they "
            f"are this dashboard's, set {SECRETS}={here}"
        )
    return found


def auth_of(path: Path) -> Mapping[str, Any]:
    """``[auth]`` of a secrets file; empty if the file is not there or has none. Raises ConfigError if it
    cannot be read: Streamlit would go on as if it were not there, and everybody were welcome.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("auth", {})
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}; it may ask for a sign-in: check who may read it"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{path} is not TOML: {one_line(str(error))}; it may ask for a sign-in: correct it"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"auth in {path} must be a table, [auth], not {one_line(found)}")
    return found


def check_auth(section: Mapping[str, Any]) -> None:
    """Raises ConfigError if ``[auth]`` lacks what a sign-in needs."""
    providers = {name: value for name, value in section.items() if isinstance(value, Mapping)}
    missing = [name for name in AUTH if not section.get(name)]
    for name, provider in (providers or {"": section}).items():
        missing += [f"{name}.{key}" if name else key for key in PROVIDER if not provider.get(key)]
    if missing:
        raise ConfigError(
            f"[auth] lacks {', '.join(missing)}, so nobody could sign in; fill it in, or remove the section"
        )
