"""The process behind ``initscope ui``: ``streamlit run`` of the installed entry, with every protection given
as a flag.

``server.settings`` sees to them again when the entry is loaded; the address alone can be given here only,
because the socket is bound before. The operator's own ``STREAMLIT_SERVER_ADDRESS`` and
``STREAMLIT_SERVER_ALLOWED_HOSTS`` stay; what they need is checked there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from streamlit.web import cli

from initscope.errors import ConfigError
from initscope_dashboard.server import settings
from initscope_dashboard.server import streamlit_internals as internals

ENTRY = Path(__file__).resolve().parents[1] / "serve.py"
PORT = 8501
TRIED = 100
"""Ports that are tried one after the other, where none is asked for."""


def free_port(asked: int | None, address: str = settings.ADDRESS) -> int:
    """``asked`` if nobody listens there, else the first free one from ``PORT`` on. Raises ConfigError."""
    for port in [asked] if asked is not None else range(PORT, PORT + TRIED):
        with contextlib.closing(
            socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        ) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            return int(probe.getsockname()[1])
    raise ConfigError(
        f"cannot listen on port {asked if asked is not None else f'{PORT} to {PORT + TRIED - 1}'} of "
        f"{address}: {reason}; choose another --port"
    )


def flags(port: int) -> Iterator[str]:
    """The flags of ``streamlit run``."""
    yield from (f"--server.port={port}", "--server.headless=true", "--logger.hideWelcomeMessage=true")
    if not os.environ.get(internals.variable("server.address")):
        yield f"--server.address={settings.ADDRESS}"
    if not os.environ.get(internals.variable("server.allowedHosts")):
        yield from (f"--server.allowedHosts={host}" for host in settings.HOSTS)
    for name, wanted in settings.PROTECTIONS.items():
        if internals.known(name) and wanted not in ([], {}):
            yield f"--{name}={str(wanted).lower() if isinstance(wanted, bool) else wanted}"


def main() -> int:
    """``start [--port N] [--said TEXT]``: serve until told to stop; ``{url}`` in the text is the address."""
    parser = argparse.ArgumentParser(prog="start")
    parser.add_argument("--port", type=int)
    parser.add_argument("--said", default="")
    given = parser.parse_args()
    try:
        port = free_port(given.port, os.environ.get(internals.variable("server.address")) or settings.ADDRESS)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    settings.said_when_ready = given.said.replace("{url}", f"http://{settings.ADDRESS}:{port}")
    cli.main(["run", str(ENTRY), *flags(port)], prog_name="streamlit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
