"""Every initialization against its own formula, against torch's implementation, and against its promise for a
deep network.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from initscope.config import catalog
from initscope.errors import ConfigError
from initscope.networks import inits, vgg

LAYERS = {
    "conv": lambda: nn.Conv2d(24, 40, 3),
    "conv 5x3": lambda: nn.Conv2d(40, 24, (5, 3)),
    "grouped conv": lambda: nn.Conv2d(64, 96, 3, groups=4),
    "conv1d": lambda: nn.Conv1d(64, 96, 5),
    "transposed conv": lambda: nn.ConvTranspose2d(48, 24, 3, groups=2),
    "wide linear": lambda: nn.Linear(400, 60),
    "tall linear": lambda: nn.Linear(60, 400),
    "no bias": lambda: nn.Linear(120, 200, bias=False),
}


def made(layer: str, scheme: str, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)  # what the constructors of `default` draw from
    return inits.initialize(nn.Sequential(LAYERS[layer]()), scheme, seed=seed, **options)[0]


def test_the_catalog_names_what_is_implemented():
    assert list(catalog.INITS) == list(inits.SCHEMES)
    with pytest.raises(ConfigError, match='did you mean "kaiming_normal"'):
        inits.initialize(nn.Linear(2, 2), "kaiming_nomal")


FORMULAS = [scheme for scheme in inits.SCHEMES if scheme not in ("lsuv", "auto")]
"""Schemes whose spread is known before any data is seen."""


@pytest.mark.parametrize("scheme", FORMULAS)
@pytest.mark.parametrize("layer", list(LAYERS))
def test_measured_spread_is_the_formulas(layer, scheme):
    module = made(layer, scheme, gain=1.7)
    weight, expected = module.weight.detach().double(), inits.weight_std(scheme, module, gain=1.7)
    if scheme == "zeros":
        assert not weight.any()
    else:
        # Five standard errors of a sample standard deviation (kurtosis 3 at most) and of a mean.
        error = 5 / math.sqrt(2 * weight.numel())
        assert weight.std().item() == pytest.approx(expected, rel=error)
        assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel())
        kurtosis = ((weight / weight.std()) ** 4).mean().item()
        if "uniform" in scheme or scheme == "default":
            assert kurtosis == pytest.approx(1.8, abs=0.2)
            bound = math.sqrt(3) * expected
            assert 0.99 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)
        else:
            assert kurtosis == pytest.approx(3, abs=0.4)
    if module.bias is not None:
        if scheme == "default":
            assert module.bias.std().item() == pytest.approx(
                inits.bias_std(scheme, module), rel=5 / math.sqrt(2 * len(module.bias))
            )
            assert inits.bias_std(scheme, module) == pytest.approx(expected / 1.7), (
                "gain multiplies weights, not biases"
            )
        else:
            assert not module.bias.any() and inits.bias_std(scheme, module) == 0


@pytest.mark.parametrize(
    ("scheme", "theirs"),
    [
        (
            "kaiming_normal",
            lambda w, g: nn.init.kaiming_normal_(w, mode="fan_in", nonlinearity="relu", generator=g),
        ),
        (
            "kaiming_uniform",
            lambda w, g: nn.init.kaiming_uniform_(w, mode="fan_in", nonlinearity="relu", generator=g),
        ),
        ("xavier_normal", lambda w, g: nn.init.xavier_normal_(w, generator=g)),
        ("xavier_uniform", lambda w, g: nn.init.xavier_uniform_(w, generator=g)),
        ("orthogonal", lambda w, g: nn.init.orthogonal_(w, generator=g)),
        ("normal_0.01", lambda w, g: nn.init.normal_(w, 0, 0.01, generator=g)),
        (
            "tutorial",
            lambda w, g: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", generator=g),
        ),
    ],
)
def test_the_same_numbers_as_torch(scheme, theirs):
    ours = made("conv", scheme, seed=5)
    expected = theirs(torch.empty_like(ours.weight), torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours.weight.detach(), expected)


@pytest.mark.parametrize("layer", list(LAYERS))
def test_orthogonal_is_orthonormal(layer):
    flat = made(layer, "orthogonal", gain=0.5).weight.detach().double().flatten(1)
    short = flat if flat.shape[0] <= flat.shape[1] else flat.t()
    torch.testing.assert_close(
        short @ short.t(), 0.25 * torch.eye(len(short), dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_gain_multiplies_and_seeds_decide():
    for scheme in FORMULAS:
        torch.manual_seed(7)
        before = torch.get_rng_state()
        plain, loud, other = (
            made("conv", scheme),
            made("conv", scheme, gain=3.0),
            made("conv", scheme, seed=1),
        )
        assert torch.equal(loud.weight, plain.weight * 3.0), scheme
        assert torch.equal(plain.bias, loud.bias)
        assert scheme == "zeros" or not torch.equal(plain.weight, other.weight)
        torch.set_rng_state(before)
        inits.initialize(nn.Sequential(), scheme)
        layer = nn.Linear(3, 3)
        state = torch.get_rng_state()
        inits.initialize(layer, scheme, seed=3)
        assert torch.equal(torch.get_rng_state(), state), "drew from the global random state"


def test_default_is_what_the_constructors_draw():
    torch.manual_seed(11)
    theirs = vgg(width=0.05, image_size=32).state_dict()
    torch.manual_seed(11)
    ours = inits.initialize(vgg(width=0.05, image_size=32), "default", seed=99).state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_tutorial_is_torchvisions_own_for_vgg():
    """torchvision: kaiming_normal_(fan_out, relu) for convolutions, normal_(0, 0.01) for linear layers, zero
    biases.
    """
    model = inits.initialize(vgg(width=0.25, image_size=32), "tutorial")
    assert model.conv4_2.weight.std().item() == pytest.approx(
        math.sqrt(2 / (model.conv4_2.out_channels * 9)), rel=0.03
    )
    assert model.fc1.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not any(m.bias.any() for m in model if isinstance(m, inits.LAYERS))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_lsuv_gives_every_layer_unit_variance(batch_norm):
    """Mishkin and Matas 2015: measured layer by layer, here by hand; the directions are those of
    `orthogonal`.
    """
    x = torch.rand(32, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def model(scheme: str, gain: float = 1.0, seed: int = 3) -> nn.Sequential:
        torch.manual_seed(0)
        net = vgg(image_size=32, width=0.125, dropout=0.5, batch_norm=batch_norm)
        return inits.initialize(net, scheme, gain=gain, seed=seed, sample=x)

    net, orthogonal, loud = model("lsuv"), model("orthogonal"), model("lsuv", gain=2.0)
    assert torch.equal(model("lsuv").fc2.weight, net.fc2.weight) and not torch.equal(
        model("lsuv", seed=4).fc2.weight, net.fc2.weight
    )
    assert net.training and not any(m._forward_hooks for m in net.modules())
    before, values = {k: v.clone() for k, v in net.state_dict().items()}, x
    with torch.no_grad():
        for name, module in net.eval().named_children():
            values = module(values)
            if isinstance(module, inits.LAYERS):
                assert values.var(correction=0).item() == pytest.approx(1, abs=inits.LSUV_TOLERANCE + 1e-3), (
                    name
                )
                ratio = module.weight / orthogonal.get_submodule(name).weight
                torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-3, atol=0)
                torch.testing.assert_close(loud.get_submodule(name).weight, 2 * module.weight)
                assert not module.bias.any()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items() if "running" in k)
    with pytest.raises(ConfigError, match="batch of inputs"):
        inits.initialize(vgg(image_size=32, width=0.05), "lsuv")


def test_lsuv_leaves_a_silent_layer_alone():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    inits.initialize(net, "lsuv", sample=torch.zeros(3, 4))
    assert all(p.isfinite().all() for p in net.parameters())


def test_the_point_of_it_all():
    """Through thirteen convolutions: `default` and `xavier_normal` lose the signal, `kaiming` and orthogonal
    with gain √2 keep it.
    """
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def signal(scheme: str, gain: float = 1.0) -> float:
        torch.manual_seed(0)
        model = inits.initialize(vgg(in_channels=3, image_size=32, width=0.5), scheme, gain=gain)
        with torch.no_grad():
            return model(x).std(0).square().mean().sqrt().item()

    assert signal("default") < 1e-5 and signal("xavier_normal") < 1e-2 and signal("normal_0.01") < 1e-8
    for scheme, gain in (("kaiming_normal", 1), ("kaiming_uniform", 1), ("orthogonal", math.sqrt(2))):
        assert 0.02 < signal(scheme, gain) < 10, scheme
