"""Mistakes in the two lines: each is met with one clear line that says what to do, and nothing half-written
is left.
"""

from __future__ import annotations

import copy
import io
import os
import signal
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initscope.diagnosis.diagnose import diagnose
from initscope.errors import ConfigError, InitScopeError, RecordingError, RunFolderError
from initscope.recording.recorder import Recorder
from initscope.store import Runs

X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def train(recorder: Recorder, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        recorder.step(loss)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def one_line(error: BaseException) -> bool:
    return isinstance(error, InitScopeError) and len(str(error).splitlines()) == 1 and len(str(error)) < 300


def refused(tmp_path, kind: type, message: str, make) -> None:
    with pytest.raises(kind, match=message) as caught:
        make()
    assert one_line(caught.value)
    assert not list(tmp_path.iterdir()), "no run was begun"


def test_models_that_cannot_be_recorded(tmp_path):
    frozen = net().requires_grad_(False)
    refused(
        tmp_path,
        ConfigError,
        "nothing to train: every parameter .* requires_grad=False",
        lambda: Recorder(frozen, runs=tmp_path),
    )
    refused(
        tmp_path, ConfigError, "no layer with weights, only ReLU", lambda: Recorder(nn.ReLU(), runs=tmp_path)
    )
    meta = net().to("meta")
    refused(
        tmp_path,
        RecordingError,
        "weights of 0 are on device meta.* move the model",
        lambda: Recorder(meta, runs=tmp_path),
    )
    refused(
        tmp_path, ConfigError, "watches a torch.nn.Module, not list", lambda: Recorder([net()], runs=tmp_path)
    )
    model = net()
    refused(
        tmp_path,
        ConfigError,
        "optimizer must be .* not generator",
        lambda: Recorder(model, model.parameters(), runs=tmp_path),
    )
    refused(
        tmp_path,
        ConfigError,
        "no layer's name matches 'conv.'; there are 0, 2",
        lambda: Recorder(model, runs=tmp_path, layers="conv*"),
    )


def test_losses_that_are_no_number(tmp_path):
    model = net()
    for loss, why in (
        (torch.ones(6), r"one real number, not a torch.float32 tensor of shape \(6,\); give its mean"),
        (torch.tensor(1j), "not a torch.complex64 tensor"),
        (None, "or a tensor of one, not NoneType"),
    ):
        with (
            pytest.raises(RecordingError, match=why) as caught,
            Recorder(model, sgd(model), runs=tmp_path) as recorder,
        ):
            recorder.step(loss)
        assert one_line(caught.value) and recorder.run.state()["status"] == "failed"
    with (
        pytest.raises(RecordingError, match="takes the accuracy as one real number"),
        Recorder(model, runs=tmp_path) as recorder,
    ):
        recorder.step(1.0, "90 %")


def test_a_loop_that_leaves_no_gradient_is_told_once(tmp_path):
    model = net()
    with warnings.catch_warnings(record=True) as told, Recorder(model, runs=tmp_path) as recorder:
        warnings.simplefilter("always")
        for _ in range(2):
            torch.func.grad(lambda w: F.cross_entropy(torch.func.functional_call(model, w, (X,)), Y))(
                dict(model.named_parameters())
            )
            recorder.step(1.0)
    (only,) = told
    assert "finds no gradient" in str(only.message) and only.filename == __file__


def test_a_whole_step_that_calls_no_hook_is_told(tmp_path):
    """As a compiled function around forward, backward and update does."""
    model = net()
    with (
        pytest.warns(UserWarning, match="neither backward.* nor optimizer.step.* was heard of"),
        Recorder(model, sgd(model), runs=tmp_path) as recorder,
    ):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        recorder.step(1.0)
    assert "calls no hooks" in recorder.run.state()["facts"]["not_measured"]


def test_a_time_limit_is_the_loops_own(tmp_path):
    """What a signal's handler raises arrives, also where it strikes while the Recorder is at work."""

    class Loss(float):
        def __float__(self):
            signal.raise_signal(signal.SIGINT)
            return 1.0

    class Late(Exception):
        pass

    def late(*_):
        raise Late

    model = net()
    before = signal.signal(signal.SIGINT, late)
    try:
        with Recorder(model, sgd(model), runs=tmp_path) as recorder:
            train(recorder, model, recorder.meter.optimizers[0])
            with pytest.raises(Late):
                recorder.step(Loss())
            train(recorder, model, recorder.meter.optimizers[0])
    finally:
        signal.signal(signal.SIGINT, before)
    state = recorder.run.state()
    assert state["status"] == "finished" and state["step"] == 2 and "recording_error" not in state["facts"]


@pytest.mark.parametrize("closed", [True, False])
def test_standard_error_that_nobody_reads(tmp_path, monkeypatch, closed):
    """Closed, or not there as in a program without a console: the log says what would have been told."""
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    monkeypatch.setattr(warnings, "showwarning", lambda *_: stream.write("" if closed else None))
    model = net()
    with Recorder(model, sgd(model), runs=tmp_path) as recorder:
        train(recorder, model, recorder.meter.optimizers[0])
        recorder.epoch(-1) if closed else None
    state = recorder.run.state()
    assert state["status"] == "finished" and state["step"] == 1
    log = recorder.run.path / "log.txt"
    assert not closed or "epochs are counted from 0" in log.read_text()


def test_an_optimizer_of_another_model_is_told_and_diagnosed(tmp_path):
    """A warning, not an error: the loop is left as it is, and the run's diagnosis will say the same."""
    model = net()
    with pytest.warns(
        UserWarning, match="optimizer holds none of the model's parameters, so nothing will be learned"
    ):
        recorder = Recorder(model, sgd(copy.deepcopy(model)), runs=tmp_path)
    with recorder:
        train(recorder, model, recorder.meter.optimizers[0])
    assert recorder.run.state()["facts"]["unoptimized"] == ["0", "2"]
    with pytest.warns(UserWarning, match=r"none of the model's parameters \(devices: cpu, meta\)"):
        Recorder(model, sgd(net().to("meta")), runs=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recorder(model, [sgd(net()), sgd(model)], runs=tmp_path)  # one of several


def test_a_missing_backward_is_no_wrong_order(tmp_path):
    model = net()
    optimizer = sgd(model)
    with (
        pytest.warns(UserWarning, match=r"is loss.backward\(\) missing"),
        Recorder(model, optimizer, runs=tmp_path) as recorder,
    ):
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            optimizer.step()
            recorder.step(loss)
    assert recorder.run.state()["status"] == "finished"
    found = diagnose(recorder.run)
    assert found.cause == "not_updating"
    assert any("loss.backward() is not" in finding.text for finding in found.findings)


def test_step_before_backward(tmp_path):
    model = net()
    optimizer = sgd(model)
    recorder = Recorder(model, optimizer, runs=tmp_path)
    with (
        pytest.raises(
            RecordingError, match=r"called before loss.backward\(\).* call it after optimizer.step\(\)"
        ) as caught,
        recorder,
    ):
        recorder.step(F.cross_entropy(model(X), Y))
    assert one_line(caught.value)
    assert (
        recorder.run.state()["status"] == "failed" and "before loss.backward" in recorder.run.state()["error"]
    )


def test_step_before_the_update(tmp_path):
    """The gradient is right; an update that is seen too late is left out and told once."""
    model = net()
    optimizer = sgd(model)
    with warnings.catch_warnings(record=True) as told, Recorder(model, optimizer, runs=tmp_path) as recorder:
        warnings.simplefilter("always")
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            expected, before = model[0].weight.grad.norm().item(), model[0].weight.norm().item()
            recorder.step(loss)
            optimizer.step()
    rows = [row for row in recorder.run.read("layers").to_pylist() if row["layer"] == "0"]
    assert [row["update_ratio"] for row in rows] == [None] * 4
    assert rows[-1]["grad_norm"] == pytest.approx(expected) and rows[-1]["weight_norm"] == pytest.approx(
        before
    )
    (only,) = [str(w.message) for w in told]
    assert "before optimizer.step()" in only and told[0].filename == __file__


def test_step_outside_of_the_block(tmp_path):
    model = net()
    recorder = Recorder(model, sgd(model), runs=tmp_path)
    with pytest.raises(
        RecordingError, match=r"before the `with Recorder.* block began; call it inside"
    ) as caught:
        recorder.step(1.0)
    assert one_line(caught.value)
    with recorder:
        train(recorder, model, recorder.meter.optimizers[0])
    with pytest.raises(RecordingError, match=r"after the `with Recorder.* block had ended"):
        recorder.step(1.0)
    assert len(recorder.run.read("steps")) == 1


def test_a_recorder_used_twice(tmp_path):
    model = net()
    recorder = Recorder(model, sgd(model), runs=tmp_path)
    with recorder:
        train(recorder, model, recorder.meter.optimizers[0])
    with pytest.raises(RecordingError, match=r"records one run, .* make a new Recorder") as caught, recorder:
        raise AssertionError("not reached")
    assert one_line(caught.value)
    assert recorder.run.state()["status"] == "finished" and len(Runs(tmp_path).list()) == 1


def test_two_runs_of_one_name_are_two_runs_and_a_group(tmp_path):
    for _ in range(2):
        model = net()
        with Recorder(model, sgd(model), name="my net", runs=tmp_path) as recorder:
            train(recorder, model, recorder.meter.optimizers[0])
    infos = Runs(tmp_path).list()
    assert [info.name for info in infos] == ["my net"] * 2 and len({info.run for info in infos}) == 2
    assert {run.id for run in Runs(tmp_path).select("name=my net")} == {info.run for info in infos}


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(RunFolderError, match=r"cannot write a run into .*runs: ") as caught:
        Recorder(net(), runs=tmp_path / "runs").__enter__()
    assert one_line(caught.value) and (tmp_path / "runs").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="drops privileges in a child process")
def test_a_folder_that_cannot_be_written(tmp_path):
    """In a child without root's rights."""
    folder = tmp_path / "runs"
    folder.mkdir()
    os.chmod(folder, 0o555)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "nothing"
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            Recorder(net(), runs=folder).__enter__()
        except BaseException as error:  # whatever it is, the child must not go on as a second pytest
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(tell, answer.encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(tell)
    answer = os.read(told, 1000).decode()
    os.close(told)
    if answer == "OSError: [Errno 22] Invalid argument":
        pytest.skip("no second user to become: a namespace that knows root alone")
    assert answer.startswith(f"RunFolderError: cannot write a run into {folder}: Permission denied; ")
    assert not list(folder.iterdir())


def test_leaving_by_sys_exit(tmp_path):
    for code, status in ((0, "stopped"), (3, "failed")):
        model = net()
        with pytest.raises(SystemExit), Recorder(model, sgd(model), runs=tmp_path) as recorder:
            sys.exit(code)
        assert recorder.run.state()["status"] == status
