"""What Streamlit does not promise to keep: a test for each use, which says what breaks when a version moves
it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import streamlit as st
from streamlit import config
from streamlit.testing.v1 import AppTest

from initscope_dashboard.server import settings
from initscope_dashboard.server import streamlit_internals as internals

ROOT = Path(__file__).resolve().parents[2]


def inner(code: str, *flags: str, **environment: str) -> str:
    """What ``code`` prints in a process that has read Streamlit's settings, with these flags of ``streamlit
    run``.
    """
    given = [
        "from streamlit.web import bootstrap",
        f"bootstrap.load_config_options({dict(flag.split('=') for flag in flags)!r})",
    ]
    given += ["from initscope_dashboard.server import streamlit_internals as internals", code]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("STREAMLIT_")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(given)],
        cwd="/",
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "name",
    [*settings.PROTECTIONS, "server.address", "server.allowedHosts", "secrets.files", "server.baseUrlPath"],
)
def test_every_setting_that_protects_is_one_of_streamlits(name):
    """One that was renamed would be set under the old name, and protect nothing: find its new name, and put
    it into ``settings``.
    """
    assert internals.known(name) and not internals.known("server.noSuchSetting")


def test_a_flag_is_told_from_a_default_and_a_file(tmp_path):
    """Else a setting in any ``config.toml`` would pass for the operator's own word."""
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text("[server]\nenableCORS = false\n")
    code = (
        "print([internals.stated(n) for n in ('server.address', 'server.enableCORS', 'server.port')], "
        "internals.where_defined('server.enableCORS'))"
    )
    assert (
        inner(code, "server_address=::1", HOME=str(tmp_path))
        == f"[True, False, False] {tmp_path}/.streamlit/config.toml"
    )


def test_a_setting_has_an_environment_variable():
    assert internals.variable("server.enableCORS") == "STREAMLIT_SERVER_ENABLE_CORS"


def test_settings_are_put_back_when_files_are_read_anew():
    """Else a ``config.toml`` that changes under a running server would switch its protections off."""
    code = (
        "import streamlit as st\ninternals.on_settings_read(lambda: "
        "internals.set_option('server.maxUploadSize', 1))\n"
        "bootstrap.load_config_options({})\nprint(st.get_option('server.maxUploadSize'))"
    )
    assert inner(code) == "1"


def test_the_home_file_is_found(tmp_path):
    assert (
        inner("print(internals.home_file('secrets.toml'))", HOME=str(tmp_path))
        == f"{tmp_path}/.streamlit/secrets.toml"
    )


def test_the_sign_in_section_is_read(tmp_path):
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text('[auth]\ncookie_secret = "x"\n')
    assert inner("print(dict(internals.auth_section()))", HOME=str(tmp_path)) == "{'cookie_secret': 'x'}"
    assert inner("print(dict(internals.auth_section()))", HOME=str(tmp_path / "none")) == "{}"


def test_a_cookie_that_nobody_signed_is_nobody():
    """Else whoever writes a cookie would be whom it names; that a signed one is read,
    ``tests/browser/test_oidc.py`` sees.
    """
    assert internals.signed_user({}) == {}
    assert (
        internals.signed_user({"_streamlit_user": '{"is_logged_in": true, "email": "ada@example.org"}'}) == {}
    )


def test_a_script_knows_its_session():
    """Else every viewer would ask as often as one alone."""
    assert internals.session_id() is None
    page = AppTest.from_string(
        "import streamlit as st\nfrom initscope_dashboard.server.streamlit_internals import "
        "session_id\nst.write(session_id() or 'none')"
    ).run()
    assert not page.exception and page.markdown[0].value != "none"


def test_the_pages_own_scripts_are_found():
    """Else the Content-Security-Policy would stop Streamlit's page itself."""
    assert internals.inline_scripts() and all(script.strip() for script in internals.inline_scripts())


def test_a_pages_message_is_read():
    message = internals.BackMsg(stop_script=True)
    assert internals.BackMsg.FromString(message.SerializeToString()).WhichOneof("type") == "stop_script"


@pytest.mark.parametrize("name", internals.LOGGERS)
def test_the_loggers_are_streamlits_own(name):
    """Else a visitor could fill the log with tracebacks: a logger of another name is filtered by nobody."""
    source = Path(st.__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
    assert source.is_file() and "get_logger(__name__)" in source.read_text(encoding="utf-8")
    assert logging.getLogger(name).name == name and config.get_option("logger.level")


def test_nothing_else_of_the_dashboard_reaches_into_streamlit():
    """``import streamlit as st`` and ``streamlit.web.cli``, its console script, are what it promises."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "dashboard").rglob("*.py")
        if path.name != "streamlit_internals.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("from streamlit", "import streamlit"))
        and line.strip() not in ("import streamlit as st", "from streamlit.web import cli")
    ]
    assert found == []
