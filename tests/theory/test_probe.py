"""The probe against an independent computation, and that it leaves no trace."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from initscope import theory
from initscope.config import run_config
from initscope.schema import Outcome
from initscope.theory import any_network, probe


def toy(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )


def batch(count=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


def by_hand(x, w1, b1, w2, b2, y):
    """Every quantity of a two-layer tanh network in float64 numpy, gradients written out."""
    z1 = x @ w1.T + b1
    a1 = np.tanh(z1)
    z2 = a1 @ w2.T + b2
    p = np.exp(z2 - z2.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    d2 = (p - np.eye(p.shape[1])[y]) / len(x)
    d1 = (d2 @ w2) * (1 - a1**2)
    rms = lambda v: math.sqrt((v**2).mean())  # noqa: E731
    rows = []
    for z, d, g in ((z1, d1, d1.T @ x), (z2, d2, d2.T @ a1)):
        cosines = [
            z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for i in range(len(x)) for j in range(i)
        ]
        rows.append([rms(z), math.sqrt(z.var(axis=0).mean()), np.mean(cosines), rms(d), rms(g)])
    return rows


def test_agrees_with_hand_written_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 3
    expected = by_hand(x.numpy(), *(p.detach().numpy() for p in model.parameters()), y.numpy())
    rows = probe.probe(model, x, y)
    assert [(row["layer"], row["depth"], row["kind"]) for row in rows] == [
        ("0", 0, "linear"),
        ("2", 1, "linear"),
    ]
    for row, values in zip(rows, expected, strict=True):
        assert [row[metric] for metric in theory.METRICS] == pytest.approx(values)


def test_in_place_activations_do_not_spoil_the_numbers():
    x, y = batch()
    in_place, plain = toy(), toy()
    for module in plain:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert probe.probe(in_place, x, y) == probe.probe(plain, x, y)


def test_leaves_the_model_as_it_was():
    model = toy().eval()
    model[0].train()
    x, y = batch()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    probe.probe(model, x, y)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model[0].training and not model[1].training and not model.training
    assert (
        torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight)) and model[0].weight.grad is None
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_leaves_the_model_as_it_was_after_an_error():
    model = toy().eval()
    x, _ = batch()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(IndexError):
        probe.probe(model, x, torch.full((6,), 99))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training and not any(module._forward_hooks for module in model.modules())


def test_a_signal_beside_a_large_bias_keeps_its_digits():
    """A signal of 2e-6 on values of 1: squares subtracted in float32 would leave nothing of it."""
    output = torch.ones(64, 100) + 2**-19 * torch.randint(
        0, 3, (64, 100), generator=torch.Generator().manual_seed(0)
    )
    expected = math.sqrt(output.double().numpy().var(axis=0).mean())
    assert probe.forward_metrics(output)["signal_std"] == pytest.approx(expected, rel=1e-12)
    assert 0 < probe.forward_metrics(output)["signal_std"] < 1e-5


def test_squares_do_not_underflow():
    assert probe.rms(torch.full((10,), 1e-30)) == pytest.approx(1e-30)


def test_what_does_not_exist_is_none():
    model = toy()
    model[1].eval()  # batch norm refuses a single sample only where a map has one pixel
    x, y = batch(1)
    rows = probe.probe(model, x, y)
    assert all(row["signal_std"] is None and row["correlation"] is None for row in rows)
    assert all(row["grad_rms"] is not None for row in rows)
    model[0].requires_grad_(False)
    first, *rest = probe.probe(model, *batch())
    assert first["grad_rms"] is None and all(row["grad_rms"] > 0 for row in rest)


def test_all_frozen_and_zero_weights():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(model[0].weight)
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 0])
    rows = probe.probe(model, x, y)
    assert rows[0]["correlation"] is None and rows[0]["activation_rms"] == 0
    model.requires_grad_(False)
    assert [row["grad_rms"] for row in probe.probe(model, x, y)] == [None, None]


def test_a_layer_used_twice_is_measured_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 2))
    rows = probe.probe(model, torch.rand(3, 4), torch.tensor([0, 1, 0]))
    assert [row["depth"] for row in rows] == [0, 1]


def test_non_finite_values_are_reported():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    nn.init.constant_(model[0].weight, 1e30)
    nn.init.constant_(model[1].weight, 1e30)
    rows = probe.probe(model, torch.rand(3, 4), torch.tensor([0, 1, 0]))
    assert math.isinf(rows[1]["activation_rms"])


@pytest.fixture(scope="module")
def quick():
    return run_config.quick().replace(batch_size=8, width=0.1)


def test_report_has_the_contracts_shape(quick):
    report = probe.report(quick)
    assert len(report["layers"]) == 16
    first, last = report["layers"][0], report["layers"][-1]
    assert (first["layer"], first["depth"], last["layer"], last["depth"]) == ("conv1_1", 0, "fc3", 15)
    for row in report["layers"]:
        assert (
            set(row) == {"layer", "depth", "measured", "predicted", "made", "band"} and row["made"] == "chain"
        )
        assert set(row["measured"]) == set(row["predicted"]) == set(theory.METRICS)
        assert all(type(value) is float for side in ("measured", "predicted") for value in row[side].values())
    assert set(report["forecast"]) == {"outcome", "reason"} and report["forecast"]["outcome"] in set(Outcome)
    assert json.loads(json.dumps(report)) == report


def test_report_is_reproducible_and_seeded(quick):
    assert probe.report(quick) == probe.report(quick)
    other = probe.report(quick.replace(init_seed=1))
    assert other["layers"][0]["measured"] != probe.report(quick)["layers"][0]["measured"]
    assert other["layers"][0]["predicted"] == probe.report(quick)["layers"][0]["predicted"]


def test_band_over_seeds(quick):
    runs = probe.probe_config(quick, seeds=3)
    band = probe.report(quick, seeds=3)["band"]
    values = sorted(run[-1]["signal_std"] for run in runs)
    assert band[-1] == {
        **band[-1],
        "layer": "fc3",
        "signal_std": {"min": values[0], "median": values[1], "max": values[2]},
    }


def test_threads_are_as_before(quick):
    before = torch.get_num_threads()
    probe.probe_config(quick)
    assert torch.get_num_threads() == before


def test_large_images_are_probed_with_fewer_samples():
    images, labels, classes = probe.first_batch(run_config.quick().replace(image_size=512))
    assert images.shape == (2, 1, 512, 512) and len(labels) == 2 and classes == 10


class Branches(nn.Module):
    """``how``: what comes between the two layers of a branch."""

    def __init__(self, how) -> None:
        super().__init__()
        self.first, self.a, self.b, self.head = (
            nn.Linear(*s) for s in ((64, 64), (64, 64), (64, 64), (64, 10))
        )
        self.how = how

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.head(torch.relu(x + self.b(self.how(self.a(x)))))


@pytest.mark.parametrize(
    ("how", "made"),
    [
        (torch.relu, ["rule"] * 4),
        (lambda x: x.sort(-1).values, ["sampled"] * 4),
        (lambda x: x + x.argmax(-1, keepdim=True), ["unknown"] * 4),
    ],
    ids=["rule", "sampled", "unknown"],
)
def test_a_network_that_branches_is_predicted_and_says_how(how, made):
    """What nobody could follow is not predicted: forward behind it, backward before it."""
    torch.manual_seed(0)
    model, (x, y) = Branches(how).eval(), batch(12)
    rows, said = any_network.predict(model, x, y, "it branches")
    truth = {row["layer"]: row for row in probe.probe(model, x, y)}
    assert list(rows) == list(truth) and [row["made"] for row in rows.values()] == made
    assert not model.training and (said is None) == (made[0] == "rule")
    for layer, row in rows.items():
        for metric in ("activation_rms", "signal_std", "activation_grad_rms", "grad_rms"):
            behind = layer in ("b", "head") if metric in theory.METRICS[:2] else True
            if made[0] == "unknown" and behind:
                assert row[metric] is None, (layer, metric)
            else:
                assert row[metric] == pytest.approx(truth[layer][metric], rel=0.6), (layer, metric)


def test_a_graph_that_cannot_be_followed_gives_no_numbers_and_says_why():
    class Sequence(nn.Module):
        def forward(self, x):
            return x.flatten(2)

    rows, said = any_network.predict(Sequence(), *batch(), "it branches")
    assert not rows and said.startswith("it branches; its graph could not be followed") and "logits" in said
