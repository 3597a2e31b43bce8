"""Whatever starts the server, and from wherever: its protections are on, or it refuses in one line. Real
processes, real sockets.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from initscope.config.run_config import RunConfig
from initscope.store import Runs
from tests.browser.conftest import end_supervisors, free_port

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "dashboard" / "Home.py"
AUTH = """[auth]
redirect_uri = "http://127.0.0.1:8501/oauth2callback"
cookie_secret = "0123456789abcdef0123456789abcdef"
client_id = "initscope"
client_secret = "secret"
server_metadata_url = "http://127.0.0.1:9/.well-known/openid-configuration"
"""
HOSTILE = """[server]
address = "0.0.0.0"
allowedHosts = []
enableCORS = false
enableXsrfProtection = false
enableStaticServing = true
trustedUserHeaders = {"X-Mail" = "email"}
[client]
showErrorDetails = "full"
[secrets]
files = ["/nowhere/secrets.toml"]
"""
pytestmark = pytest.mark.timeout(600)


class Started:
    """A server process of whatever command, and what it said."""

    def __init__(self, command: list[object], cwd: Path, log: Path, environment: dict[str, str]):
        given = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("STREAMLIT_", "INITSCOPE_PASS", "INITSCOPE_READ", "INITSCOPE_ED"))
        }
        # A test runs the modules of this checkout, wherever the folder is that it starts from.
        given["PYTHONPATH"] = os.pathsep.join([str(ROOT / "core"), str(ROOT / "dashboard")])
        self.log, self.port = log, 0
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [*map(str, command)],
                cwd=cwd,
                env=given | environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Whether it listens; False once it has ended instead."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            self.port = next(iter(self.listens().values()), 0)
            with contextlib.suppress(OSError):
                if self.port and self.ask("/_stcore/health") == 200:
                    return True
            time.sleep(0.2)
        return False

    def listens(self) -> dict[str, int]:
        """Addresses that it listens on, with their ports."""
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.process.pid).net_connections("tcp")
            return {c.laddr.ip: c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}
        return {}

    def ask(self, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a command in a folder, with an empty home unless one is given."""
    begun: list[Started] = []
    Runs(tmp_path / "runs").create(
        RunConfig(name="a secret run"), "finished", outcome="converged", run_id="the-secret-run"
    )

    def call(*command: object, cwd: Path, **environment: str) -> Started:
        (tmp_path / "empty").mkdir(exist_ok=True)
        given = {
            "HOME": str(tmp_path / "empty"),
            "INITSCOPE_RUNS": str(tmp_path / "runs"),
            "INITSCOPE_READ_ONLY": "",
            **environment,
        }
        begun.append(Started(list(command), cwd, tmp_path / f"log-{len(begun)}", given))
        return begun[-1]

    yield call
    for one in begun:
        one.close()
    for folder in tmp_path.rglob("runs"):
        end_supervisors(folder)


def streamlit(script: object, *flags: str) -> list[object]:
    """``streamlit run``, on a port that nobody uses."""
    return [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        script,
        f"--server.port={free_port()}",
        "--server.headless=true",
        *flags,
    ]


def hostile(folder: Path) -> Path:
    (folder / ".streamlit").mkdir(parents=True)
    (folder / ".streamlit" / "config.toml").write_text(HOSTILE)
    return folder


def protected(server: Started) -> None:
    """This machine alone, no other name, no other site, nothing served from disk, every header."""
    assert server.answers(), server.log.read_text()[-2000:]
    assert set(server.listens()) == {"127.0.0.1"}
    assert (
        server.ask("/", Host="evil.example") == 400 and server.ask("/", Origin="http://evil.example") == 403
    )
    assert server.ask("/api/stream?run=nobody") == 404
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=60) as page:
        assert "default-src 'self'" in page.headers["content-security-policy"]


def refused(server: Started, *words: str) -> None:
    """It ended before anybody was answered, and said why in one line that is nobody's traceback."""
    assert not server.answers() and server.process.wait(10) != 0, "it serves"
    said = [line for line in server.log.read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in server.log.read_text(), server.log.read_text()[-3000:]
    for word in words:
        assert word in said[0], said[0]


# -- protected from wherever


def test_from_the_folder_of_the_script(start):
    protected(start(*streamlit("Home.py"), cwd=HOME.parent))


def test_from_the_root_of_the_disk_with_an_absolute_path(start):
    protected(start(*streamlit(HOME), cwd=Path("/")))


def test_settings_of_the_user_and_of_the_working_folder_change_nothing(start, tmp_path):
    protected(start(*streamlit(HOME), cwd=hostile(tmp_path / "here"), HOME=str(hostile(tmp_path / "home"))))


def test_a_setting_that_changes_while_it_runs_changes_nothing(start, tmp_path):
    home = tmp_path / "home"
    (home / ".streamlit").mkdir(parents=True)
    server = start(*streamlit(HOME), cwd=tmp_path, HOME=str(home))
    protected(server)
    (home / ".streamlit" / "config.toml").write_text(HOSTILE)
    time.sleep(2)  # Streamlit looks five times a second
    protected(server)


def test_the_command_serves_the_folder_one_stands_in(start, tmp_path):
    folder = tmp_path / "project"
    Runs(folder / "runs").create(RunConfig(name="mine"), "finished", run_id="mine")
    port = free_port()
    # A module of the project must not be loaded in place of one of ours, nor its settings be taken.
    for name in ("queue.py", "server.py", "core.py"):
        (hostile(folder) if not (folder / ".streamlit").exists() else folder).joinpath(name).write_text(
            "raise RuntimeError('mine')\n"
        )
    server = start(
        sys.executable, "-P", "-m", "initscope", "ui", "--port", port, cwd=folder, INITSCOPE_RUNS=""
    )
    protected(server)
    assert (
        server.log.read_text().strip()
        == f"InitScope: http://127.0.0.1:{port} shows the runs in {folder / 'runs'} (Ctrl-C ends it)"
    )
    assert server.ask("/api/stream?run=the-secret-run") == 404 and server.ask("/api/stream?run=mine") == 200
    again = subprocess.run(
        [sys.executable, "-P", "-m", "initscope", "ui", "--port", str(port)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'core'}:{ROOT / 'dashboard'}"},
    )
    assert (
        again.returncode == 2
        and again.stderr.startswith(f"error: cannot listen on port {port}")
        and len(again.stderr.splitlines()) == 1
    )
    server.close()
    as_json = start(
        sys.executable,
        "-m",
        "initscope",
        "ui",
        "--runs",
        tmp_path / "runs",
        "--json",
        cwd=Path("/"),
        INITSCOPE_RUNS="",
    )
    protected(as_json)
    assert json.loads(as_json.log.read_text()) == {
        "url": f"http://127.0.0.1:{as_json.port}",
        "runs": str(tmp_path / "runs"),
    }
    assert as_json.ask("/api/stream?run=the-secret-run") == 200


def test_the_command_works_from_a_checkout_that_nobody_installed(start, tmp_path):
    """Only ``core`` is on the path, as in ``PYTHONPATH=core python -m initscope``."""
    protected(
        start(
            sys.executable,
            "-m",
            "initscope",
            "ui",
            "--port",
            free_port(),
            cwd=tmp_path,
            PYTHONPATH=str(ROOT / "core"),
        )
    )


def test_without_the_dashboards_packages_the_command_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['streamlit'] = None; from initscope.__main__ import main; "
        "sys.exit(main(['ui']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "core")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: the dashboard needs streamlit, not installed here: pip install 'initscope[dashboard]'\n",
    )


# -- or refused


def test_a_copy_of_the_entry_elsewhere_refuses(start, tmp_path):
    shutil.copy(HOME, tmp_path / "Copied.py")
    refused(start(*streamlit(tmp_path / "Copied.py"), cwd=tmp_path), "every address", "initscope ui")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"STREAMLIT_SERVER_ADDRESS": "0.0.0.0"}, ["nobody would be asked to sign in", "INITSCOPE_PASSWORD"]),
        ({"STREAMLIT_SERVER_ALLOWED_HOSTS": "*"}, ["nobody would be asked to sign in"]),
        ({"STREAMLIT_SERVER_ENABLE_CORS": "false"}, ["server.enableCORS", "STREAMLIT_SERVER_ENABLE_CORS"]),
        ({"STREAMLIT_CLIENT_SHOW_ERROR_DETAILS": "full"}, ["client.showErrorDetails"]),
        ({"INITSCOPE_EDITORS": "ada@example.org"}, ["INITSCOPE_EDITORS", "no [auth]"]),
        ({"INITSCOPE_PASSWORD": ""}, ["INITSCOPE_PASSWORD", "at least 8"]),
        ({"INITSCOPE_SECRETS": "/nowhere/secrets.toml"}, ["INITSCOPE_SECRETS", "no [auth]"]),
    ],
)
def test_what_is_asked_for_and_cannot_be_had_refuses(start, environment, words):
    refused(start(*streamlit(HOME), cwd=Path("/"), **environment), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[auth\n", ["is not TOML"]),
        ("auth = 3\n", ["must be a table"]),
        (AUTH.replace("cookie_secret", "cookie"), ["[auth] lacks cookie_secret"]),
        (AUTH.replace("client_secret", "secret"), ["[auth] lacks client_secret"]),
    ],
)
def test_secrets_that_cannot_work_refuse(start, tmp_path, text, words):
    (tmp_path / "home" / ".streamlit").mkdir(parents=True)
    (tmp_path / "home" / ".streamlit" / "secrets.toml").write_text(text)
    refused(start(*streamlit(HOME), cwd=Path("/"), HOME=str(tmp_path / "home")), *words)


def test_secrets_of_the_working_folder_are_neither_read_nor_ignored(start, tmp_path):
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text(AUTH)
    refused(
        start(*streamlit(HOME), cwd=tmp_path),
        "[auth]",
        f"INITSCOPE_SECRETS={tmp_path}/.streamlit/secrets.toml",
    )


# -- the policy is found


def asks_to_sign_in(server: Started) -> None:
    assert server.answers(), server.log.read_text()[-2000:]
    assert server.ask("/api/stream?run=the-secret-run") == 401 and server.ask("/_stcore/metrics") == 401


def test_the_projects_own_sign_in_is_found_from_any_folder(start, tmp_path):
    """In a copy of the checkout with secrets of its own; once more by an explicit path, for an entry that has
    none.
    """
    project = tmp_path / "checkout"
    for name in ("core", "dashboard", ".streamlit"):
        shutil.copytree(
            ROOT / name, project / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", project)
    (project / ".streamlit" / "secrets.toml").write_text(AUTH)
    own = os.pathsep.join([str(project / "core"), str(project / "dashboard")])
    asks_to_sign_in(
        start(
            *streamlit(project / "dashboard" / "Home.py"),
            cwd=Path("/"),
            PYTHONPATH=own,
            INITSCOPE_EDITORS="ada@example.org",
        )
    )
    asks_to_sign_in(
        start(sys.executable, "-m", "initscope", "ui", "--port", free_port(), cwd=tmp_path, PYTHONPATH=own)
    )
    (tmp_path / "mine.toml").write_text(AUTH)
    asks_to_sign_in(start(*streamlit(HOME), cwd=Path("/"), INITSCOPE_SECRETS=str(tmp_path / "mine.toml")))


def test_with_a_password_it_may_answer_others_and_its_environment_does_not_hold_it(start):
    password = "a long password"
    server = start(
        *streamlit(HOME), cwd=Path("/"), STREAMLIT_SERVER_ADDRESS="0.0.0.0", INITSCOPE_PASSWORD=password
    )
    assert server.answers(), server.log.read_text()[-2000:]
    assert set(server.listens()) == {"0.0.0.0"} and server.ask("/live") == 401
    shown = Path(f"/proc/{server.process.pid}/environ").read_bytes()
    assert password.encode() not in shown and b"STREAMLIT_SERVER_ADDRESS=0.0.0.0" in shown


def test_another_server_than_streamlits_answers_this_machine_only(start, tmp_path):
    """``uvicorn`` listens where it is told, whatever Streamlit's settings say: whoever comes in by another
    address is refused.
    """
    others = [
        a.address
        for name in psutil.net_if_addrs().values()
        for a in name
        if a.family.name == "AF_INET" and not a.address.startswith("127.")
    ]
    port = free_port()
    server = start(
        sys.executable,
        "-m",
        "uvicorn",
        "Home:app",
        "--app-dir",
        HOME.parent,
        "--host",
        "0.0.0.0",
        "--port",
        port,
        cwd=HOME.parent,
    )
    assert server.answers(), server.log.read_text()[-2000:]
    assert server.ask("/") == 200
    if not others:
        pytest.skip("this machine has no address but its own loopback")
    connection = http.client.HTTPConnection(others[0], port, timeout=60)
    connection.request("GET", "/", headers={"Host": "localhost"})
    answer = connection.getresponse()
    assert answer.status == 403 and b"nobody is asked to sign in" in answer.read()
