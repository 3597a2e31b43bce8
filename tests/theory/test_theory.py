"""Theory against the papers' special cases, wide random networks and the real VGG16; its parts:
test_theory_kernels.py.
"""

import dataclasses
import itertools
import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from initscope import networks, theory
from initscope.config.run_config import RunConfig
from initscope.data import loading
from initscope.networks import inits
from initscope.theory import layers
from initscope.theory.fields import Field, InputStats
from initscope.theory.probe import first_batch, probe

MEDIAN_FACTOR, WORST_FACTOR = 2.0, 4.0
"""How far prediction and measurement may be apart at the median layer and at the worst one."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- the papers' special cases


def mlp_layers(depth, width, std, activation="relu", bias=0.0):
    result = []
    for i in range(depth):
        result += [
            layers.Weighted(f"fc{i}", "linear", std, bias, width, width),
            layers.Activation(activation),
        ]
    return result[:-1]


def test_he_and_glorot():
    """ReLU halves the variance (He et al. 2015, equation 10): 2/fan_in keeps it, 1/fan_in loses 1/sqrt(2) a
    layer.
    """
    stats = InputStats(shape=(100,), batch=16, mean_square=1.0, apart=(0.5,))
    kept = theory.predict(mlp_layers(10, 100, math.sqrt(2 / 100)), stats)
    assert [row["activation_rms"] for row in kept] == pytest.approx([math.sqrt(2)] * 10)
    lost = theory.predict(mlp_layers(10, 100, math.sqrt(1 / 100)), stats)
    assert lost[-1]["activation_rms"] == pytest.approx(2**-4.5)
    linear = theory.predict(mlp_layers(10, 100, math.sqrt(1 / 100), "identity"), stats)
    assert linear[-1]["activation_rms"] == pytest.approx(1) and linear[-1]["correlation"] == pytest.approx(
        0.5
    )


def test_pytorchs_default_keeps_the_biases_and_loses_the_signal():
    """One ReLU layer passes on 1/6 of the signal's variance; the RMS settles at sqrt(1.2) times that of the
    biases.
    """
    std = 1 / math.sqrt(3 * 100)
    rows = theory.predict(
        mlp_layers(30, 100, std, bias=std),
        InputStats(shape=(100,), batch=1000, mean_square=1.0, apart=(1.0,)),
    )
    assert rows[-1]["activation_rms"] == pytest.approx(math.sqrt(1.2) * std, rel=1e-3)
    assert rows[-1]["signal_std"] / rows[-2]["signal_std"] == pytest.approx(math.sqrt(1 / 6), rel=1e-3)
    assert 0 < rows[-1]["signal_std"] < 1e-10


def test_zeros_give_zeros():
    rows = theory.predict(mlp_layers(3, 10, 0.0), InputStats(shape=(10,), batch=4, mean_square=1.0))
    assert all(
        row["activation_rms"] == 0 and row["grad_rms"] == 0 and row["correlation"] is None for row in rows[1:]
    )
    assert rows[-1]["activation_grad_rms"] == pytest.approx(0.3 / 4)


def test_one_sample_has_no_signal():
    rows = theory.predict(mlp_layers(3, 10, 0.3), InputStats(shape=(10,), batch=1, mean_square=1.0))
    assert all(
        row["signal_std"] is None and row["correlation"] is None and row["grad_rms"] > 0 for row in rows
    )


def test_field_ratio_round_trip():
    for unequal in (0.0, 1e-18, 0.01, 0.5):
        field = Field(1.0, 0.0, unequal, *(np.ones((1, 1)) for _ in range(3)))
        assert theory.fields.unequal_of(field.ratio) == pytest.approx(unequal)


# ---------------------------------------------------------------- against real networks


def factors(model, scheme, inputs, targets):
    """{metric: [max(predicted/measured, measured/predicted) for each layer]}."""
    measured = probe(model, inputs, targets)
    predicted = theory.predict(
        theory.module_layers(model, scheme), theory.input_stats(inputs.numpy(), targets.numpy())
    )
    assert [row["layer"] for row in measured] == [row["layer"] for row in predicted]
    assert [row["kind"] for row in measured] == [row["kind"] for row in predicted]
    ratios = {
        metric: [p[metric] / m[metric] for m, p in zip(measured, predicted, strict=True)]
        for metric in theory.METRICS
    }
    return {metric: [max(r, 1 / r) for r in values] for metric, values in ratios.items()}


def assert_close(found, median=MEDIAN_FACTOR, worst=WORST_FACTOR):
    for metric, values in found.items():
        assert statistics.median(values) < median and max(values) < worst, (metric, values)


def images(count, channels, size, seed=0):
    """Smooth random images in [0, 1]."""
    coarse = torch.rand(count, channels, 7, 7, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def lenet(activation, pool):
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, padding=2),
        activation(),
        pool(2),
        nn.Conv2d(64, 128, 5),
        activation(),
        pool(2),
        nn.Flatten(),
        nn.Linear(128 * 25, 256),
        activation(),
        nn.Linear(256, 128),
        activation(),
        nn.Linear(128, 10),
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.GELU])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_lenet(activation, pool):
    torch.manual_seed(0)
    model = lenet(activation, pool)
    assert_close(factors(model, "default", images(16, 1, 28), torch.arange(16) % 10), median=1.3, worst=2)


@pytest.mark.parametrize("scheme", ["default", "kaiming_normal", "xavier_normal"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_wide_mlp(activation, scheme):
    torch.manual_seed(0)
    sizes = [100, *[1000] * 9]
    hidden = [module for a, b in itertools.pairwise(sizes) for module in (nn.Linear(a, b), activation())]
    model = inits.initialize(nn.Sequential(*hidden, nn.Linear(1000, 10)), scheme, seed=3)
    inputs = 1 + torch.randn(32, 100, generator=torch.Generator().manual_seed(1))
    assert_close(factors(model, scheme, inputs, torch.arange(32) % 10), median=1.25, worst=1.6)


def test_batch_norm_strides_and_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, dilation=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(128 * 36, 256),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(256, 10),
    )
    assert_close(factors(model, "default", images(16, 3, 64), torch.arange(16) % 10))


def test_adaptive_pooling():
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Linear(64 * 4, 10))
    model = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), *head)
    assert_close(factors(model, "default", images(8, 1, 16), torch.arange(8)), median=1.4, worst=2)
    with pytest.raises(theory.TheoryUnavailable, match="adaptive"):
        factors(
            nn.Sequential(*model[:2], nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(64 * 9, 10)),
            "default",
            images(8, 1, 16),
            torch.arange(8),
        )


@pytest.mark.parametrize("size", [(512, 512), (40, 512)])
def test_weights_read_off_the_model(size):
    """An initialization without a formula: two numbers a layer come from the weights themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, size[0]), nn.Tanh(), nn.Linear(*size), nn.Tanh(), nn.Linear(size[1], 10)
    )
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.2)
    inputs = 1 + torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    assert_close(factors(model, None, inputs, torch.arange(16) % 10), median=1.2, worst=1.5)


INITS = ("default", "kaiming_normal", "xavier_normal", "normal_0.01", "tutorial")


def vgg_factors(init, size, batch):
    config = RunConfig(init=init, image_size=size, batch_size=batch)
    inputs, targets, classes = first_batch(config)
    return factors(networks.build(config, in_channels=1, num_classes=classes), init, inputs, targets)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("batch", [4, 32])
def test_vgg16_at_32(init, batch):
    assert_close(vgg_factors(init, 32, batch))


def test_vgg16_at_224():
    """The story's own size; all five initializations are in tests/benchmarks/agreement.py."""
    assert_close(vgg_factors("default", 224, 2))


def test_pytorchs_default_in_the_story_within_a_third():
    found = vgg_factors("default", 32, 64)
    for metric in ("activation_rms", "signal_std", "activation_grad_rms", "grad_rms"):
        assert statistics.median(found[metric]) < 1.34


# ---------------------------------------------------------------- where layers come from


@pytest.mark.parametrize("model", ["vgg11", "vgg13", "vgg16", "vgg19"])
@pytest.mark.parametrize("extra", [{}, {"batch_norm": True, "dropout": 0.3}])
def test_vgg_layers_need_no_model(model, extra):
    for init in inits.SCHEMES:
        if not theory.has_formula(init):
            continue
        config = RunConfig(model=model, image_size=64, width=0.1, init=init, gain=1.5, **extra)
        built = networks.build(config, in_channels=3, num_classes=7)
        assert theory.vgg_layers(config, in_channels=3, num_classes=7) == theory.module_layers(
            built, init, 1.5
        )


def test_formulas_are_those_of_inits():
    modules = [
        nn.Conv2d(3, 64, 3),
        nn.Conv2d(8, 16, 5, groups=2),
        nn.Linear(100, 30),
        nn.Linear(30, 100, bias=False),
    ]
    for scheme in inits.SCHEMES:
        if not theory.has_formula(scheme):
            continue
        for i, module in enumerate(modules):
            layer = theory.module_layers(nn.Sequential(module), scheme, 0.7)[0]
            assert layer.weight_std == pytest.approx(inits.weight_std(scheme, module, 0.7)), (scheme, i)
            assert layer.bias_std == pytest.approx(inits.bias_std(scheme, module))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(32 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.head(x.view(x.size(0), -1))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_a_functional_network_is_traced():
    torch.manual_seed(0)
    model = Functional()
    names = [type(layer).__name__ for layer in theory.module_layers(model, "default")]
    assert names == ["Weighted", "Activation", "Pool", "Flatten", "Weighted", "Activation", "Weighted"]
    assert_close(factors(model, "default", images(8, 1, 32), torch.arange(8)), median=1.4, worst=2)


@pytest.mark.parametrize(
    "model",
    [
        Branches(),
        nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)),
        nn.Sequential(nn.ReLU()),
        nn.Sequential(nn.LSTM(3, 3)),
    ],
)
def test_what_theory_does_not_cover_is_said(model):
    with pytest.raises(theory.TheoryUnavailable, match="theory"):
        theory.module_layers(model, "default")


def test_theory_imports_no_torch():
    code = "import sys, initscope.theory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_input_stats():
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double().numpy()
    stats = theory.input_stats(x, np.array([0, 0, 0, 1, 1, 2]))
    assert stats.shape == (1, 8, 8) and stats.batch == 6
    assert stats.mean_square == pytest.approx((x**2).mean())
    assert stats.same_label == pytest.approx((6 + 2) / 30)
    # Half the mean squared difference of two images, over all pairs.
    pairs = [((x[i] - x[j]) ** 2).mean() / 2 for i in range(6) for j in range(i)]
    assert stats.apart[0] == pytest.approx(np.mean(pairs) / stats.mean_square)
    assert stats.unequal[0] > stats.unequal[-1] >= 0
    field = stats.field()
    assert field.space.shape == (8, 8) and field.space[0, 0] == 0
    assert field.apart[0, 0] == pytest.approx(np.mean(pairs))


def test_input_stats_of_nothing():
    """A batch of zeros, and one of a single image: no division by zero."""
    for x in (np.zeros((3, 1, 4, 4)), np.ones((1, 1, 4, 4)), np.zeros((2, 5))):
        stats = theory.input_stats(x)
        assert all(math.isfinite(v) for v in (*stats.within, *stats.apart, *stats.unequal, *stats.rows))
        assert np.isfinite(stats.field().sample).all()


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("init", ["default", "kaiming_normal"])
def test_typical_stats_are_those_of_the_digits(init, size):
    config = RunConfig(init=init, image_size=size, batch_size=64)
    inputs, targets, _ = first_batch(config)
    real, typical = (
        theory.input_stats(inputs.numpy(), targets.numpy()),
        theory.typical_stats(config.replace(batch_size=len(inputs))),
    )
    assert [len(getattr(real, name)) for name in ("within", "apart", "coherence", "unequal")] == [
        len(typical.within)
    ] * 3 + [len(typical.unequal)]
    real = dataclasses.replace(
        real, same_label=0.1
    )  # this batch happens to have 0.094, the other is balanced
    vgg = theory.vgg_layers(config, in_channels=1, num_classes=10)
    for one, two in zip(theory.predict(vgg, real), theory.predict(vgg, typical), strict=True):
        for metric in theory.METRICS:
            assert two[metric] == pytest.approx(one[metric], rel=0.15 if size < 224 else 0.5), (
                one["layer"],
                metric,
            )


def test_digits_are_what_the_first_batch_says():
    config = RunConfig(image_size=32, batch_size=16)
    inputs, targets, classes = first_batch(config)
    expected, labels = next(loading.load(config).epoch(0))
    assert classes == 10 and torch.equal(inputs, expected) and torch.equal(targets, labels)
