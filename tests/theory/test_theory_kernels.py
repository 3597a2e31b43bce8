"""The kernels and the geometry of theory against Monte Carlo, closed forms and torch's own convolutions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from initscope import theory
from initscope.theory import kernels, layers
from initscope.theory.fields import InputStats
from initscope.theory.geometry import Taps

# ---------------------------------------------------------------- kernels


def gaussian_pairs(variance, difference, mean=0.0, count=400_000):
    """Pairs of jointly Gaussian numbers of that variance and difference variance."""
    rng = np.random.default_rng(1)
    common = math.sqrt(variance - difference) * rng.standard_normal(count)
    return tuple(mean + common + math.sqrt(difference) * rng.standard_normal(count) for _ in range(2))


@pytest.mark.parametrize("difference", [0.01, 0.3, 1.5])
@pytest.mark.parametrize("mean", [0.0, 1.2])
@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "elu", "softplus", "identity"]
)
def test_kernels_agree_with_monte_carlo(name, mean, difference):
    function = {
        "leaky_relu": lambda y: np.where(y > 0, y, 0.01 * y),
        "relu": lambda y: np.maximum(y, 0),
        "identity": lambda y: y,
    }.get(name) or kernels.SMOOTH[name][0]
    variance = 2.0
    first, second = (function(y) for y in gaussian_pairs(variance, difference, mean))
    kernel = kernels.kernel(name, variance, mean)
    assert kernel.square == pytest.approx((first**2).mean(), rel=0.02)
    assert kernel.mean == pytest.approx(first.mean(), rel=0.02, abs=0.005)
    apart = kernel.transfer(np.zeros(1), np.array([difference]))[0]
    assert apart == pytest.approx(((first - second) ** 2).mean() / 2, rel=0.02)


def test_relu_is_the_arc_cosine_kernel():
    """Cho and Saul 2009: k_1 = (sin t + (pi - t) cos t) / (2 pi), k_0 = (pi - t) / (2 pi), for unit
    variance.
    """
    angles = np.linspace(0.05, math.pi, 20)
    kernel = kernels.kernel("relu", 1.0)
    assert kernel.square == pytest.approx(0.5)
    apart = kernel.transfer(np.zeros_like(angles), 1 - np.cos(angles))
    assert apart == pytest.approx(
        0.5 - (np.sin(angles) + (math.pi - angles) * np.cos(angles)) / (2 * math.pi), rel=5e-4
    )
    assert kernel.gate(1 - np.cos(angles)) == pytest.approx((math.pi - angles) / (2 * math.pi), abs=1e-6)


@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.parametrize("difference", [1e-12, 1e-20, 1e-40])
def test_tiny_differences_keep_their_digits(name, difference):
    """Close samples: the difference shrinks by E[f'^2], however close they are (chi of Poole et al. 2016)."""
    kernel = kernels.kernel(name, 1.0)
    assert kernel.transfer(np.zeros(1), np.array([difference]))[0] / difference == pytest.approx(
        kernel.gates[0], rel=1e-4
    )


@pytest.mark.parametrize("count", [2, 4, 9])
def test_maxima_agree_with_monte_carlo(count):
    rng = np.random.default_rng(2)
    r = 0.7
    common = rng.standard_normal((200_000, count))
    a, b = (math.sqrt(r) * common + math.sqrt(1 - r) * rng.standard_normal(common.shape) for _ in range(2))
    mean, variance = kernels.max_moments(count)
    assert (mean, variance) == pytest.approx((a.max(1).mean(), a.max(1).var()), rel=0.01)
    assert kernels.same_winner(count, 1 - r) == pytest.approx((a.argmax(1) == b.argmax(1)).mean(), rel=0.01)
    assert kernels.max_difference(count, 1 - r) == pytest.approx(
        ((a.max(1) - b.max(1)) ** 2).mean() / 2, rel=0.02
    )
    assert kernels.same_winner(count, 1.0) == pytest.approx(1 / count, rel=1e-3)


def test_two_maxima_follow_sheppards_formula():
    for x in (0.01, 0.4, 0.9):
        assert kernels.same_winner(2, x) == pytest.approx(1 - math.acos(1 - x) / math.pi, abs=1e-4)


def test_softmax_overlap():
    assert kernels.softmax_overlap(0.0, 0.0, 10) == pytest.approx((0.1, 0.1))
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((100_000, 10))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert kernels.softmax_overlap(1.0, 0.0, 10) == pytest.approx(((p**2).sum(1).mean(),) * 2, rel=0.02)
    assert kernels.softmax_overlap(1.0, 1.0, 10)[1] == pytest.approx(0.1, rel=0.02)


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize(("size", "share"), [(1, 1 / 3), (2, 2 / 3), (4, 10 / 12), (32, 94 / 96)])
def test_padding_removes_taps(size, share):
    """3 taps on 1 pixel: one is left, so a 3x3 kernel keeps 1/9; on 2 pixels 4/9."""
    assert Taps(size, 3, 1, 1, 1).gather(np.ones(size)).mean == pytest.approx(share)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"), [(7, 3, 1, 1, 1), (9, 5, 2, 2, 1), (8, 3, 1, 2, 2)]
)
def test_profiles_follow_a_convolution_of_ones(size, kernel, stride, padding, dilation):
    profile = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    taps = Taps(size, kernel, stride, padding, dilation)
    ones = torch.ones(1, 1, kernel, dtype=torch.float64)
    gathered = (
        nn.functional.conv1d(profile.view(1, 1, -1), ones, None, stride, padding, dilation).flatten() / kernel
    )
    result = taps.gather(profile.numpy())
    assert result.profile * result.mean == pytest.approx(gathered.numpy())
    back = torch.rand(len(gathered), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scattered = nn.functional.conv_transpose1d(
        back.view(1, 1, -1), ones, None, stride, padding, 0, 1, dilation
    ).flatten()
    result = taps.scatter(back.numpy())
    found = (result.profile * result.mean)[: len(scattered)]
    assert found == pytest.approx(scattered.numpy())


def test_a_1x1_convolution_on_one_pixel_is_a_linear_layer():
    stats = InputStats(shape=(3, 1, 1), batch=8, mean_square=2.0, apart=(0.3,), unequal=(0.01,))
    conv = layers.Weighted("conv", "conv2d", 0.5, 0.1, 3 * 9, 10 * 9, (3, 3), padding=(1, 1))
    linear = layers.Weighted("conv", "linear", 0.5, 0.1, 3, 10)
    one, two = (theory.predict([layer, layers.Flatten()], stats)[0] for layer in (conv, linear))
    for metric in set(theory.METRICS) - {"grad_rms"}:
        assert one[metric] == pytest.approx(two[metric])
    # Eight of the nine taps never see the pixel: their gradient is zero.
    assert one["grad_rms"] == pytest.approx(two["grad_rms"] / 3)
