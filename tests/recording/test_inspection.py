"""What is tried on a twin changes nothing: losses to the bit, buffers, random numbers, hooks, kept states."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from initscope.recording import twins
from initscope.recording.inspection import _Batch
from initscope.recording.recorder import Recorder
from initscope.recording.repeatable import obstacle


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
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen.append(len(x))
        h = self.other(self.drop(self.norm(self.first(x)))) + self.hidden * random.random() * np.random.rand()
        self.hidden = h.detach().mean(0)
        self.auxiliary = 0.01 * h.square().mean()
        return self.head(torch.relu(h))


def losses(recorded: Path | None, build: Callable[[], nn.Module] = Stateful) -> tuple[list[float], Any, dict]:
    """Losses and the random numbers that come next, the model, and the facts that a Recorder has noted."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model, facts = build(), {}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    result = []
    with Recorder(model, optimizer, runs=recorded) if recorded else contextlib.nullcontext() as recorder:
        for _ in range(30):
            x = torch.randn(12, 6)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long()) + getattr(model, "auxiliary", 0)
            loss.backward()
            optimizer.step()
            result.append(loss.item())
            if recorder:
                recorder.step(loss)
                if len(result) % 10 == 0:
                    recorder.epoch()
    if recorder:
        facts = recorder.run.info().state["facts"]
    return [*result, random.random(), np.random.rand(), torch.rand(()).item()], model, facts


def test_trying_changes_nothing(tmp_path: Path) -> None:
    plain, recorded = losses(None), losses(tmp_path)
    assert plain[0] == recorded[0]
    facts = recorded[2]
    assert {gap["epoch"] for gap in facts["mode_gap"]} == {True, False} and facts["mixing"]["batch"] == 12, (
        "nothing was tried, so nothing is shown"
    )
    for (name, a), (_, b) in zip(
        plain[1].state_dict().items(), recorded[1].state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert plain[1].seen == recorded[1].seen and torch.equal(plain[1].hidden, recorded[1].hidden)
    assert not any(p._backward_hooks for p in recorded[1].parameters()), "hooks are taken off"


@pytest.mark.parametrize(("last", "apart"), [(2, True), (64, False)])
def test_averages_of_the_newest_batch_are_compared_with_another(
    tmp_path: Path, last: int, apart: bool
) -> None:
    """With momentum 1 the averages fit the newest batch, however few its samples are: another batch tells."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16, momentum=1.0), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        for i in range(20):
            x = torch.randn(last if i % 10 == 9 else 64, 6)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            loss.backward()
            optimizer.step()
            recorder.step(loss)
            if i % 10 == 9:
                model.eval()  # as a validation leaves it
                recorder.epoch()
                model.train()
    gaps = [gap for gap in recorder.run.info().state["facts"]["mode_gap"] if gap["epoch"]]
    assert [gap["step"] for gap in gaps] == [9, 19] and {gap["batch"] for gap in gaps} == {64}
    assert all((gap["distance"] > 0.5) == apart for gap in gaps)


def test_batches_of_one_sample_are_compared_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(24, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        for _ in range(14):
            loss = model(torch.randn(1, 1, 8) + 3 * torch.randn(1, 1, 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    gaps = recorder.run.info().state["facts"]["mode_gap"]
    assert gaps[-1]["batch"] == 8 and gaps[-1]["distance"] > 0.5 and gaps[-1]["agreement"] is not None


def test_a_batch_that_was_written_into_is_not_compared() -> None:
    x = torch.ones(4, 2)
    kept = _Batch(((x,), {}))
    assert torch.equal(kept.arguments[0][0], x)
    x.zero_()
    assert kept.arguments is None


GENERATOR = torch.Generator()
CALLS = {"count": 0}


class Counter:
    def __init__(self) -> None:
        self.count = 0


class Turning(nn.Module):
    """Each pass turns something that a copy of the module shares with it; ``how`` says what."""

    drawn = 0

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        GENERATOR.manual_seed(0)
        CALLS["count"] = Turning.drawn = 0
        own = torch.Generator().manual_seed(1)
        numbers, counter, array, large = iter(range(10**6)), Counter(), np.zeros(1), torch.zeros(2**20 + 1)
        kept: list[Any] = []
        parts = {
            "generator": lambda: torch.rand((), generator=own),
            "iterator": lambda: next(numbers) / 100,
            "numpy": lambda: array.__iadd__(0.01)[0],
            "object": lambda: counter.__dict__.update(count=counter.count + 1) or counter.count / 100,
            "large": lambda: large.add_(0.01)[0],
            "list": lambda: kept.append(0) or len(kept) / 100,
            "module": lambda: self.body[1].__dict__.setdefault("n", []).append(1) or len(self.body[1].n) / 9,
        }
        self.part = parts.get(how, float)
        self.hook = how == "hook" and self.body.register_forward_pre_hook(
            lambda module, inputs: CALLS.update(count=CALLS["count"] + 1)
        )
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "global generator":
            return self.body(x + torch.rand(x.shape, generator=GENERATOR))
        if self.how == "class":
            type(self).drawn += 1
            return self.body(x + type(self).drawn / 100)
        return self.body(x * (1 + self.part()) + CALLS["count"] / 100)


@pytest.mark.parametrize(
    "how",
    [
        "generator",
        "iterator",
        "numpy",
        "object",
        "large",
        "list",
        "module",
        "hook",
        "global generator",
        "class",
    ],
)
def test_what_a_second_pass_would_turn_is_not_tried(how: str, tmp_path: Path) -> None:
    plain, recorded = losses(None, lambda: Turning(how)), losses(tmp_path, lambda: Turning(how))
    assert plain[0] == recorded[0]
    assert "might turn" in recorded[2]["not_tried"] and "mixing" not in recorded[2]


def test_ordinary_networks_are_tried() -> None:
    """Of the libraries, and of people who use their layers, functions and a configuration of their own."""

    @dataclasses.dataclass
    class Settings:
        width: int = 6
        scale: float = 0.5

    class Block(nn.Module):
        def __init__(self, settings: Settings) -> None:
            super().__init__()
            self.settings, self.act, self.sizes = settings, F.gelu, [settings.width] * 2
            self.layers = nn.ModuleList(nn.Linear(a, a) for a in self.sizes)

        def body(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + self.settings.scale * self.act(layer(x)) / math.sqrt(len(self.layers))
            return x

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            assert x.dim() == 2, f"expected (samples, features), not {tuple(x.shape)}"
            self.newest = x = self.body(x)
            return torch.cat(
                [x.masked_fill(mask, 0.0) if mask is not None else x, x.mean(1, keepdim=True)], 1
            )

    for model in (
        Block(Settings()),
        torchvision.models.resnet18(),
        torchvision.models.vit_b_16(),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 2),
        nn.GRU(6, 8, num_layers=2, bidirectional=True),
        nn.LSTM(6, 8),
        nn.MultiheadAttention(8, 2),
        nn.Embedding(5, 3),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
    ):
        assert obstacle(model, [(torch.ones(2, 6),), {"mask": None}]) is None, type(model).__name__
    assert "Counter" in obstacle(Block(Settings()), [(Counter(),), {}])


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
