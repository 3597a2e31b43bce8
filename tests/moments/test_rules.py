"""Each rule against Monte Carlo over draws of the weights in float64, and against closed forms where papers
give them.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from initscope.moments import axes as ax
from initscope.moments.attention import overlaps
from initscope.moments.field import independent
from initscope.moments.kernels import Kernel
from initscope.moments.measure import draw, measure
from initscope.moments.prediction import backward, forward
from initscope.moments.trace import trace
from initscope.moments.values import gate


def monte_carlo(make, sample, draws=12):
    """Mean over draws of the weights: (mean square, between samples) of the output and (mean square) of the
    input's gradient.
    """
    sums = np.zeros(3)
    for seed in range(draws):
        torch.manual_seed(seed)
        model, x = make().double(), sample.double().requires_grad_()
        out = model(x)
        g = torch.randn(out.shape, dtype=torch.float64)
        found = measure(out, ax.default_axes(tuple(out.shape)))
        grad = torch.autograd.grad(out, x, g)[0]
        sums += np.array([found.square, found.between[0], grad.square().mean().item()]) / draws
    return sums


def predicted(make, sample, draws=3):
    sums = np.zeros(3)
    for seed in range(draws):
        torch.manual_seed(seed)
        graph = trace(make().double(), sample.double())
        ctx = forward(graph)
        backward(ctx, 1.0)
        field = ctx.values[graph.outputs[0].id].field
        sums += np.array([field.square, field.between[0], ctx.grads[next(iter(graph.inputs))].square]) / draws
    return sums


class Attention(nn.Module):
    def __init__(self, causal=False, heads=2, d=32):
        super().__init__()
        self.qkv, self.causal, self.heads = nn.Linear(d, 3 * d, bias=False), causal, heads

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        return (
            nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            .transpose(1, 2)
            .reshape(b, t, d)
        )


class Written(nn.Module):
    """Residual, gate and RMS norm by hand."""

    def __init__(self, d=64):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(d, d, bias=False) for _ in range(3))

    def forward(self, x):
        y = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        gate = self.a(y)
        return x + self.c(gate * torch.sigmoid(gate) * self.b(y))


def maps(b=6, c=8, n=12):
    torch.manual_seed(7)
    low = nn.functional.interpolate(torch.randn(b, c, 4, 4), size=(n, n), mode="bilinear")
    return low + 0.5 * torch.randn(b, c, n, n) + 0.3 * torch.randn(1, c, n, n)


def tokens(b=6, t=16, d=32):
    torch.manual_seed(8)
    return torch.randn(b, t, d) + 0.5 * torch.randn(1, t, d) + 0.5 * torch.randn(b, 1, d)


def conv(**kwargs):
    return lambda: nn.Conv2d(8, 32, 3, **kwargs)


CASES = {
    "linear": (lambda: nn.Linear(32, 64), tokens()),
    "conv": (conv(padding=1), maps()),
    "strided": (conv(padding=1, stride=2), maps()),
    "dilated_groups": (conv(padding=2, dilation=2, groups=4), maps()),
    "transposed": (lambda: nn.ConvTranspose2d(8, 32, 2, 2), maps()),
    "batch_norm_relu": (
        lambda: nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        maps(),
    ),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64)), tokens()),
    "group_norm": (lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.GroupNorm(4, 32), nn.SiLU()), maps()),
    "instance_norm": (lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.InstanceNorm2d(32)), maps()),
    "max_pool": (lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.MaxPool2d(2)), maps()),
    "average": (lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.AvgPool2d(2)), maps()),
    "global_pool": (
        lambda: nn.Sequential(
            nn.Conv2d(8, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64)
        ),
        maps(),
    ),
    "upsample": (lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.Upsample(scale_factor=2)), maps()),
    "gelu": (lambda: nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64)), tokens()),
    "dropout": (lambda: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.4)), tokens()),
    "attention": (Attention, tokens()),
    "causal": (lambda: Attention(causal=True), tokens()),
    "written": (Written, tokens(d=64)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_agrees_with_draws_of_the_weights(name):
    make, sample = CASES[name]
    measured, theory = monte_carlo(make, sample), predicted(make, sample)
    assert theory[[0, 2]] == pytest.approx(measured[[0, 2]], rel=0.2)
    assert theory[1] == pytest.approx(measured[1], rel=0.2, abs=0.05 * measured[0])


@pytest.mark.parametrize("r", [-0.9, 0.0, 0.3, 0.9, 0.999])
def test_relu_is_the_arc_cosine_kernel(r):
    """Cho and Saul 2009, equation 6 for n = 1, and its derivative for n = 0."""
    kernel = Kernel(torch.relu, 0.0, 2.0)
    expected = 2.0 * (math.sqrt(1 - r * r) + r * (math.pi - math.acos(r))) / (2 * math.pi)
    assert kernel.square - kernel.differences(np.array([r]))[0] == pytest.approx(expected, abs=4e-3)
    assert kernel.gates(np.array([r]))[0][0] == pytest.approx(0.25 + math.asin(r) / (2 * math.pi), abs=1.5e-2)


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_gelu_has_the_closed_form(std):
    """Kedia et al. 2024: mean and variance, with a = s^2 / (1 + s^2)."""
    kernel, s2 = Kernel(nn.functional.gelu, 0.0, std**2), std**2
    a = s2 / (1 + s2)
    mean = std * math.sqrt(a) / math.sqrt(2 * math.pi)
    variance = s2 / (2 * math.pi) * (math.pi - a - math.acos(a) + 2 * a * math.sqrt((1 - a) / (1 + a)))
    assert kernel.out_mean == pytest.approx(mean, rel=1e-6)
    assert kernel.square - kernel.out_mean**2 == pytest.approx(variance, rel=1e-5)


def test_the_difference_of_almost_equal_samples_keeps_its_digits():
    """D(1 - d) = v d E f'^2 to first order, at a distance of a trillionth."""
    kernel = Kernel(torch.tanh, 0.0, 1.0)
    found = kernel.differences(np.array([1 - 1e-12]))[0]
    assert found == pytest.approx(1e-12 * kernel.slope_moment(0), rel=1e-3)


def test_weak_scores_follow_the_log_normal_form():
    """Kedia et al. 2024: sum of squared attention weights = exp(variance) / n."""
    o = overlaps(0.25, 0.0, 0.0, 8, 256, (), False)
    assert o.own == pytest.approx(math.exp(0.25) / 256, rel=0.05)
    assert o.rows == pytest.approx(1 / 256, rel=0.05)


def test_a_mask_leaves_the_allowed_keys():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :2] = True
    assert overlaps(0.0, 0.0, 0.0, 8, 8, (mask,), False).own == pytest.approx(0.5)


def test_what_is_drawn_has_the_moments_that_were_asked_for():
    torch.manual_seed(0)
    field = measure(maps(b=8, c=32, n=16), ax.default_axes((8, 32, 16, 16)))
    again = measure(draw(field, torch.Generator().manual_seed(1)), field.axes)
    assert again.square == pytest.approx(field.square, rel=0.05)
    assert again.within[1] == pytest.approx(field.within[1], rel=0.3)
    assert again.apart[0] == pytest.approx(field.apart[0], rel=0.15)


def test_measure_counts_pairs():
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    found = measure(x, (ax.axis("S", 3), ax.axis("C", 2), ax.axis("P", 4)))
    between = sum((x[i] * x[j]).mean() for i in range(3) for j in range(3) if i != j) / 6
    near = (x[..., 1:] * x[..., :-1]).mean()
    assert found.between[0] == pytest.approx(between.item())
    assert found.within[1] == pytest.approx(near.item())
    assert found.cross == pytest.approx((x[:, 0] * x[:, 1]).mean().item())


def test_reshape_follows_windows():
    axes = (ax.axis("S", 2), ax.axis("P", 8), ax.axis("C", 6))
    split = ax.reshape(axes, (2, 2, 4, 6))
    assert split[1] == (ax.Atom("P", 2, 4),) and split[2] == (ax.Atom("P", 4, 1),)
    assert ax.reshape(split, (4, 24))[0] == (ax.Atom("S", 2), ax.Atom("P", 2, 4))


def test_ring_counts_sum_to_the_positions():
    counts = ax.ring_counts((ax.Atom("P", 5), ax.Atom("P", 3)))
    assert counts.sum() == pytest.approx(15) and counts[0] == pytest.approx(1)


def test_a_gate_halves_the_gradient_of_relu():
    x = independent(ax.default_axes((4, 64)), 1.0)
    assert gate(Kernel(torch.relu, 0.0, 1.0), x, x).square == pytest.approx(0.5, rel=1e-3)
