"""Signing in with OpenID Connect, Streamlit's own, against a real provider on loopback: who gets in, and who
may change things.
"""

from __future__ import annotations

import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from joserfc.jwk import RSAKey
from playwright.sync_api import Browser, Page, expect

from initscope.config.run_config import RunConfig
from initscope.store import Runs
from tests.browser.conftest import CALM, Server, free_port, settle
from tests.browser.provider import Provider

EDITOR = {"sub": "1", "email": "Ada@example.org", "email_verified": True}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    started = Provider(free_port(), f"http://127.0.0.1:{free_port()}/oauth2callback")
    yield started
    started.close()


@pytest.fixture(scope="module")
def server(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    (home / ".streamlit").mkdir()
    (home / ".streamlit" / "secrets.toml").write_text(provider.secrets())
    Runs(home / "runs").create(
        RunConfig(name="a secret run"), "finished", outcome="converged", run_id="the-secret-run"
    )
    started = Server(
        home / "runs",
        port=int(provider.callback.split(":")[2].split("/")[0]),
        HOME=str(home),
        INITSCOPE_EDITORS="ada@example.org, x@y.z",
    )
    yield started
    started.close()


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Page]:
    """Somebody nobody knows yet."""
    context = browser.new_context(**CALM)
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


def answer(server: Server, path: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(server.url + path, headers=headers), timeout=20
        ) as got:
            return got.status
    except urllib.error.HTTPError as refused:
        return refused.code


def come_in(visitor: Page, server: Server) -> None:
    visitor.goto(f"{server.url}/live?run=the-secret-run")
    settle(visitor)
    with visitor.expect_request("**/oauth2callback*"):
        visitor.get_by_role("button", name="Sign in").click()
    visitor.wait_for_url(f"{server.url}/")
    settle(visitor)


def test_a_stranger_sees_a_button_and_nothing_else(visitor, server):
    for page in ("", "live?run=the-secret-run", "compare?a=the-secret-run&b=the-secret-run"):
        visitor.goto(f"{server.url}/{page}")
        settle(visitor)
        expect(visitor.get_by_role("button", name="Sign in")).to_be_visible()
        assert (
            "secret" not in visitor.locator("body").inner_text()
            and visitor.get_by_role("button", name="Launch").count() == 0
        )
    for path in ("/api/stream?run=the-secret-run", "/_stcore/metrics"):
        for cookie in ("", "_streamlit_user=x", '_streamlit_user="2|1:0|10:1|15:_streamlit_user|4:e30=|00"'):
            assert answer(server, path, Cookie=cookie) == 401, (path, cookie)


@pytest.mark.parametrize(
    ("user", "may_change"),
    [
        (EDITOR, True),
        (EDITOR | {"email_verified": False}, False),
        (
            {"sub": "1", "email": "ada@example.org"},
            False,
        ),  # the provider does not say that the address is hers
        ({"sub": "2", "email": "bob@example.org", "email_verified": True}, False),
    ],
)
def test_who_comes_in_and_what_they_may(visitor, server, provider, user, may_change):
    provider.user = user
    come_in(visitor, server)
    expect(visitor.get_by_role("button", name="Sign out")).to_be_visible()
    assert visitor.get_by_role("button", name="Launch", exact=False).count() == int(may_change)
    assert visitor.get_by_text("Read-only").count() == int(not may_change)
    visitor.goto(f"{server.url}/live?run=the-secret-run")
    settle(visitor)
    expect(visitor.locator("body")).to_contain_text("a secret run")
    cookie = "; ".join(f"{kept['name']}={kept['value']}" for kept in visitor.context.cookies())
    assert answer(server, "/api/stream?run=the-secret-run", Cookie=cookie) == 200, (
        "our own route knows them too"
    )
    visitor.get_by_role("button", name="Sign out").click()
    expect(visitor.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_token_that_somebody_else_signed_opens_nothing(visitor, server, provider):
    provider.user, provider.signing_key = EDITOR, RSAKey.generate_key(2048)
    come_in(visitor, server)
    expect(visitor.get_by_role("button", name="Sign in")).to_be_visible()
    assert "secret" not in visitor.locator("body").inner_text()


def test_what_is_secret_was_written_nowhere(server):
    """After all of the above: neither the client's secret, nor the one that signs cookies, nor a token."""
    given = tomllib.loads((server.runs.parent / ".streamlit" / "secrets.toml").read_text())["auth"]
    for path in [server.log, *(path for path in server.runs.rglob("*") if path.is_file())]:
        written = path.read_text(errors="replace")
        assert not [
            word for word in (given["client_secret"], given["cookie_secret"], "eyJ") if word in written
        ], path
