"""The package as a stranger has it: from a wheel and editable, in a project that has a ``core/`` of its
own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import time
import tomllib
import urllib.request
import zipfile

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.browser.conftest import end_supervisors
from tests.packaging.conftest import ROOT

pytestmark = pytest.mark.timeout(900)


def test_the_two_lines_record_and_every_command_answers(environment, project):
    made = environment.run("python", "loop/train.py", cwd=project)
    assert made.returncode == 0, made.stderr
    run = made.stdout.split()[-1]
    assert (project / "runs" / run / "layers.parquet").is_file(), (
        "./runs is the default folder outside of the checkout"
    )

    def command(*arguments: object) -> dict:
        done = environment.run("initscope", *arguments, "--json", cwd=project)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert [row["run"] for row in command("runs")["runs"]] == [run]
    assert command("diagnose", run)["run"] == run
    tiny = (
        "--preset",
        "quick",
        "--model",
        "vgg11",
        "--width",
        0.0625,
        "--train-samples",
        96,
        "--batch-size",
        16,
        "--max-steps",
        3,
    )
    one = command("train", *tiny, "--init", "default")["run"]
    two = command("train", *tiny, "--init", "kaiming_normal", "--processes", 2)["run"]
    assert command("compare", one, two)["verdict"] == "undecided"
    command("report", one, two, "--output", "report.html")
    assert (project / "report.html").stat().st_size > 10_000
    queued = command("train", *tiny, "--init", "kaiming_normal", "--init-seed", 1, "--detach")["run"]
    wait = (
        "import time, initscope\nfor _ in range(600):\n  if "
        f"initscope.runs().get('{queued}').state()['status'] == 'finished': break\n  time.sleep(0.5)\nelse: "
        "raise SystemExit('not trained')"
    )
    waited = environment.run("python", "-P", "-c", wait, cwd=project)
    assert waited.returncode == 0, waited.stderr + (project / "runs" / queued / "log.txt").read_text()


def test_the_module_form_answers_too(from_wheel, tmp_path):
    done = from_wheel.run("python", "-m", "initscope", "runs", cwd=tmp_path)
    assert done.returncode == 0 and "initscope train" in done.stderr
    version = from_wheel.run(
        "python", "-c", "import initscope; print(initscope.__version__)", cwd=tmp_path
    ).stdout.strip()
    assert (
        version
        == from_wheel.run(
            "python", "-c", "import importlib.metadata as m; print(m.version('initscope'))", cwd=tmp_path
        ).stdout.strip()
    )


def test_importing_it_loads_nothing_heavy(from_wheel, tmp_path):
    code = (
        "import sys, initscope; print([n for n in ('torch', 'pandas', 'numpy', 'pyarrow', 'streamlit') if n "
        "in sys.modules])"
    )
    assert from_wheel.run("python", "-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_what_the_browser_and_type_checkers_need_travels_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("initscope", "initscope_dashboard"):
        assert f"{package}/py.typed" in names
    screen = ROOT / "dashboard" / "initscope_dashboard"
    wanted = {
        path.relative_to(screen.parent).as_posix()
        for ending in ("js", "css", "png", "webp", "md", "py")
        for path in screen.rglob(f"*.{ending}")
    }
    assert wanted <= names, sorted(wanted - names)
    assert "initscope_dashboard/.streamlit/config.toml" in names
    assert not [name for name in names if name.startswith(("core/", "dashboard/", "tests/"))]


def test_what_it_declares_is_what_the_suite_runs_on():
    """Each declared range admits the pinned version, and every import of the product is declared."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        assert requirement.specifier.contains(
            Version(importlib.metadata.version(requirement.name)).base_version, prereleases=True
        ), requirement


@pytest.mark.parametrize("word", ["python -m core", "from core", "core.recorder"])
def test_nothing_speaks_of_the_old_names(word):
    spoken = [
        path
        for folder in ("core", "dashboard")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".js", ".md")
    ]
    assert [
        str(path) for path in [*spoken, ROOT / "README.md"] if word in path.read_text(encoding="utf-8")
    ] == []


def test_the_dashboard_is_served_from_the_project(environment, project, tmp_path):
    """``initscope ui`` in somebody's folder, whose modules and settings are not taken: every protection is
    on.
    """
    (project / ".streamlit").mkdir()
    (project / ".streamlit" / "config.toml").write_text(
        '[server]\naddress = "0.0.0.0"\nallowedHosts = []\n[client]\nshowErrorDetails = "full"\n'
    )
    (project / "server.py").write_text("raise RuntimeError('this is my own module, not to be imported')\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "INITSCOPE_RUNS")
    } | {"HOME": str(tmp_path)}
    log = tmp_path / "log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [environment.bin / "initscope", "ui", "--port", str(port)],
            cwd=project,
            env=environ,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and server.poll() is None:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page,
            ):
                assert "default-src 'self'" in page.headers["content-security-policy"]
                break
            time.sleep(0.3)
        else:
            raise AssertionError(log.read_text())
        assert {
            c.laddr.ip
            for c in psutil.Process(server.pid).net_connections("tcp")
            if c.status == psutil.CONN_LISTEN
        } == {"127.0.0.1"}
        assert log.read_text().startswith(
            f"InitScope: http://127.0.0.1:{port} shows the runs in {project / 'runs'} "
        )
    finally:
        server.terminate()
        server.wait(60)
        end_supervisors(project / "runs")
