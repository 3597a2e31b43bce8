"""The code that is offered to copy does what it says, on real models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from initscope.recording.layers import find_layers
from initscope.schema import Cause
from initscope_dashboard.content import snippets


def transformer() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(20, 32),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
        nn.Linear(32, 10),
    )


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 64, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 64, 3),
        nn.Flatten(),
        nn.Linear(64 * 36, 128, bias=False),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def recurrent() -> nn.Module:
    return nn.Sequential(nn.LSTM(16, 64), nn.Linear(64, 10))


def kinds_of(model: nn.Module) -> set[str]:
    return {layer.kind for layer in find_layers(model)}


def run(code: str, model: nn.Module) -> None:
    exec(compile(code, "snippet", "exec"), {"model": model})


@pytest.mark.parametrize("make", [transformer, images, recurrent])
@pytest.mark.parametrize(
    "scheme",
    [
        "kaiming_normal",
        "kaiming_uniform",
        "xavier_normal",
        "xavier_uniform",
        "orthogonal",
        "normal_0.01",
        "linear",
    ],
)
def test_every_scheme_fills_every_kind_of_model(make, scheme):
    torch.manual_seed(0)
    model = make()
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.dim() > 1}
    run(snippets.initialization(scheme, kinds_of(model)), model)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            assert not torch.equal(weight, before[name]), f"{name} was left as it was"
        elif "norm" not in name:
            assert not weight.any(), f"{name} is no zero"


def test_weights_have_the_size_that_was_asked_for():
    torch.manual_seed(0)
    model = images()
    run(snippets.initialization("kaiming_normal", kinds_of(model), gain=2.0), model)
    assert (model[4].weight.std() * (64 * 36) ** 0.5).item() == pytest.approx(2 * 2**0.5, rel=0.02)
    model = transformer()
    run(snippets.of_size(0.5, kinds_of(model)), model)
    layer = model[1].layers[0]
    assert (layer.linear1.weight.std() * 32**0.5).item() == pytest.approx(0.5, rel=0.1)
    assert (layer.self_attn.in_proj_weight.std() * 32**0.5).item() == pytest.approx(0.5, rel=0.1)


def test_a_learning_rate_and_an_optimizer():
    model = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    exec(snippets.remedy(Cause.LR_TOO_HIGH, {"learning_rate": 1e-3}, set()), {"optimizer": optimizer})
    assert optimizer.param_groups[0]["lr"] == 1e-3
    found: dict = {"torch": torch, "model": model.requires_grad_(False)}
    exec(snippets.remedy(Cause.NOT_UPDATING, {}, set(), "SGD"), found)
    assert isinstance(found["optimizer"], torch.optim.SGD) and all(
        p.requires_grad for p in model.parameters()
    )
    given = {"inputs": torch.randn(50, 8) * 300 + 1000}
    exec(snippets.remedy(Cause.INPUT_SCALE, {}, set()), given)
    assert given["inputs"].mean().abs() < 1e-3 and given["inputs"].std().item() == pytest.approx(1, abs=0.05)


def test_nothing_is_offered_where_no_few_lines_would_do_it():
    assert (
        snippets.remedy(Cause.LABELS_UNRELATED, {}, {"linear"})
        == ""
        == snippets.remedy(Cause.HEALTHY, {}, {"linear"})
    )
    assert (
        snippets.initialization("lsuv", {"linear"})
        == ""
        == snippets.initialization("kaiming_normal", {"something"})
    )
    assert "import os" not in snippets.remedy(Cause.NOT_UPDATING, {}, set(), "SGD; import os")
