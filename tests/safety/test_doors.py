"""Nobody in: real servers on loopback, asked as a browser, another site, a rebound name or a stranger would
ask.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets

from initscope.__main__ import main
from initscope.config.run_config import RunConfig
from initscope.scheduling.launcher import submit
from initscope.store import Runs
from tests.browser.conftest import Server
from tests.conftest import supervisors
from tests.safety.strain import until
from tests.safety.visitors import Visitor

ROOT = Path(__file__).resolve().parents[2]
PASSWORD, READER = "correct horse battery", "only looking here"
CLOUD = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYNUMBER",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+for+the+cloud",
    "AWS_SESSION_TOKEN": "planted-session-token",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Streamlit as everybody starts it, with one run to look at."""
    folder = tmp_path_factory.mktemp("open") / "runs"
    Runs(folder).create(RunConfig(name="a run"), "finished", outcome="converged")
    started = Server(folder)
    yield started
    started.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("locked") / "runs"
    Runs(folder).create(
        RunConfig(name="a secret run"), "finished", outcome="converged", run_id="the-secret-run"
    )
    started = Server(
        folder, INITSCOPE_PASSWORD=PASSWORD, INITSCOPE_READER_PASSWORD=READER, INITSCOPE_SLOTS="2", **CLOUD
    )
    yield started
    started.close()


def ask(
    server: Server, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """(status, headers in lower case, text); ``Host`` and others are sent exactly as given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=240)
    connection.putrequest(method, path, skip_host=True)
    given = {
        "Host": f"127.0.0.1:{server.port}",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    if body is not None:
        given |= {"Content-Length": str(len(body)), "Content-Type": "application/x-www-form-urlencoded"}
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders(body.encode() if body is not None else None)
    answer = connection.getresponse()
    streaming = answer.headers.get("content-type", "").startswith("text/event-stream")
    text = "" if streaming else answer.read().decode("utf-8", "replace")
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, text
    connection.close()
    return found


def opens(server: Server, **headers: str) -> bool:
    """Whether the server opens Streamlit's websocket to whoever asks so."""

    async def knock() -> bool:
        host = headers.pop("Host", f"127.0.0.1:{server.port}")
        address = f"ws://{host}/_stcore/stream"
        try:
            async with websockets.connect(
                address,
                host="127.0.0.1",
                port=server.port,
                additional_headers=headers,
                subprotocols=["streamlit"],
                proxy=None,
            ):
                return True
        except websockets.InvalidStatus as refused:
            assert refused.response.status_code in (400, 403), refused
            return False

    return asyncio.run(knock())


# -- this machine only


def test_only_this_machine_is_answered(server):
    import psutil

    addresses = {
        c.laddr.ip
        for c in psutil.Process(server.process.pid).net_connections()
        if c.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "testserver",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "169.254.169.254",
    ],
)
def test_a_rebound_name_is_refused(server, host):
    """DNS rebinding: the browser believes that evil.example is this machine, and says so in Host."""
    for path in ("/", "/_stcore/health", "/_stcore/host-config", "/api/stream?run=x", "/live"):
        status, _, text = ask(server, path, Host=host)
        assert status == 400 and "a run" not in text, (path, status)
    assert not opens(server, Host=host)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},  # another port of this machine
    ],
)
def test_another_site_is_refused(server, headers):
    for method, path in (
        ("GET", "/"),
        ("GET", "/api/stream?run=x"),
        ("GET", "/_stcore/host-config"),
        ("POST", "/_stcore/upload_file/a/b"),
    ):
        status, answered, _ = ask(server, path, method, **headers)
        assert status == 403, (method, path, status)
        assert "access-control-allow-origin" not in answered
    assert not opens(server, **headers)


def test_own_pages_and_followed_links_are_answered(server):
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, "/", Origin=own, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200
    assert (
        ask(
            server,
            "/compare?a=x",
            Sec_Fetch_Site="cross-site",
            Sec_Fetch_Mode="navigate",
            Sec_Fetch_Dest="document",
        )[0]
        == 200
    )
    assert (
        ask(server, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe")[0]
        == 403
    )
    assert opens(server, Origin=own) and opens(server)


def test_headers(server):
    for path in ("/", "/live", "/_stcore/health", "/api/stream?run=x", "/assets/x/plot.js", "/no/such/thing"):
        _, headers, _ = ask(server, path)
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY", path
        assert (
            headers["referrer-policy"] == "same-origin"
            and headers["cross-origin-resource-policy"] == "same-origin"
        )
    policy = dict(rule.split(" ", 1) for rule in ask(server, "/")[1]["content-security-policy"].split("; "))
    assert "unsafe" not in policy["script-src"] and "*" not in " ".join(policy.values())
    assert (
        policy["default-src"] == policy["connect-src"] == "'self'"
        and policy["object-src"] == policy["frame-ancestors"] == "'none'"
    )


ODD = [
    "/%00",
    "/..%2f..%2fetc/passwd",
    "/assets/../../../etc/passwd",
    "/assets/x/..%2f..%2fmain.py",
    "/media/../../x",
    "/component/a/%2e%2e/b",
    "/api/stream",
    "/api/stream?run=..%2F..",
    "/api/stream?run=" + "x" * 5000,
    "/api/stream?run=a:b",
    "/api/stream?run=%F0%9F%92%A9",
    "/_stcore/nope",
    "/_stcore/upload_file/x/y",
    "//evil.example/",
    "/static/../Home.py",
    "/~/+/media/../../x",
]


def test_errors_tell_nothing_of_the_machine(server):
    told = [
        str(server.runs),
        str(ROOT),
        "Traceback",
        "site-packages",
        "/tmp/",
        "/usr/",
        "root:",
        f"{sys.version_info[0]}.{sys.version_info[1]}.",
        'File "',
    ]
    for path in ODD:
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            status, _, text = ask(server, path, method)
            assert status != 500 and not [word for word in told if word in text], (
                method,
                path,
                status,
                text[:300],
            )


def test_nothing_is_uploaded(server, locked):
    """No page takes a file, so nobody's file is kept."""
    for method in ("GET", "PUT", "POST", "DELETE"):
        assert ask(server, "/_stcore/upload_file/session/file", method)[::2] == (
            403,
            "nothing is uploaded here",
        )
        assert ask(locked, "/_stcore/upload_file/session/file", method)[0] == 403


# -- passwords


def signed_in(server: Server, password: str, **headers: str) -> str:
    """The cookie of a session, or an empty text."""
    status, headers, _ = ask(
        server, "/sign-in", "POST", "password=" + urllib.parse.quote_plus(password), **headers
    )
    if status != 303:
        assert status == 403 and "set-cookie" not in headers
        return ""
    cookie = headers["set-cookie"]
    assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower() and "path=/" in cookie.lower()
    return cookie.split(";")[0]


def test_without_a_session_there_is_only_the_form(locked):
    for path in ("/", "/live", "/compare?a=x"):
        status, headers, text = ask(locked, path, Accept="text/html")
        assert status == 303 and headers["location"].startswith("/sign-in?next=/") and text == ""
    for path in (
        "/",
        "/api/stream?run=the-secret-run",
        "/assets/x/plot.js",
        "/_stcore/host-config",
        "/static/js/index.js",
        "/media/x",
        "/sign-in/../live",
    ):
        assert ask(locked, path)[0] == 401, path
    assert ask(locked, "/_stcore/health")[::2] == (200, "ok")
    assert not opens(locked)
    status, headers, text = ask(locked, "/sign-in")
    assert (
        status == 200
        and 'type="password"' in text
        and "<script" not in text
        and "content-security-policy" in headers
    )
    for forged in ("x", "a" * 10_000, "é".encode().decode("latin-1")):
        cookie = f"initscope_session_{locked.port}={forged}"
        assert ask(locked, "/live", Cookie=cookie)[0] == 401 and (
            len(cookie) > 8000 or not opens(locked, Cookie=cookie)
        )


def test_a_password_opens_one_session(locked):
    for wrong in ("", "Correct horse battery", PASSWORD + " ", PASSWORD[:-1], "%00"):
        assert not signed_in(locked, wrong)
    cookie = signed_in(locked, PASSWORD)
    assert cookie and ask(locked, "/", Cookie=cookie)[0] == 200 and opens(locked, Cookie=cookie)
    assert ask(locked, "/api/stream?run=the-secret-run", Cookie=cookie)[0] == 200
    other = signed_in(locked, READER)
    assert other != cookie
    status, headers, _ = ask(locked, "/sign-out")  # as a link on another site asks: without the strict cookie
    assert status == 303 and "set-cookie" not in {name.lower() for name in headers}
    assert ask(locked, "/sign-out", Cookie=cookie)[0] == 303
    assert ask(locked, "/live", Cookie=cookie)[0] == 401 and not opens(locked, Cookie=cookie), (
        "ended on the server, not only in the browser"
    )
    assert opens(locked, Cookie=other), "another session goes on"
    again = signed_in(locked, READER, Cookie=other)
    assert opens(locked, Cookie=again) and not opens(locked, Cookie=other), (
        "signing in anew ends the session there was: a planted cookie opens nothing"
    )
    # Another site can neither sign anybody in nor use a session.
    assert ask(locked, "/sign-in", "POST", f"password={PASSWORD}", Origin="http://evil.example")[0] == 403
    assert not opens(locked, Cookie=again, Origin="http://evil.example")


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/%0d%0aSet-Cookie:x=1",
    ],
)
def test_signing_in_leads_nowhere_else(locked, target):
    query = "?next=" + urllib.parse.quote(urllib.parse.unquote(target))
    status, headers, _ = ask(
        locked, "/sign-in" + query, "POST", "password=" + urllib.parse.quote_plus(PASSWORD)
    )
    assert status == 303 and headers["location"] == "/"


def test_the_password_is_in_no_log_and_no_environment(locked):
    assert signed_in(locked, PASSWORD) and not signed_in(locked, "a wrong but telling guess")
    log = locked.log.read_text()
    assert not [word for word in (PASSWORD, READER, "telling guess", "initscope_session") if word in log]
    code = (
        "import os; from initscope_dashboard.server import access; access.policy(); print([n for n in "
        "os.environ if 'PASSWORD' in n])"
    )
    environment = {**os.environ, "INITSCOPE_PASSWORD": PASSWORD, "INITSCOPE_READER_PASSWORD": READER}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_no_secret_is_written_anywhere(locked):
    """Passwords, a session and cloud credentials, after a launch, a failure and some refusals: in no file,
    log or answer; the passwords with no training process.
    """
    cookie = signed_in(locked, PASSWORD)
    answers = [
        ask(locked, path, Cookie=cookie, Accept="text/html")[2]
        for path in ("/nothing/there", "/api/stream?run=x", "/api/stream", "/sign-in?next=/x")
    ]
    answers += [
        ask(locked, "/sign-in", "POST", body)[2]
        for body in (f"password={PASSWORD[:-1]}", f"x={PASSWORD}", "x" * 5000)
    ]
    runs = Runs(locked.runs)
    [broken] = submit(runs, [RunConfig(data="image_folder:/nowhere")])

    async def launch() -> list[dict[str, str]]:
        async with Visitor(locked.port, cookie) as visitor:
            await visitor.open()
            await visitor.click("launch")
            await until(
                lambda: (
                    runs.get(broken.id).state()["status"] == "failed"
                    and sum(bool(info.state.get("step")) for info in runs.list()) >= 2
                )
            )
            environments = [process.environ() for process in supervisors(runs.root)]
            for info in runs.list():
                if info.live:
                    runs.get(info.run).request_stop()
            await until(lambda: not any(info.live for info in runs.list()))
            await visitor.open("live", run=[broken.id])
            assert not visitor.failures
        return environments

    environments = asyncio.run(launch())
    assert environments and not [
        name for environment in environments for name in environment if "PASSWORD" in name
    ]
    files = [path for path in (*runs.root.rglob("*"), locked.log) if path.is_file()]
    assert len(files) > 15
    secrets = [PASSWORD, READER, urllib.parse.quote_plus(PASSWORD), cookie.partition("=")[2], *CLOUD.values()]
    written = {str(path): path.read_bytes() for path in files} | {
        f"answer {i}": text.encode() for i, text in enumerate(answers)
    }
    assert [
        (where, secret) for where, data in written.items() for secret in secrets if secret.encode() in data
    ] == []


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [("short", "", "at least 8"), ("the same for both", "the same for both", "are equal")],
)
def test_a_password_that_protects_nothing_is_refused(first, second, said):
    code = "from initscope_dashboard.server import access; access.policy()"
    environment = {**os.environ, "INITSCOPE_PASSWORD": first, "INITSCOPE_READER_PASSWORD": second}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode and said in done.stderr.splitlines()[-1]


def test_whoever_only_looks_cannot_write_by_any_call(tmp_path):
    """A page or route that somebody forgets to guard meets the same refusal: a session without the editor's
    role.
    """
    code = '''
import sys
from streamlit.testing.v1 import AppTest
from initscope import permission
from initscope.errors import NotAllowed
from initscope.store import Runs
from initscope.config.run_config import quick
made = Runs().create(quick(), "stopped")
page = """
import streamlit as st
from initscope.scheduling import launcher
from initscope.errors import NotAllowed
from initscope.config.run_config import quick
from initscope_dashboard import loaders
from initscope_dashboard.server import access
runs = loaders.runs()
[run] = [runs.get(id) for id in runs.ids()]
for act in (lambda: launcher.submit(runs, [quick()]), lambda: launcher.resume(runs, run), lambda: run.edit(name="x"),
            lambda: launcher.stop(runs, run), lambda: run.request_stop(), run.delete, lambda: runs.create(quick())):
    try:
        act()
        st.write("done")
    except NotAllowed as refused:
        st.write("refused: " + str(refused))
st.write(access.may_change())
"""
from initscope_dashboard.server import access
permission.guard(access.check)
at = AppTest.from_string(page, default_timeout=60).run()
assert not at.exception, at.exception
shown = [m.value for m in at.markdown]
assert len(shown) == 8 and all(s.startswith("refused: cannot ") for s in shown[:7]) and shown[7] == "`False`", shown
assert Runs().ids() == [made.id] and not made.meta()
'''  # noqa: E501
    environment = {**os.environ, "INITSCOPE_PASSWORD": PASSWORD, "INITSCOPE_RUNS": str(tmp_path / "r")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-1500:]


# -- read-only


def test_read_only_by_one_setting(runs, monkeypatch, capsys):
    """Every command that writes is refused, nothing in the folder changes, and what reads goes on."""
    run = runs.create(RunConfig(name="kept"), "stopped")
    before = {path: path.stat().st_mtime_ns for path in runs.root.rglob("*")}
    monkeypatch.setenv("INITSCOPE_READ_ONLY", "1")
    for command in (
        ["train"],
        ["train", "--detach"],
        ["sweep", "--inits", "zeros", "--seeds", "1"],
        ["stop", run.id],
        ["resume", run.id],
        ["delete", run.id],
    ):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert re.search("read-only|only a queued", told) and len(told.splitlines()) == 1, (command, told)
    assert main(["runs"]) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.root.rglob("*")} == before
    monkeypatch.setenv("INITSCOPE_READ_ONLY", "0")
    assert main(["delete", run.id]) == 0
