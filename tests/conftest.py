"""What the tests share: tiny real configurations, run folders in temporary places, processes that always end.

Nothing here stands in for a part of the project. Where a test needs a process of its own it gets a real one.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

from initscope.config.run_config import RunConfig
from initscope.installation import module_command
from initscope.store import Run, Runs

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-case",
        action="store_true",
        help="run the whole bench of planted faults, not only the first case of each cause",
    )
    parser.addoption(
        "--dense",
        type=int,
        help="have every run, the trainer's too, measured as by a Recorder without `every` that takes all "
        "steps up to this one: do answers need the rows left out?",
    )


def measure_seldom(steps: int) -> None:
    from initscope.recording import schedule

    class Seldom(schedule.Schedule):
        def __init__(self, every: int | None = None, start: int = 0):
            super().__init__(None if every == 1 else every, start)

    schedule.DENSE = steps
    importlib.import_module("initscope.recording.recorder").Schedule = Seldom


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "real_package: reads a data set that Debian's package has installed on this machine"
    )
    config.addinivalue_line("markers", "slow: takes more than ten seconds; part of the suite all the same")
    # Two processes share two cores (Makefile). Threads wait for each other by spinning: with the cores busy,
    # sixty steps of the transformer example cost 62 s of processor time on two threads and 6 s on one. A run
    # whose config asks for threads still gets them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Queued runs carry the mark of whoever queued them: all processes of the tests are one installation, and
    # not the developer's.
    if "INITSCOPE_STATE" not in os.environ:
        os.environ["INITSCOPE_STATE"] = tempfile.mkdtemp(prefix="initscope-state-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ["INITSCOPE_STATE"], ignore_errors=True))
    if config.getoption("--dense"):
        measure_seldom(config.getoption("--dense"))
    hypothesis.settings.register_profile(
        "suite", deadline=None
    )  # nothing is judged by the clock: the machine is shared
    hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def no_recorder_left_open() -> Iterator[None]:
    """What a test leaves open on purpose ends with it, and watches nothing of the next."""
    yield
    if (module := sys.modules.get("initscope.recording.open_recorders")) is not None:
        for recorder in list(module._open):
            recorder.leave("the test ended")


@pytest.fixture(autouse=True)
def _apart_from_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the developer's own runs and data."""
    monkeypatch.setenv("INITSCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("INITSCOPE_DATA", str(tmp_path / "data"))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """An empty folder of runs."""
    return Runs(tmp_path / "runs")


@pytest.fixture
def tiny() -> Callable[..., RunConfig]:
    """A config that trains in a second: VGG11 at a sixteenth of its width, 160 digits, one thread."""

    def make(**changes: object) -> RunConfig:
        small = {
            "model": "vgg11",
            "width": 0.0625,
            "image_size": 32,
            "train_samples": 160,
            "batch_size": 16,
            "epochs": 2,
            "threads": 1,
        }
        return RunConfig(**{**small, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def trained(runs: Runs) -> Callable[[RunConfig], Run]:
    """Trains a config in this process and returns its run."""

    def train_it(config: RunConfig) -> Run:
        from initscope.training.trainer import train

        run = runs.create(config)
        train(run)
        return run

    return train_it


@pytest.fixture
def python() -> Callable[..., subprocess.Popen]:
    """Starts ``python -c CODE ARGUMENTS`` in the project's root; what still runs at the end of the test is
    killed.
    """
    started: list[subprocess.Popen] = []

    def start(code: str, *arguments: object, **options: object) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        given = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        started.append(subprocess.Popen(command, **given))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Answer:
    """What a command left behind: exit status, both streams, and the JSON object of its last line."""

    def __init__(self, done: subprocess.CompletedProcess):
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def cli(runs: Runs) -> Callable[..., Answer]:
    """Runs ``initscope ARGUMENTS`` as a person would, with ``--runs`` in the environment."""

    def call(*arguments: object, timeout: float = 600, **environment: str) -> Answer:
        command = [sys.executable, "-m", "initscope", *map(str, arguments)]
        environ = {**os.environ, "INITSCOPE_RUNS": str(runs.root), **environment}
        return Answer(
            subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=timeout)
        )

    return call


@pytest.fixture
def until() -> Callable[..., object]:
    """Waits for a condition to become true and returns its value; generous, because the machine is shared."""

    def wait(condition: Callable[[], object], seconds: float = 240, what: str = "") -> object:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds:g} s in vain{': ' + what if what else ''}")

    return wait


def supervisors(root: Path) -> list[psutil.Process]:
    """Supervisors of this folder and the workers forked from them (they keep its command line)."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:] == module_command("initscope.scheduling.launcher", root.resolve())[1:]:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def two_slots(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[psutil.Process]]]:
    """Room for two runs of one thread at once. Gives ``supervisors`` of the folder; none of them outlives the
    test.
    """
    monkeypatch.setenv("INITSCOPE_SLOTS", "2")
    yield lambda: supervisors(runs.root)
    # The supervisor first would be replaced by nobody, but a queued run could start between two looks: look
    # until none is left.
    while left := supervisors(runs.root):
        for process in left:
            try:
                process.kill()
                process.wait(10)
            except psutil.Error:
                continue
