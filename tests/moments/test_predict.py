"""Whole networks, small: agreement, what is said about how a number was made, and that the model is left
alone.
"""

import copy
import statistics

import pytest
import torch
from torch import nn

from initscope.moments import METRICS, predict
from tests.benchmarks.moments import Encoder, Mixer, UNet, compare, images, initialize, measured, off


def small_resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=50), images(6, 64)


NETWORKS = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64)),
        torch.randn(8, 64),
    ),
    "resnet": small_resnet,
    "pre_norm": lambda: (Encoder(4, pre=True, dim=64), torch.randint(0, 500, (6, 32))),
    "post_norm": lambda: (Encoder(4, pre=False, dim=64), torch.randint(0, 500, (6, 32))),
    "mixer": lambda: (Mixer(depth=3, dim=64, patch=16), images(6)),
    "unet": lambda: (UNet(width=16, depth=2), images(4, 32)),
}


@pytest.mark.parametrize("init", ["default", "kaiming"])
@pytest.mark.parametrize("name", NETWORKS)
def test_prediction_and_measurement_agree(name, init):
    torch.manual_seed(3)
    model, sample = NETWORKS[name]()
    initialize(model, init)
    predicted = predict(model, sample)
    torch.manual_seed(4)
    factors = {}
    for metric, _, factor, _, _ in compare(predicted, measured(model, sample)):
        factors.setdefault(metric, []).append(off(factor))
    assert set(factors) >= set(METRICS) - {"correlation"}
    for metric, found in factors.items():
        assert statistics.median(found) < 1.5, metric
        assert max(found) < 4, metric


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    torch.manual_seed(0)
    model, sample = small_resnet()
    called = []
    model.conv1.register_forward_hook(lambda *_: called.append(1))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    predict(model, sample)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and not called and model.training
    assert all(p.grad is None for p in model.parameters())


class Odd(nn.Module):
    """An operation without a rule, and control flow that asks for a value."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.a, self.b, self.branch = nn.Linear(32, 32), nn.Linear(32, 32), branch

    def forward(self, x):
        x = self.a(x)
        if self.branch and x.sum() > 1e9:
            return x
        return self.b(torch.cumsum(x, -1))


def test_what_has_no_rule_is_sampled_and_says_so():
    torch.manual_seed(0)
    model, x = Odd(branch=False), torch.randn(8, 32)
    found = predict(model, x)
    assert [row.made for row in found.layers] == ["rule", "sampled"] and found.sampled == ("cumsum",)
    truth = measured(model, x)
    assert found.layers[1].activation_rms == pytest.approx(truth["b"]["activation_rms"], rel=0.5)


def test_control_flow_on_values_is_followed_by_running_the_network():
    assert predict(Odd(branch=True), torch.randn(8, 32)).executed


def test_a_zero_head_stops_every_gradient_but_its_own():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.zeros_(model[2].weight)
    first, last = predict(model, torch.randn(8, 16)).layers
    assert first.grad_rms == 0 and last.grad_rms > 0


def test_a_tied_weight_is_one_weight():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.relu(self.embed(ids)))

    model, ids = Tied(), torch.randint(0, 20, (8, 4))
    rows = {row.layer: row for row in predict(model, ids).layers}
    truth = measured(model, ids)
    assert (
        rows["embed"].grad_rms == rows["head"].grad_rms == pytest.approx(truth["embed"]["grad_rms"], rel=0.3)
    )


def test_a_weight_that_a_product_repeats_is_read_once():
    """Attention with samples in the second place multiplies by an expanded weight: its gradient is that of
    one weight.
    """
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(32, 2), torch.randn(16, 4, 32)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = model

        def forward(self, x):
            y = x.transpose(0, 1)
            return self.attention(y, y, y, need_weights=False)[0].transpose(0, 1)

    rows = {row.parameter: row for row in predict(Self(), x).layers}
    truth = measured(Self(), x)
    assert rows["attention.in_proj_weight"].grad_rms == pytest.approx(
        truth["attention.in_proj_weight"]["grad_rms"], rel=0.3
    )


class Writes(nn.Module):
    """Writes in place: through a view of what a layer gave, into a part of it, and into fresh memory."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(64, 256), nn.Linear(256, 64), kind

    def forward(self, x):
        x = 4 * self.a(x)
        if self.kind == "view":
            x.view(len(x), 16, 16).mul_(0.1)
        elif self.kind == "part":
            x[:, :192].mul_(0.1)
        elif self.kind == "earlier view":
            y = x.view(len(x), -1)
            x.mul_(0.1)
            x = y
        elif self.kind == "filled":
            x[:, :192] = 0
        else:
            fresh = torch.zeros(len(x), 256, device=x.device)
            fresh[:, ::2] = x[:, ::2]
            x = fresh
        return self.b(x)


@pytest.mark.parametrize("kind", ["view", "part", "earlier view", "filled", "fresh"])
def test_writes_through_views_are_followed(kind):
    torch.manual_seed(0)
    model, x = Writes(kind), torch.randn(16, 64)
    found = predict(model, x)
    assert not found.sampled and not found.unknown
    truth = measured(model, x)
    for row in found.layers:
        for metric in ("activation_rms", "signal_std", "activation_grad_rms", "grad_rms"):
            assert getattr(row, metric) == pytest.approx(truth[row.layer][metric], rel=0.25), (
                row.layer,
                metric,
            )
