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
from initscope.recording.model_facts import (
    agreed,
    best_constant_loss,
    cross_entropy_scale,
    loss_facts,
    scales,
    units_identical,
)
from initscope.recording.recorder import Recorder
from initscope.schema import Cause, Outcome
from initscope.store import Runs


def gradient_of(loss_fn: Any, output: torch.Tensor, target: torch.Tensor) -> tuple[list[str], float, torch.Tensor]:
    layer = nn.Linear(output.shape[1], output.shape[1], bias=False)
    nn.init.eye_(layer.weight)
    seen: list[torch.Tensor] = []
    result = layer(output)
    result.register_hook(seen.append)
    loss = loss_fn(result, target)
    loss.backward()
    return loss_facts(loss)["chain"], loss.item(), seen[0]


def test_constant_answer_of_a_regression_is_the_targets_variance() -> None:
    output, target = torch.randn(64, 3), 2 * torch.randn(64, 3) + 7
    chain, loss, gradient = gradient_of(F.mse_loss, output, target)
    value, error = best_constant_loss(chain, loss, output, gradient)
    assert value == pytest.approx(target.var(0).mean().item(), rel=1e-4)
    assert 0 < error < value


def test_constant_answer_of_classes_is_their_entropy() -> None:
    output, target = torch.randn(1000, 3), (torch.rand(1000) < 0.1).long()
    value, _ = best_constant_loss(*(lambda c, loss, g: (c, loss, output, g))(*gradient_of(F.cross_entropy, output, target)))
    rate = target.double().mean().item()
    assert value == pytest.approx(-rate * math.log(rate) - (1 - rate) * math.log(1 - rate), abs=2e-3)


def test_the_scale_of_a_cross_entropy_is_read_off_its_gradient() -> None:
    output, target = torch.randn(32, 5), torch.randint(5, (32,))

    def scale(loss_fn):
        chain, loss, gradient = gradient_of(loss_fn, output, target)
        return cross_entropy_scale(chain, loss, output, gradient)

    assert scale(F.cross_entropy) == pytest.approx(1, rel=1e-5)
    assert scale(lambda o, t: F.cross_entropy(o, t, reduction="sum")) == pytest.approx(32, rel=1e-5)
    assert scale(lambda o, t: F.cross_entropy(o, t) / 4) == pytest.approx(0.25, rel=1e-5)
    assert scale(lambda o, t: F.mse_loss(o, F.one_hot(t, 5).float())) is None
    assert agreed([32.0, 32.1, 31.9]) == 32.0 and agreed([0.9, 1.1]) is None


def test_constant_answer_of_yes_and_no() -> None:
    output, target = torch.randn(500, 1), (torch.rand(500, 1) < 0.2).float()
    chain, loss, gradient = gradient_of(F.binary_cross_entropy_with_logits, output, target)
    rate = target.double().mean().item()
    assert best_constant_loss(chain, loss, output, gradient)[0] == pytest.approx(
        -rate * math.log(rate) - (1 - rate) * math.log(1 - rate), abs=2e-3
    )


def test_constant_answer_is_not_claimed_for_a_scaled_regression() -> None:
    output, target = torch.randn(64, 3), torch.randn(64, 3)
    chain, loss, gradient = gradient_of(lambda o, t: 5 * F.mse_loss(o, t), output, target)
    assert best_constant_loss(chain, loss, output, gradient) is None


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
    assert loss_facts(F.nll_loss(F.log_softmax(nn.Linear(4, 3)(torch.randn(6, 4)), 0), torch.randint(3, (6,))))["across_batch"]


def test_identical_units_up_to_rounding() -> None:
    weight = torch.full((5, 7), 0.1)
    assert units_identical(weight) and units_identical(weight + 1e-7 * torch.randn(5, 7)) and units_identical(torch.zeros(5, 7))
    assert not units_identical(torch.randn(5, 7)) and not units_identical(torch.full((1, 7), 0.1))


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
