"""A wheel of this checkout, and environments in which it and an editable install are the only InitScope there
is.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOOP = """
import torch
from initscope import Recorder

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with Recorder(model, optimizer, name="my net") as recorder:
    for _ in range(5):
        inputs = torch.randn(16, 8)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
        recorder.step(loss)
import sys
files = {}
for name, module in list(sys.modules.items()):
    if name.startswith("initscope") and getattr(module, "__file__", None):
        files.setdefault(module.__file__, []).append(name)
assert all(len(names) == 1 for names in files.values()), "a module is loaded under two names"
print(recorder.run.id)
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
    ]
    subprocess.run(build, check=True, timeout=600)
    [made] = folder.glob("initscope-*.whl")
    return made


class Environment:
    """A Python environment with the dependencies of the suite's and, of InitScope, only what ``requirement``
    installs.
    """

    def __init__(self, folder: Path, requirement: list[str]):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=600)
        self.bin = folder / "bin"
        [packages] = folder.glob("lib/python3*/site-packages")
        # A path in a .pth file is searched, its own .pth files are not read: the suite's editable install
        # stays out.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.bin / "python"),
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
        ]
        subprocess.run([*install, *requirement], check=True, timeout=600)

    def run(
        self, *command: object, cwd: Path, timeout: float = 600, **environment: str
    ) -> subprocess.CompletedProcess:
        program, *arguments = map(str, command)
        environ = {
            key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "INITSCOPE_RUNS")
        }
        return subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=cwd,
            env=environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@pytest.fixture(scope="session")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("from-wheel") / "venv", [str(wheel)])


@pytest.fixture(scope="session")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("editable") / "venv", ["-e", str(ROOT)])


@pytest.fixture(params=["from_wheel", "editable"])
def environment(request: pytest.FixtureRequest) -> Environment:
    return request.getfixturevalue(request.param)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, with names of its own that InitScope's checkout has too."""
    folder = tmp_path / "project"
    for package in ("core", "tests", "runs_of_mine"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(
            "raise RuntimeError('this is my own package, not to be imported')\n"
        )
    for module in ("dashboard", "queue", "Home"):  # one shadows the standard library
        (folder / f"{module}.py").write_text(
            "raise RuntimeError('this is my own module, not to be imported')\n"
        )
    (folder / "loop").mkdir()
    (folder / "loop" / "train.py").write_text(LOOP)
    return folder


def installed_version(name: str) -> str:
    return importlib.metadata.version(name)
