"""The Recorder never ends or spoils a training: what goes wrong inside of it is one warning, a null, and a
loop that goes on.
"""

from __future__ import annotations

import fractions
import gc
import json
import math
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initscope.errors import ConfigError, RecordingError
from initscope.recording.recorder import Recorder
from initscope.store import Runs
from initscope.store import writer as writing

pytestmark = pytest.mark.filterwarnings("error")
X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def one(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step()
    return loss


def losses(steps: int) -> list[float]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return [one(model, optimizer).item() for _ in range(steps)]


def record(
    runs: Path, steps: int = 3, between=lambda recorder, i: None, loss=lambda x: x, **told
) -> Recorder:
    """A recorded training; ``told`` are functions of the step's number."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, runs=runs, quiet=True) as recorder:
        for i in range(steps):
            value = one(model, optimizer)
            between(recorder, i)
            recorder.step(loss(value), **{key: make(i) for key, make in told.items()})
    return recorder


def rows(recorder: Recorder) -> list[dict]:
    info = Runs(recorder.run.path.parent).info(recorder.run.id)
    assert info.error is None and info.status == "finished", info
    return recorder.run.read("steps").to_pylist()


# -- what a loop gives


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.int64(3), 3),
        (2.7, 2),
        (torch.tensor(4), 4),
        (None, 0),
        (np.float32(1.5), 1),
        (True, 1),
        (fractions.Fraction(7, 2), 3),
    ],
    ids=str,
)
def test_epochs_of_every_kind(tmp_path, given, kept):
    assert [row["epoch"] for row in rows(record(tmp_path, epoch=lambda i: given))] == [kept] * 3


def test_a_negative_epoch_is_the_first_and_told(tmp_path):
    with pytest.warns(UserWarning, match="epochs are counted from 0") as told:
        recorder = record(tmp_path, epoch=lambda i: i - 1)
    assert len(told) == 1 and [row["epoch"] for row in rows(recorder)] == [0, 0, 1]


@pytest.mark.parametrize(
    "given", [2**40, "1", math.nan, [1], 10**400], ids=["huge", "text", "nan", "list", "longer"]
)
def test_epochs_that_are_none_are_refused_at_the_first_step(tmp_path, given):
    with pytest.raises(RecordingError, match=r"takes the epoch as a whole number from 0 to \d+, not "):
        record(tmp_path, epoch=lambda i: given)
    (info,) = Runs(tmp_path).list()
    assert info.status == "failed", "and the run can be read"


@pytest.mark.parametrize(
    "make",
    [
        lambda x: np.float32(x.item()),
        lambda x: x.detach().numpy(),
        lambda x: np.mean([x.detach().numpy()]),
        lambda x: x.double(),
        lambda x: x.detach().numpy().reshape(1),
        lambda x: fractions.Fraction(x.item()),
        lambda x: x.reshape(1),
    ],
)
def test_losses_of_every_kind_of_number(tmp_path, make):
    assert [row["loss"] for row in rows(record(tmp_path, loss=make))] == pytest.approx(losses(3))


@pytest.mark.parametrize(
    "given",
    [True, torch.tensor(True), None, [1.0], "1.5", 10**400, {"loss": 1.0}, torch.ones(2), 1j],
    ids=str,
)
def test_losses_that_are_none_are_refused_at_the_first_step(tmp_path, given):
    with pytest.raises(RecordingError, match=r"takes the loss as (one real|a) number"):
        record(tmp_path, loss=lambda x: given)
    assert [info.status for info in Runs(tmp_path).list()] == ["failed"]


def test_at_a_later_step_the_same_is_one_warning_and_a_null(tmp_path):
    """The loop has trained for a while by then: it goes on to its end."""
    wrong = iter([1, 1, 0, 0, 1])
    with pytest.warns(
        UserWarning,
        match=r"at step 2, while reading the loss it was given: .*not NoneType; the training goes on",
    ) as told:
        recorder = record(tmp_path, 5, loss=lambda x: x if next(wrong) else None, epoch=lambda i: i)
    assert len(told) == 1
    found = rows(recorder)
    assert [row["loss"] is None for row in found] == [False, False, True, True, False] and [
        row["epoch"] for row in found
    ] == [0, 1, 2, 3, 4]
    assert [row["grad_norm"] is None for row in recorder.run.read("layers").to_pylist()] == [False] * 10, (
        "the network was measured"
    )
    state = recorder.run.state()
    assert (
        "at step 2, while reading the loss" in state["facts"]["recording_error"]
        and "2 faults in all" in state["facts"]["recording_error"]
    )
    assert "Traceback" in recorder.run.log_tail() and state["outcome"] == "undecided", (
        "a loss that was not told has not diverged"
    )


def test_accuracies_in_percent(tmp_path):
    with pytest.warns(UserWarning, match="taken for a percentage") as told:
        recorder = record(tmp_path, 4, accuracy=lambda i: [0.0, 25.0, 0.5, 100.0][i])
    assert len(told) == 1 and [row["accuracy"] for row in rows(recorder)] == [0.0, 0.25, 0.005, 1.0]


@pytest.mark.parametrize("given", [-1.0, 300.0, math.inf])
def test_accuracies_that_are_none(tmp_path, given):
    with pytest.warns(UserWarning, match="neither a share nor a percentage"):
        recorder = record(tmp_path, accuracy=lambda i: given)
    assert all(math.isnan(row["accuracy"]) for row in rows(recorder))


@pytest.mark.parametrize("given", [torch.tensor(9), 9, np.int64(9)])
def test_a_count_of_correct_samples_is_no_accuracy(tmp_path, given):
    with pytest.raises(
        RecordingError,
        match=r"takes the accuracy as a share from 0 to 1, not .*; divide a count by the size of the batch",
    ):
        record(tmp_path, accuracy=lambda i: given)


def test_names_and_tags_of_every_kind(tmp_path):
    for name, tags, kept in (
        (3, (1, 2), ("3", ("1", "2"))),
        (None, None, ("Sequential", ())),
        (b"x", "abc", ("x", ("abc",))),
        ("long" * 100, [None], (("long" * 100)[:119] + "…", ("",))),
        (Path("a/b"), {"one"}, ("a/b", ("one",))),
    ):
        with Recorder(net(), name=name, tags=tags, runs=tmp_path, quiet=True) as recorder:
            pass
        info = Runs(tmp_path).info(recorder.run.id)
        assert (info.name, info.tags) == kept and info.error is None


def test_numbers_of_steps(tmp_path):
    for every, kept in ((None, None), (0, 1), (-1, 1), (2.5, 2), ("2", 2), (np.int64(4), 4)):
        assert Recorder(net(), every=every).schedule.every == kept
    for every in ("two", [2], math.nan):
        with pytest.raises(ConfigError, match="every must be a whole number"):
            Recorder(net(), every=every)
    assert Recorder(net(), step=np.int64(4)).next_step == 4 and Recorder(net(), step=-3).next_step == 0
    for step in (2**31, 1.5, "x"):
        with pytest.raises(ConfigError, match="step must be a whole number"):
            Recorder(net(), step=step)


def test_a_run_beyond_the_last_step_that_a_file_can_hold(tmp_path):
    """Rows that are none are dropped once, not tried again for ever."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(UserWarning, match="while writing rows") as told,
        Recorder(model, optimizer, runs=tmp_path, step=2**31 - 2) as recorder,
    ):
        for _ in range(5):
            recorder.step(one(model, optimizer))
            recorder.sync()
    assert len(told) == 1 and [row["step"] for row in rows(recorder)] == [2**31 - 2, 2**31 - 1]


# -- where the run is


def test_a_relative_folder_and_a_loop_that_goes_elsewhere(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recorder = record("runs", between=lambda *_: os.chdir(tmp_path / "there"))
    assert recorder.run.path.parent == tmp_path / "here" / "runs" and len(rows(recorder)) == 3
    assert not os.listdir(tmp_path / "there")


def test_a_folder_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    recorder = record("~/x")
    assert (
        recorder.run.path.parent == tmp_path / "home" / "x"
        and not (tmp_path / "~").exists()
        and len(rows(recorder)) == 3
    )


# -- a disk that takes nothing


def impatient(monkeypatch) -> None:
    monkeypatch.setattr(writing, "FLUSH_SECONDS", 1e-9)


def test_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    """A file size limit of nothing: every write fails as on a full disk. Then there is room again."""
    resource = pytest.importorskip("resource")
    impatient(monkeypatch)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def between(recorder, i):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if 3 <= i < 20 else before[0], before[1]))
        if i == 20:
            recorder.writer._flushed = -math.inf  # the pause is over

    try:
        with pytest.warns(UserWarning, match="while writing rows: .*the training goes on") as told:
            recorder = record(tmp_path, 30, between)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert len(told) == 1
    found = rows(recorder)
    assert [row["step"] for row in found] == list(range(30)) and [row["loss"] for row in found] == losses(30)
    assert len(recorder.run.read("layers")) == 60
    assert (
        "while writing rows" in recorder.run.state()["facts"]["recording_error"]
        and "Traceback" in (recorder.run.path / "log.txt").read_text()
    )


def test_a_disk_that_stays_full_keeps_memory_bounded(tmp_path, monkeypatch):
    impatient(monkeypatch)
    monkeypatch.setattr(writing, "WAITING_NUMBERS", 100)

    def between(recorder, i):
        recorder.writer._flushed = -math.inf
        if i == 5:
            os.rename(recorder.run.path, tmp_path / "away")
        if i == 150:
            os.rename(tmp_path / "away", recorder.run.path)

    with pytest.warns(UserWarning, match="while writing rows"):
        recorder = record(tmp_path, 160, between)
    found = [row["step"] for row in rows(recorder)]
    assert found[:5] == [0, 1, 2, 3, 4] and found[-5:] == [155, 156, 157, 158, 159] and 20 < len(found) < 160
    assert "rows found no room in memory" in recorder.run.state()["facts"]["recording_error"]


def test_a_folder_that_is_deleted_stays_deleted(tmp_path, monkeypatch):
    impatient(monkeypatch)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    with (
        pytest.warns(UserWarning, match="while writing rows"),
        Recorder(model, optimizer, runs=tmp_path, quiet=True) as recorder,
    ):
        for i in range(6):
            if i == 2:
                shutil.rmtree(recorder.run.path)
            seen.append(one(model, optimizer).item())
            recorder.step(seen[-1])
            recorder.writer._flushed = -math.inf
    assert seen == losses(6) and not recorder.run.path.exists()


def test_another_run_in_the_place_of_the_folder_is_left_alone(tmp_path, monkeypatch):
    impatient(monkeypatch)
    other = record(tmp_path)
    before = {path.name: path.read_bytes() for path in other.run.path.iterdir() if path.is_file()}

    def between(recorder, i):
        recorder.writer._flushed = -math.inf
        if i == 2:
            shutil.rmtree(recorder.run.path)
        if i == 4:
            shutil.copytree(other.run.path, recorder.run.path)

    with pytest.warns(UserWarning):
        recorder = record(tmp_path, 8, between)
    kept = {path.name: path.read_bytes() for path in recorder.run.path.iterdir() if path.is_file()}
    assert {name: kept[name] for name in before if name.endswith("parquet")} == {
        name: before[name] for name in before if name.endswith("parquet")
    }


# -- inputs and outputs that cannot be looked at


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(tmp_path, layout):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(torch.nested.to_padded_tensor(self.a(x), 0.0))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(action="ignore"):  # "in prototype stage"
        batch = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
    with Recorder(model, optimizer, runs=tmp_path, quiet=True) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    assert len(rows(recorder)) == 2 and all(
        row["grad_norm"] > 0 for row in recorder.run.read("layers").to_pylist()
    )
    assert "recording_error" not in recorder.run.state()["facts"]


class Unreadable(nn.Module):
    """A model whose outputs raise at whoever looks at them."""

    class Output(dict):
        def values(self):
            raise ZeroDivisionError("looked at")

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.Output(y=self.layer(x))


def test_a_hook_that_fails_is_one_warning(tmp_path):
    model = Unreadable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(UserWarning, match="measuring the network: ZeroDivisionError: looked at") as told,
        Recorder(model, optimizer, runs=tmp_path, quiet=True) as recorder,
    ):
        for _ in range(4):
            loss = F.cross_entropy(model(X)["y"], Y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    assert len(told) == 1 and told[0].filename == __file__
    assert len(rows(recorder)) == 4 and all(
        row["grad_norm"] > 0 for row in recorder.run.read("layers").to_pylist()
    )


def test_a_fault_never_hides_the_loops_own_exception(tmp_path):
    """Also under -W error, as all tests here are."""
    model = Unreadable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    error = ZeroDivisionError("mine")
    with (
        pytest.raises(ZeroDivisionError) as caught,
        Recorder(model, optimizer, runs=tmp_path, quiet=True) as recorder,
    ):
        recorder.meter.__exit__ = recorder.meter.collect = recorder.writer.compact = lambda *_: 1 / 0
        raise error
    del recorder.meter.__exit__
    recorder.meter.__exit__()
    assert caught.value is error and error.__context__ is None
    state = recorder.run.state()
    assert (
        state["status"] == "failed"
        and state["error"] == "ZeroDivisionError: mine"
        and "recording_error" in state["facts"]
    )


# -- processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_child_leaves_its_parents_run_alone(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, runs=tmp_path, quiet=True) as recorder:
        recorder.step(one(model, optimizer))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                recorder.step(one(model, optimizer))
                recorder.validate(accuracy=0.5)
                recorder.__exit__(None, None, None)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert recorder.run.state()["status"] == "running"
        recorder.step(one(model, optimizer))
    assert [row["step"] for row in rows(recorder)] == [0, 1] and recorder.run.count("epochs") == 0


RANK = """
import sys, torch, torch.nn as nn, torch.distributed as dist
from initscope import Recorder
rank, runs, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
recorder = Recorder(model, optimizer, runs=runs, quiet=True)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
with recorder:
    for _ in range(3):
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        optimizer.step()
        recorder.step(loss)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.timeout(600)
def test_a_recorder_made_before_the_process_group(tmp_path, python):
    """Two processes that meet after the Recorder was made are one run; nothing in their environment says
    so.
    """
    both = [python(RANK, rank, tmp_path / "runs", tmp_path / "meet") for rank in (0, 1)]
    for process in both:
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
    (info,) = Runs(tmp_path / "runs").list()
    assert info.status == "finished" and info.state["step"] == 3


def test_torchruns_environment_says_who_records(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, runs in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        with Recorder(net(), runs=tmp_path, quiet=True):
            pass
        assert len(Runs(tmp_path).list()) == runs


# -- left open


def hooks(model: nn.Module) -> int:
    return sum(len(p._post_accumulate_grad_hooks or {}) for p in model.parameters())


def test_a_recorder_that_nobody_holds_ends_its_run(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        recorder = Recorder(model, optimizer, runs=tmp_path, quiet=True).__enter__()
        recorder.step(one(model, optimizer))
        del recorder
        gc.collect()
    assert [info.status for info in Runs(tmp_path).list()] == ["stopped"] * 3 and hooks(model) == 0
    assert all(len(Runs(tmp_path).get(run).read("steps")) == 1 for run in Runs(tmp_path).ids())


LEFT = """
import sys, torch
from initscope import Recorder
model = torch.nn.Linear(2, 2)
recorder = Recorder(model, runs=sys.argv[1], quiet=True).__enter__()
model(torch.ones(1, 2)).sum().backward()
recorder.step(1.0)
if sys.argv[2] == "fails":
    raise ValueError("mine")
"""


def test_a_process_that_ends_in_between_closes_its_run(tmp_path, python):
    for how, status, error in (("fails", "failed", "ValueError: mine"), ("ends", "stopped", None)):
        process = python(LEFT, tmp_path / how, how)
        process.communicate(timeout=300)
        (info,) = Runs(tmp_path / how).list()
        assert (info.status, info.error, info.state["step"]) == (status, error, 1)


def test_a_second_interrupt_while_the_last_rows_are_written(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), Recorder(model, optimizer, runs=tmp_path, quiet=True) as recorder:
        recorder.step(one(model, optimizer))
        recorder.writer.compact = interrupted
    assert recorder.run.state()["status"] == "stopped"


# -- systems without POSIX


NO_POSIX = """
import builtins, os, sys
real = builtins.__import__
def guarded(name, *rest, **named):
    if name in ("fcntl", "resource", "pwd", "grp", "termios"):
        raise ImportError(f"No module named {name!r}", name=name)
    return real(name, *rest, **named)
import torch, pyarrow, pyarrow.parquet, psutil, numpy, importlib.metadata  # what other people's packages do is theirs
sys.modules.pop("fcntl", None)
builtins.__import__ = guarded
for flag in ("O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK", "fork", "register_at_fork"):
    delattr(os, flag)
import warnings; warnings.simplefilter("ignore")  # filelock says that it has no flock
import initscope, initscope.store, initscope.scheduling.launcher
model = torch.nn.Linear(2, 2)
with initscope.Recorder(model, runs=sys.argv[1], quiet=True, config={"width": 2}) as recorder:
    model(torch.ones(3, 2)).sum().backward()
    recorder.step(1.0)
    recorder.log({"mine": 2})
    recorder.validate(loss=2.0)
info = initscope.runs(sys.argv[1]).list()[0]
print(info.status, info.error, recorder.run.read("layers").num_rows, recorder.run.log_tail() == "", initscope.diagnose(recorder.run).cause)
"""  # noqa: E501


@pytest.mark.timeout(300)
def test_recording_and_reading_need_nothing_that_only_posix_has(tmp_path, python):
    out, err = python(NO_POSIX, tmp_path).communicate(timeout=280)
    assert out.split()[:4] == ["finished", "None", "1", "True"], err


def test_locks_that_lie_beside_the_runs(tmp_path, monkeypatch):
    """As on Windows, where a folder with an open file in it cannot be renamed."""
    from initscope.errors import RunNotFound, RunStateError
    from initscope.store import claimed, locks

    monkeypatch.setattr(locks, "BESIDE", True)
    run = record(tmp_path).run
    with claimed(run), pytest.raises(RunStateError, match="another process is working on run"), claimed(run):
        raise AssertionError("not reached")
    run.edit(name="new")
    assert Runs(tmp_path).list()[0].name == "new" and not (run.path / "worker.lock").exists()
    run.delete()
    assert not Runs(tmp_path).list() and not run.path.exists()
    with pytest.raises(RunNotFound), claimed(run):
        raise AssertionError("not reached")


def test_settings_as_json_can_hold_them(tmp_path):
    import argparse
    import dataclasses

    @dataclasses.dataclass
    class Settings:
        lr: float = 0.1
        betas: tuple = (0.9, np.float64(0.99))

    for given, kept in (
        (
            {
                "lr": np.float32(0.5),
                "n": np.int64(3),
                4: Path("a"),
                "f": F.relu,
                "t": torch.tensor([1, 2]),
                "nan": math.nan,
                "d": torch.float32,
            },
            {
                "lr": 0.5,
                "n": 3,
                "4": "a",
                "f": "torch.nn.functional.relu",
                "t": [1, 2],
                "nan": "nan",
                "d": "torch.float32",
            },
        ),
        (Settings(), {"lr": 0.1, "betas": [0.9, 0.99]}),
        (argparse.Namespace(a=None, b=[True, {"c": "x"}]), {"a": None, "b": [True, {"c": "x"}]}),
    ):
        with Recorder(net(), runs=tmp_path, quiet=True, config=given) as recorder:
            pass
        assert Runs(tmp_path).info(recorder.run.id).config["own"] == kept
        assert json.loads((recorder.run.path / "config.json").read_text())["config"]["own"] == kept
    circle: dict = {}
    circle["self"] = circle
    for given, why in (
        ([1], "must be a mapping"),
        ({"x": object()}, r"config\['x'\] must be a number.*not object"),
        (circle, "nested at most"),
    ):
        with pytest.raises(ConfigError, match=why):
            Recorder(net(), config=given)


def test_warnings_are_shown_where_the_loop_is(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        record(tmp_path, accuracy=lambda i: 50.0)
    assert [one.filename for one in told] == [__file__]


def test_a_loss_that_was_not_told_is_no_divergence_to_readers(tmp_path):
    from initscope.diagnosis.diagnose import diagnose
    from initscope_dashboard.live import live_rows

    with pytest.warns(UserWarning, match="reading the loss"):
        recorder = record(
            tmp_path, 60, loss=lambda x, left=iter(range(60)): x if next(left) % 3 == 0 else None
        )
    diagnosis, run = diagnose(recorder.run), recorder.run
    assert diagnosis.outcome != "diverged" and "loss_diverged" not in {
        finding.id for finding in diagnosis.findings
    }
    shown = live_rows.progress(run.state(), run.read("steps"), run.info().config)
    assert (
        shown["broken"] is False
        and shown["loss"] is not None
        and live_rows.step_rows(run.read("steps"))["loss"][1] is None
    )


def test_a_recorder_that_was_dropped_unclosed_watches_no_scaler(tmp_path):
    before = torch.amp.GradScaler.scale
    model = nn.Linear(2, 2)
    recorder = Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), runs=tmp_path, quiet=True)
    recorder.__enter__()
    assert torch.amp.GradScaler.scale is not before
    del recorder, model
    gc.collect()
    assert torch.amp.GradScaler.scale is before
