"""What the recorder notes for the diagnosis, against what is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initscope.diagnosis.diagnose import diagnose
from initscope.recording.model_facts import backward_has_run, loss_facts, reaches, scales, units_identical
from initscope.recording.recorder import Recorder
from initscope.schema import Cause, Outcome
from initscope.store import Runs
from initscope.store.files import optimizer_setting


@pytest.mark.parametrize(
    ("loss_fn", "chain"),
    [
        (F.cross_entropy, ["NllLoss", "LogSoftmax"]),
        (lambda o, y: F.cross_entropy(F.softmax(o, 1), y), ["NllLoss", "LogSoftmax", "Softmax"]),
        (lambda o, y: F.nll_loss(o, y), ["NllLoss"]),
        (lambda o, y: F.cross_entropy(o, y) + 0 * o.sum(), ["Add", "NllLoss", "LogSoftmax"]),
    ],
)
def test_chain_from_loss_to_last_layer(loss_fn: Any, chain: list[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
    found = loss_facts(loss_fn(model(torch.randn(6, 4)), torch.randint(10, (6,))))
    if chain[0] == "Add":  # both ways are as short
        assert found["chain"][0] == "Add"
    else:
        assert found["chain"] == chain
        assert found["classes"] == (10 if "LogSoftmax" in chain else None)


def test_softmax_across_the_batch_and_broadcast_targets() -> None:
    model = nn.Linear(4, 1)
    outputs = model(torch.randn(6, 4))
    with pytest.warns(UserWarning, match="target size"):
        assert loss_facts(F.mse_loss(outputs, torch.randn(6)))["broadcast"]
    assert not loss_facts(F.mse_loss(outputs, torch.randn(6, 1)))["broadcast"]
    assert loss_facts(
        F.nll_loss(F.log_softmax(nn.Linear(4, 3)(torch.randn(6, 4)), 0), torch.randint(3, (6,)))
    )["across_batch"]


def test_identical_units_up_to_rounding() -> None:
    weight = torch.full((5, 7), 0.1)
    assert (
        units_identical(weight)
        and units_identical(weight + 1e-7 * torch.randn(5, 7))
        and units_identical(torch.zeros(5, 7))
    )
    assert not units_identical(torch.randn(5, 7)) and not units_identical(torch.full((1, 7), 0.1))


def test_units_of_a_recurrent_layer_that_compute_the_same(tmp_path: Path) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    def identical(model: nn.Module) -> list[str]:
        facts = _one_step(model, lambda m: m(torch.randn(8, 5, 3)).square().mean(), tmp_path)
        return facts["identical_units"]

    model = Reader()
    assert identical(model) == []
    with torch.no_grad():
        for weights in model.rnn.parameters():  # each gate has its own number, all units of a gate the same
            for gate in weights.split(6):
                gate.fill_(torch.randn(()).item())
    assert identical(model) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    with torch.no_grad():
        model.rnn.bias_hh_l0[0] += 1.0  # one unit forgets less: training can tell it apart
    assert identical(model) == []


def test_gain_is_kaimings() -> None:
    layer = nn.Linear(500, 400)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.constant_(layer.bias, -3)
    found = scales(layer)
    assert found["gain"] == pytest.approx(math.sqrt(2), rel=0.02)
    assert (found["bias_mean"], found["bias_std"]) == (-3, 0)


def test_functional_nonlinearities_are_noticed(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.tanh(self.b(F.dropout(F.relu(self.a(x)), 0.1))))

    net = Net()
    nn.init.constant_(net.a.bias, -50.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Recorder(net, optimizer, runs=tmp_path) as recorder:
        loss = F.cross_entropy(net(torch.randn(32, 8)), torch.randint(3, (32,)))
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    assert recorder.run.state()["facts"]["activations"] == {"a": "ReLU", "b": "Tanh"}
    rows = recorder.run.read("layers").to_pandas().set_index("layer")
    assert rows.loc["a", "dead_fraction"] == 1.0
    assert np.isnan(rows.loc["b", "dead_fraction"])


def test_a_recorded_run_is_diagnosed_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x = torch.randn(64, 8)
    y = x[:, :3].argmax(1)
    with Recorder(net, optimizer, runs=tmp_path) as recorder:
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    found = diagnose(Runs(tmp_path).get(recorder.run.id))
    assert (found.run, found.cause, found.outcome) == (recorder.run.id, Cause.HEALTHY, Outcome.CONVERGED)


def test_a_loss_tells_whether_it_was_sent_back_and_whom_it_reaches() -> None:
    model, other = nn.Linear(4, 3), nn.Linear(3, 2)
    x, y = torch.randn(6, 4), torch.randint(2, (6,))
    loss = F.cross_entropy(other(model(x)), y)
    assert reaches(loss, model) and not backward_has_run(loss)
    loss.backward()
    assert backward_has_run(loss)
    assert not reaches(F.cross_entropy(other(model(x).detach()), y), model)


def _one_step(model: nn.Module, loss_of: Any, runs: Path) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, runs=runs) as recorder:
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    return recorder.run.state()["facts"]


def test_a_loss_of_another_network_is_known(tmp_path: Path) -> None:
    generator, discriminator = nn.Linear(4, 3), nn.Linear(3, 1)
    bce = F.binary_cross_entropy_with_logits
    facts = _one_step(
        generator, lambda g: bce(discriminator(g(torch.randn(8, 4))), torch.ones(8, 1)), tmp_path
    )
    assert facts["loss"]["other_network"]
    facts = _one_step(nn.Linear(4, 1), lambda m: bce(m(torch.randn(8, 4)), torch.ones(8, 1)), tmp_path)
    assert not facts["loss"]["other_network"]

    def similarities(m: nn.Module) -> torch.Tensor:
        codes = F.normalize(m(torch.randn(8, 4)), dim=1)
        return (codes @ codes.T).square().mean()

    assert not _one_step(nn.Linear(4, 3), similarities, tmp_path)["loss"]["other_network"]
    facts = _one_step(
        generator, lambda g: F.mse_loss(g(torch.randn(8, 4)) @ torch.eye(3), torch.ones(8, 3)), tmp_path
    )
    settings = {name: optimizer_setting(facts, name) for name in ("lr", "weight_decay", "momentum", "eps")}
    assert settings == {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "eps": None}


def test_a_detached_loss_is_no_missing_backward(tmp_path: Path) -> None:
    generator, discriminator = nn.Linear(4, 3), nn.Linear(3, 1)
    with pytest.warns(UserWarning, match="does not depend on the model"):
        facts = _one_step(generator, lambda g: discriminator(g(torch.randn(8, 4)).detach()).mean(), tmp_path)
    assert facts["loss_detached"]
