"""What the Recorder offers beside the two lines: validation, numbers of one's own, a stop that is heard,
facts, and a card.
"""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import initscope
from initscope.errors import RecordingError
from initscope.recording.card import sparkline, weakest_line
from initscope.recording.recorder import IGNORED_AFTER, Recorder
from initscope.store import Runs

pytestmark = pytest.mark.filterwarnings("error")
X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


class Loop:
    def __init__(self, runs, make=torch.optim.SGD, settings=None, **options):
        self.model = net()
        self.optimizer = make(self.model.parameters(), **(settings or {"lr": 0.1}))
        self.recorder = Recorder(self.model, self.optimizer, runs=runs, quiet=True, **options)

    def step(self, factor: float = 1.0, **told) -> bool:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(X), Y) * factor
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()
        return self.recorder.step(loss, **told)


def test_validation_with_the_training_since_the_last_one(tmp_path):
    loop, means = Loop(tmp_path), []
    with loop.recorder as recorder:
        for k in range(3):
            means.append([])
            for i in range(4):
                assert loop.step(accuracy=0.25 * i) is True
                means[-1].append(loop.loss)
            recorder.validate(loss=torch.tensor(1.5 - k), accuracy=(0.1, 0.5, None)[k])
    found = recorder.run.read("epochs").to_pylist()
    assert [row["epoch"] for row in found] == [0, 1, 2] and [row["train_accuracy"] for row in found] == [
        0.375
    ] * 3
    assert [row["train_loss"] for row in found] == pytest.approx([sum(part) / 4 for part in means])
    assert [row["val_loss"] for row in found] == [1.5, 0.5, -0.5] and [
        row["val_accuracy"] for row in found[:2]
    ] == [0.1, 0.5]
    assert math.isnan(found[2]["val_accuracy"])
    state = Runs(tmp_path).list()[0].state
    assert state["val_loss"] == -0.5 and state["train_loss"] == pytest.approx(found[2]["train_loss"])


def test_validation_follows_the_loops_own_epochs(tmp_path):
    loop = Loop(tmp_path)
    with loop.recorder as recorder:
        for epoch in (3, 4):
            loop.step(epoch=epoch)
            recorder.validate(accuracy=0.5)
        recorder.validate(accuracy=0.5, epoch=9.0)
    assert recorder.run.read("epochs")["epoch"].to_pylist() == [3, 4, 9]


def test_an_epochs_row_of_what_is_known(tmp_path):
    loop = Loop(tmp_path)
    with (
        loop.recorder as recorder,
        pytest.warns(UserWarning, match="an accuracy of 90 is taken for a percentage") as told,
    ):
        loop.step()
        recorder.epoch(0.0, 1.0, 90.0, 2.0, torch.tensor(80.0))
        loop.step()
        recorder.epoch(None, val_loss=1.0)
    first, second = recorder.run.read("epochs").to_pylist()
    assert len(told) == 1 and (
        first["epoch"],
        first["train_accuracy"],
        first["val_accuracy"],
        first["val_loss"],
    ) == (0, 0.9, 0.8, 2.0)
    assert (
        second["epoch"] == 1
        and second["train_loss"] == pytest.approx(loop.loss)
        and math.isnan(second["val_accuracy"])
    )
    assert Runs(tmp_path).list()[0].error is None
    with (
        pytest.raises(RecordingError, match=r"recorder.validate\(\) takes the val_loss as one real number"),
        Loop(tmp_path).recorder as other,
    ):
        other.validate(loss="low")
    with pytest.raises(RecordingError, match=r"recorder.validate\(\) was called after the `with"):
        other.validate(loss=1.0)


def test_numbers_of_ones_own(tmp_path):
    loop = Loop(tmp_path)
    with loop.recorder as recorder:
        recorder.log({"before": 1})
        for i in range(3):
            loop.step()
            recorder.log({"my f1": torch.tensor(i / 4), "grad clip": i})
        with pytest.warns(UserWarning, match="reading what recorder.log"):
            recorder.log({"text": "x"})
    table = pd.read_parquet(recorder.run.path / "metrics.parquet").pivot_table(
        index="step", columns="name", values="value"
    )
    assert (
        table["my f1"].tolist() == [0.0, 0.25, 0.5]
        and table["grad clip"].tolist() == [0, 1, 2]
        and table["before"].dropna().tolist() == [1]
    )
    assert recorder.run.count("metrics") == 7
    with (
        pytest.raises(RecordingError, match=r"recorder.log\(\) takes a mapping"),
        Loop(tmp_path).recorder as other,
    ):
        other.log([1.0])


def test_a_stop_that_the_loop_hears(tmp_path):
    loop, steps = Loop(tmp_path), 0
    with loop.recorder as recorder:
        loop.step()
        recorder.run.request_stop()
        assert recorder.run.state()["status"] == "stopping"
        recorder.writer._flushed = -math.inf
        while steps < 100 and loop.step():
            steps += 1
    state = recorder.run.state()
    assert steps == 0 and (state["status"], state["error"], state["step"]) == ("stopped", None, 2)
    assert "stop_ignored" not in state["facts"] and not (recorder.run.path / "stop").exists()


def test_a_stop_as_an_exception(tmp_path):
    loop = Loop(tmp_path, raise_on_stop=True)
    with pytest.raises(initscope.Stopped, match="asked to stop at step 1"), loop.recorder as recorder:
        recorder.run.request_stop()
        loop.step()
    assert recorder.run.state()["status"] == "stopped" and recorder.run.state()["error"] is None


def test_a_loop_that_does_not_listen_is_told_so_and_whoever_looks(tmp_path):
    loop = Loop(tmp_path)
    with (
        pytest.warns(
            UserWarning, match="asked this run to stop, and the loop goes on: write `if not recorder.step"
        ),
        loop.recorder as recorder,
    ):
        recorder.run.request_stop()
        for _ in range(IGNORED_AFTER + 1):
            assert loop.step() is False
        on_disk = json.loads((recorder.run.path / "status.json").read_text())
        assert (
            on_disk["facts"]["stop_ignored"] == {"asked_at_step": 1}
            and recorder.run.state()["status"] == "stopping"
        )
    assert recorder.run.state()["status"] == "finished", "it went on to its own end"


def test_the_line_that_says_where_the_run_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Recorder(net(), runs="my runs") as recorder:
        pass
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err
        == f"initscope: recording into {tmp_path}/my runs/{recorder.run.id}; to see it: initscope ui "
        f"--runs '{tmp_path}/my runs'\n"
    )
    with Recorder(net(), runs="my runs", quiet=True):
        pass
    assert capsys.readouterr().err == ""


def test_where_a_nan_came_from(tmp_path):
    for poison, tensor, layer in (
        ("weight", "weight", "2"),
        ("input", "output", "0"),
        ("loss", "loss", None),
        ("gradient", "gradient", "2"),
    ):
        loop = Loop(tmp_path)
        with loop.recorder as recorder:
            loop.step()
            if poison == "weight":
                loop.model[2].weight.data[0, 0] = math.inf
            batch = X * math.nan if poison == "input" else X
            for _ in range(2):
                loop.optimizer.zero_grad()
                logits = loop.model(batch)
                if poison == "gradient":
                    logits.register_hook(lambda g: g * math.inf)
                loss = F.cross_entropy(logits, Y) * (math.nan if poison == "loss" else 1.0)
                loss.backward()
                if poison == "loss":
                    loop.optimizer.zero_grad()
                loop.optimizer.step()
                recorder.step(loss)
        fact = recorder.run.state()["facts"]["first_nonfinite"]
        assert (fact["step"], fact["tensor"], fact["layer"]) == (1, tensor, layer), poison


def test_a_gradient_that_overflows_and_recovers_is_no_finding(tmp_path):
    loop = Loop(tmp_path)
    with loop.recorder as recorder:
        for i in range(3):
            loop.optimizer.zero_grad()
            logits = loop.model(X)
            if i == 1:
                logits.register_hook(lambda g: g * math.inf)
            loss = F.cross_entropy(logits, Y)
            loss.backward()
            if i != 1:
                loop.optimizer.step()
            recorder.step(loss)
    assert (
        recorder.run.state()["facts"]["first_nonfinite"] is None
        and recorder.run.state()["outcome"] == "undecided"
    )


def test_facts_by_which_runs_are_told_apart(tmp_path):
    loop = Loop(tmp_path, torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1})
    with loop.recorder as recorder:
        loop.step()
    facts = recorder.run.state()["facts"]
    (settings,) = facts["optimizers"]
    assert (
        settings["class"] == "AdamW"
        and settings["lr"] == 0.01
        and settings["betas"] == [0.8, 0.9]
        and settings["weight_decay"] == 0.1
    )
    assert "params" not in settings and facts["loss"]["function"] == "NllLoss"
    assert (facts["batch_size"], facts["input_shape"], facts["parameters"]) == (12, [4], 43)
    model = net()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": model[2].parameters(), "lr": torch.tensor(0.25)},
    ]
    with Recorder(model, torch.optim.SGD(groups, momentum=0.9), runs=tmp_path, quiet=True) as recorder:
        pass
    (settings,) = recorder.run.state()["facts"]["optimizers"]
    assert settings["lr"] == [0.1, 0.25] and settings["momentum"] == 0.9


def test_the_card(tmp_path):
    loop = Loop(tmp_path, name="<my> net")
    assert "has not begun" in loop.recorder._repr_html_()
    with loop.recorder as recorder:
        loop.step()
        loop.model[0].weight.register_hook(lambda g: g * 1e-6)
        for _ in range(3):
            loop.step()
        recorder.sync()
        card = recorder._repr_html_()
        assert (
            "running, step 4" in card
            and "&lt;my&gt; net" in card
            and "<polyline" in card
            and f"Loss {loop.loss:.4g}" in card
        )
        assert (
            "Weakest gradient: layer 0 (Linear " in card
            and f"diagnosis?run={recorder.run.id}" in card
            and f"initscope ui --runs {tmp_path}" in card
        )
    assert "finished after 4 steps: undecided" in recorder._repr_html_()
    assert (
        "not finite" in weakest_line((["a"], recorder.rows.measured[1][:, :1] * math.nan), {})
        and weakest_line(None, {}) == ""
    )
    assert (
        sparkline([3.0, 2.0, math.nan]).count("<path") == 1
        and sparkline([3.0, 2.0]).count("<path") == 0
        and sparkline([math.nan] * 3) == ""
    )
