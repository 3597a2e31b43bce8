"""The two lines in anybody's loop: what they write, what they leave alone, and what happens when the loop
breaks.
"""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initscope.errors import ConfigError
from initscope.recording import recorder as recording
from initscope.recording.recorder import Recorder
from initscope.recording.rows import CURVE_POINTS
from initscope.schema import EPOCHS, LAYERS, STEPS, Status
from initscope.store import Runs

pytestmark = pytest.mark.filterwarnings("error")  # a warning in somebody's loop is a change, too


def net(**options) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 36, 5, **options)
    )


def loader(batches: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(8, 1, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(batches)
    ]


loss_fn = nn.CrossEntropyLoss()


def the_contract(model, optimizer, runs, **options) -> Recorder:
    """What DESIGN.md promises, statement for statement."""
    with Recorder(model, optimizer, name="my net", runs=runs, **options) as recorder:
        for inputs, targets in loader():
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    return recorder


def plain(model, optimizer) -> list[float]:
    found = []
    for inputs, targets in loader():
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def hooks_of(model: nn.Module, optimizer) -> int:
    count = sum(
        len(h)
        for m in model.modules()
        for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    )
    count += sum(
        len(p._backward_hooks or ()) + len(getattr(p, "_post_accumulate_grad_hooks", None) or ())
        for p in model.parameters()
    )
    return count + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_two_lines_write_a_whole_run(tmp_path):
    model = net()
    torch.manual_seed(5)
    made = the_contract(model, torch.optim.SGD(model.parameters(), lr=0.1), str(tmp_path / "my runs"))
    run = made.run
    for table, columns in (("steps", STEPS), ("epochs", EPOCHS), ("layers", LAYERS)):
        frame = pd.read_parquet(run.path / f"{table}.parquet")
        assert list(frame.columns) == [column.name for column in columns]
    steps, layers = pd.read_parquet(run.path / "steps.parquet"), frame
    assert (
        list(steps["step"]) == list(range(6))
        and steps["accuracy"].isna().all()
        and set(steps["learning_rate"]) == {0.1}
    )
    assert (
        list(layers["layer"]) == ["0", "4"] * 6
        and list(layers["depth"]) == [0, 1] * 6
        and list(layers["kind"][:2]) == ["conv2d", "linear"]
    )
    assert not layers.drop(columns=["dead_fraction", "stable_rank"]).isna().any().any()
    assert not layers.loc[layers.step == layers.step.min(), "stable_rank"].isna().any()

    info = Runs(tmp_path / "my runs").info(run.id)
    assert (info.name, info.status, info.outcome, info.init, info.error) == (
        "my net",
        "finished",
        "undecided",
        "custom",
        None,
    )
    assert info.loss == pytest.approx(steps["loss"].iloc[-1]) and info.accuracy is None
    assert info.state["step"] == 6 and len(info.state["curve"]) == 6


def test_recording_changes_no_bit_and_leaves_nothing(tmp_path):
    ends, curves = [], []
    for watched in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        torch.manual_seed(7)
        curves.append(
            the_contract(model, optimizer, tmp_path).run.read("steps")["loss"].to_pylist()
            if watched
            else plain(model, optimizer)
        )
        ends.append([*model.state_dict().values(), torch.get_rng_state()])
        assert hooks_of(model, optimizer) == 0 and model.training
        pickle.loads(pickle.dumps((model, optimizer.state_dict())))
    assert curves[0] == curves[1] and all(map(torch.equal, *ends))


def test_validation_between_steps_is_not_recorded(tmp_path):
    """Passes over the validation set, with and without eval(), and passes of another model change no row."""
    rows = []
    for disturbed in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(model, optimizer, runs=tmp_path) as recorder:
            for i, (inputs, targets) in enumerate(loader()):
                torch.manual_seed(i)
                loss = loss_fn(model(inputs), targets)
                if disturbed:
                    with torch.no_grad():
                        model(1000 * inputs)
                    model.eval()
                    model(inputs)
                    model.train()
                    copy.deepcopy(net())(inputs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.step(loss, 0.25, epoch=i // 3)
        rows.append(recorder.run.read("layers").to_pandas())
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    steps = recorder.run.read("steps").to_pandas()
    assert list(steps["epoch"]) == [0, 0, 0, 1, 1, 1] and set(steps["accuracy"]) == {0.25}


def test_every_so_many_steps(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = the_contract(model, optimizer, tmp_path, every=4)
    assert (
        recorder.run.read("steps")["step"].to_pylist()
        == [0, 4]
        == recorder.run.read("layers")["step"].unique().to_pylist()
    )
    assert recorder.run.state()["step"] == 6, "progress is told at every step"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("first\nsecond \ud800"), KeyboardInterrupt(), torch.OutOfMemoryError("gone")]
)
def test_an_exception_ends_the_run_and_arrives_unchanged(tmp_path, error):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(type(error)) as caught, Recorder(model, optimizer, runs=tmp_path) as recorder:
        for i, (inputs, targets) in enumerate(loader()):
            if i == 3:
                raise error
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    assert caught.value is error and caught.value.__cause__ is None and caught.value.__context__ is None
    assert hooks_of(model, optimizer) == 0
    state = recorder.run.state()
    if isinstance(error, KeyboardInterrupt):
        assert (state["status"], state["error"]) == (Status.STOPPED, None)
    else:
        assert state["status"] == Status.FAILED and state["error"].startswith(type(error).__name__ + ": ")
        assert len(state["error"].splitlines()) == 1
    assert len(pd.read_parquet(recorder.run.path / "layers.parquet")) == 6, "the rows up to then"


def test_a_full_disk_does_not_hide_the_loops_own_error(tmp_path, monkeypatch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), Recorder(model, optimizer, runs=tmp_path) as recorder:
        monkeypatch.setattr(
            recorder.writer, "compact", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        raise ZeroDivisionError
    assert hooks_of(model, optimizer) == 0


def test_when_the_start_is_interrupted_no_hook_is_left(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "weight_facts", interrupted)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), Recorder(model, optimizer, runs=tmp_path):
        raise AssertionError("not reached")
    assert hooks_of(model, optimizer) == 0
    assert [info.status for info in Runs(tmp_path).list()] == ["stopped"]


def test_a_model_with_nothing_to_record_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no layer with weights, only .*ReLU"):
        Recorder(nn.Sequential(nn.ReLU()), runs=tmp_path)
    assert not list(tmp_path.iterdir()), "no run folder was made"


def test_a_non_finite_loss_is_an_outcome(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        for value in (1.0, math.nan, 2.0, math.inf):
            loss = loss_fn(model(loader(1)[0][0]), loader(1)[0][1]) * value
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    state = recorder.run.state()
    assert (state["status"], state["outcome"]) == (Status.FINISHED, "diverged")
    assert Runs(tmp_path).list()[0].outcome == "diverged" and len(recorder.run.read("steps")) == 4


def test_odd_loops(tmp_path):
    """No optimizer, a loss that is a plain number, float64 weights, a network of no name, nothing recorded at
    all.
    """
    model = nn.Linear(3, 2).double()
    with Recorder(model, runs=tmp_path) as recorder:
        F.cross_entropy(model(torch.rand(4, 3).double()), torch.tensor([0, 1, 0, 1])).backward()
        recorder.step(0.7)
    row = recorder.run.read("layers").to_pylist()[0]
    assert row["layer"] == "model" and row["update_ratio"] is None and row["grad_norm"] > 0
    assert recorder.run.read("steps").to_pylist()[0]["loss"] == pytest.approx(0.7)

    with Recorder(net(), runs=tmp_path) as recorder:
        pass
    assert recorder.run.state()["status"] == Status.FINISHED and len(recorder.run.read("layers")) == 0
    assert list(pd.read_parquet(recorder.run.path / "layers.parquet").columns) == [
        column.name for column in LAYERS
    ]


def test_names_of_layers_and_runs_are_kept_as_they_are(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("свёртка 层", nn.Linear(3, 3))
            self.inner = nn.ModuleDict({"a/b": nn.Linear(3, 2)})

        def forward(self, x):
            return self.inner["a/b"](self.get_submodule("свёртка 层")(x))

    model = Odd()
    with Recorder(model, name="名前 \ud800", tags=("tag, with comma",), runs=tmp_path) as recorder:
        loss = model(torch.rand(4, 3)).sum()
        loss.backward()
        recorder.step(loss)
    assert recorder.run.read("layers")["layer"].to_pylist() == ["свёртка 层", "inner.a/b"]
    assert Runs(tmp_path).list()[0].name.startswith("名前")


def test_the_sparkline_is_short_and_covers_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.warns(UserWarning, match="finds no gradient"), Recorder(model, runs=tmp_path) as recorder:
        for i in range(1000):
            recorder.step(float(i))
    curve = recorder.run.state()["curve"]
    assert CURVE_POINTS / 2 <= len(curve) <= CURVE_POINTS
    assert curve[0] == 0 and curve[-1] > 900 and len({b - a for a, b in pairwise(curve)}) == 1


@pytest.mark.parametrize("steps", [1, 40, 41, 137, 1000])
def test_the_sparkline_ends_where_the_loss_is_no_number(tmp_path, steps):
    model = nn.Linear(1, 1)
    with pytest.warns(UserWarning, match="finds no gradient"), Recorder(model, runs=tmp_path) as recorder:
        for i in range(steps):
            recorder.step(float(i))
        for _ in range(3):
            recorder.step(math.nan)
    curve = recorder.run.state()["curve"]
    assert len(curve) <= CURVE_POINTS and curve[0] == 0 and math.isnan(curve[-1])
    assert sum(map(math.isnan, curve)) <= 3


def test_rows_arrive_while_the_loop_runs(tmp_path):
    """At least once a second: here the writer's clock is turned by hand."""
    now = [0.0]
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        recorder.writer._clock = lambda: now[0]
        recorder.writer._flushed = 0.0
        for inputs, targets in loader():
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
            now[0] += 0.3
            on_disk = Runs(tmp_path).list()[0]
            if now[0] > 1:
                assert len(recorder.run.read("steps")) >= now[0] / 0.3 - 3
                assert on_disk.status == "running" and on_disk.loss is not None
