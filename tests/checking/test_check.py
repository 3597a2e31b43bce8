"""A check finds what is wrong before training, alarms on nothing that trains, and touches nothing."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initscope
from initscope.checking.snippets import SNIPPETS
from initscope.errors import ConfigError
from tests.diagnosis.structure_cases import Encoder, Residual
from tests.faults.kit import digits, mlp


def batch(form=lambda x: x) -> tuple[Tensor, Tensor]:
    x, y, *_ = digits()
    return form(x[:32]), y[:32]


class ZeroGated(nn.Module):
    """ReZero: every branch begins at zero, and so does the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.branches = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
        self.gates = nn.Parameter(torch.zeros(6))
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for gate, branch in zip(self.gates, self.branches, strict=True):
            x = x + gate * torch.relu(branch(x))
        return self.head(x)


@pytest.mark.parametrize("make", [mlp, ZeroGated], ids=lambda make: make.__name__)
def test_what_trains_is_sound_and_untouched(make) -> None:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before = [p.clone() for p in model.parameters()]

    def penalty(outputs, y):
        return F.cross_entropy(outputs, y) + 1e-4 * sum(p.square().sum() for p in model.parameters())

    model.get_parameter(next(name for name, _ in model.named_parameters())).grad = torch.ones_like(before[0])
    state = torch.get_rng_state()
    found = initscope.check(model, batch(), penalty, optimizer)
    assert found.sound and found.learned, found.headline
    assert torch.equal(state, torch.get_rng_state()) and not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [p.grad is not None for p in model.parameters()] == [True] + [False] * (len(before) - 1)
    assert bool((next(model.parameters()).grad == 1).all())
    json.dumps(found.to_dict())


def softmaxed() -> nn.Module:
    return nn.Sequential(mlp(), nn.Softmax(1))


def faint() -> nn.Module:
    return mlp([64] + [64] * 20 + [10], nn.ReLU, "normal_0.01")


@pytest.mark.parametrize(
    ("make", "form", "loss_fn", "finding"),
    [
        (lambda: Residual(list), lambda x: x, F.cross_entropy, "layers_unregistered"),
        (Encoder, lambda x: x.squeeze(1), F.cross_entropy, "samples_mixed"),
        (softmaxed, lambda x: x, F.cross_entropy, "outputs_are_probabilities"),
        (mlp, lambda x: x, lambda o, y: -F.cross_entropy(o, y), "loss_negated"),
        (mlp, lambda x: torch.full_like(x, torch.nan), F.cross_entropy, "loss_nonfinite"),
        (mlp, lambda x: 0 * x, F.cross_entropy, "input_out_of_range"),
        (faint, lambda x: x, F.cross_entropy, "signal_collapse"),
    ],
    ids=["list", "batch_first", "softmax", "negated", "nan", "empty", "faint"],
)
def test_what_is_wrong_is_found(make, form, loss_fn, finding) -> None:
    torch.manual_seed(0)
    found = initscope.check(make(), batch(form), loss_fn)
    assert finding in {one.id for one in found.findings}, found.to_dict()
    assert found.snippets[finding] == SNIPPETS.get(finding, found.snippets[finding])


def test_the_rate_is_blamed_where_another_learns() -> None:
    model = mlp()
    found = initscope.check(model, batch(), F.cross_entropy, torch.optim.SGD(model.parameters(), 1e-7))
    assert [one.id for one in found.findings] == ["rate_out_of_range"]


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match="one number"):
        initscope.check(mlp(), batch(), lambda o, y: F.cross_entropy(o, y, reduction="none"))
    with pytest.raises(ConfigError, match="inputs, targets"):
        initscope.check(mlp(), torch.zeros(4, 64), F.cross_entropy)


def test_only_the_first_rank_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="rank 0; here is another rank"):
        initscope.check(mlp(), batch(), F.cross_entropy)
