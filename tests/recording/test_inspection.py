"""What is tried on a twin changes nothing: losses to the bit, buffers, random numbers, hooks, kept states."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initscope.recording import twins
from initscope.recording.recorder import Recorder


class Stateful(nn.Module):
    """Dropout, batch norm, a kept hidden state, a counter, an auxiliary loss, Python's and NumPy's random
    numbers, and a function that holds on to the original's layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3)
        self.other = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)
        self.register_buffer("passes", torch.zeros(()))
        self.hidden = torch.zeros(16)
        self.auxiliary: Tensor | None = None
        self.held = lambda x: self.other(x)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen.append(len(x))
        h = self.held(self.drop(self.norm(self.first(x)))) + self.hidden * random.random() * np.random.rand()
        self.hidden = h.detach().mean(0)
        self.auxiliary = 0.01 * h.square().mean()
        return self.head(torch.relu(h))


def losses(recorded: Path | None) -> tuple[list[float], Stateful]:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Stateful()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    recorder = Recorder(model, optimizer, runs=recorded) if recorded else None
    result = []
    if recorder:
        recorder.__enter__()
    for _ in range(30):
        x = torch.randn(12, 6)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long()) + model.auxiliary
        loss.backward()
        optimizer.step()
        result.append(loss.item())
        if recorder:
            recorder.step(loss)
    if recorder:
        recorder.__exit__(None, None, None)
        facts = recorder.run.info().state["facts"]
        assert facts["mode_gap"] and facts["mixing"]["batch"] == 12, "nothing was tried, so nothing is shown"
    return [*result, random.random(), np.random.rand(), torch.rand(()).item()], model


def test_trying_changes_nothing(tmp_path: Path) -> None:
    plain, recorded = losses(None), losses(tmp_path)
    assert plain[0] == recorded[0]
    for (name, a), (_, b) in zip(
        plain[1].state_dict().items(), recorded[1].state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert plain[1].seen == recorded[1].seen and torch.equal(plain[1].hidden, recorded[1].hidden)
    assert not any(p._backward_hooks for p in recorded[1].parameters()), "hooks are taken off"


def test_a_twin_shares_weights_and_nothing_else() -> None:
    model = Stateful()
    model.blocks = [nn.Linear(6, 6)]
    copy = twins.twin(model)
    assert [id(p) for p in copy.parameters()] == [id(p) for p in model.parameters()]
    assert copy.norm is not model.norm and copy.norm.running_mean is not model.norm.running_mean
    assert copy.blocks[0] is not model.blocks[0] and copy.blocks[0].weight is model.blocks[0].weight
    assert model.training and not copy.training and model.norm.training


@pytest.mark.parametrize(("wrong", "least", "most"), [(True, 0.1, 1.0), (False, 0.0, 1e-6)])
def test_leak(wrong: bool, least: float, most: float) -> None:
    """A recurrent layer that takes the batch for time leaks from sample to sample; the same layer, laid out
    rightly, does not.
    """
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.RNN(4, 8, batch_first=not wrong)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)[0][:, -1]

    with torch.no_grad():
        found = twins.mixing(Net(), ((torch.randn(6, 5, 4),), {}))
    assert least <= found["leak"] <= most
