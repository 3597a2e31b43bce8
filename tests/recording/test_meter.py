"""Every column of ``layers`` against a computation that shares no line with the meter: plain forward,
``torch.autograd.grad``, the formulas of the contract in float64.
"""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from initscope.networks import inits, vgg
from initscope.recording import reductions
from initscope.recording.calls import LayerCall
from initscope.recording.meter import LayerMeter
from initscope.recording.quantities import dead_units as counted
from initscope.recording.reading import HostCopy, StepMeasurements, WeightNumbers, layer_values
from initscope.recording.reductions import (
    change_norms,
    copy_norms,
    dead_units,
    finalize,
    forward_statistics,
    gpu,
    norm,
    norms,
)
from initscope.recording.tensors import by_sample
from initscope.schema import LAYER_METRICS, MISSING

torch.set_num_threads(1)


@pytest.fixture(autouse=True, params=["host", "device"])
def side(request, monkeypatch):
    """Everything twice: as on a CPU, and the way a GPU's tensors go, by their own reductions and through one
    transfer a step.
    """
    if request.param == "device":
        monkeypatch.setattr(reductions, "on_cpu", lambda x: False)
        monkeypatch.setattr(counted, "on_cpu", lambda x: False)
    return request.param


def columns_of(output: Tensor, off: bool = False) -> dict:
    found = forward_statistics(output, off)
    asked = {"off": found.pop("off")} if off else {}
    return (
        finalize(
            {name: value.item() if isinstance(value, Tensor) else value for name, value in found.items()}
        )
        | asked
    )


def small_vgg(**options) -> nn.Sequential:
    torch.manual_seed(0)
    return inits.initialize(vgg("vgg11", image_size=32, width=0.0625, **options), "kaiming_normal", seed=1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(1024, 30), nn.ReLU(), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 10)
    )


def batch(samples: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(samples, 1, 32, 32, generator=generator), torch.randint(
        10, (samples,), generator=generator
    )


def measure(
    model: nn.Module, x: Tensor, y: Tensor, optimizer=None, autocast: bool = False, clip: float | None = None
) -> dict[str, dict]:
    """{layer: {metric: value}} of one real step under the meter; what was not measured is left out."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    with LayerMeter(model, optimizer) as meter:
        loss_of(model, x, y, autocast).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return read(meter)


def read(meter: LayerMeter) -> dict[str, dict]:
    reading = meter.collect()
    numbers = HostCopy(reading.waiting).numbers()
    rows = zip([meter.names[i] for i in reading.order], reading.table(numbers).T.tolist(), strict=True)
    found = {name: dict(zip(LAYER_METRICS, values, strict=False)) for name, values in rows}
    missing = torch.tensor(MISSING).item()
    return {
        name: {metric: v for metric, v in values.items() if v != missing} for name, values in found.items()
    }


def loss_of(model: nn.Module, x: Tensor, y: Tensor, autocast: bool = False) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return F.cross_entropy(model(x).float(), y)


def expected(
    model: nn.Sequential, x: Tensor, y: Tensor, learning_rate: float = 0.1, autocast: bool = False
) -> dict[str, dict]:
    """The same, by walking through the layers and asking autograd for each gradient; sums in float64. Plain
    SGD's update.
    """
    model = copy.deepcopy(model)
    outputs, alive, latest = {}, {}, None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for name, module in model.named_children():
            x = module(x)
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                outputs[name], latest = x, name
            elif isinstance(module, nn.ReLU):
                alive[latest] = (x != 0).flatten(1).any(0).double().mean().item()
    loss = F.cross_entropy(x.float(), y)
    weights = [model.get_submodule(name).weight for name in outputs]
    gradients = torch.autograd.grad(loss, [*weights, *outputs.values()])
    result = {}
    for i, (name, output) in enumerate(outputs.items()):
        weight, g, e = weights[i].double(), gradients[i].double(), gradients[len(weights) + i].double()
        a = output.double().flatten(1)
        after = (weights[i] - learning_rate * gradients[i]).double()
        result[name] = {
            "grad_norm": g.square().sum().sqrt(),
            "grad_rms": g.square().mean().sqrt(),
            "weight_norm": weight.square().sum().sqrt(),
            "update_ratio": (after - weight).norm() / weight.norm(),
            "stable_rank": weight.square().sum() / torch.linalg.matrix_norm(weight.flatten(1), 2).square(),
            "activation_mean": a.mean(),
            "activation_std": a.std(correction=0),
            "signal_std": a.std(0, correction=0).square().mean().sqrt(),
            "activation_grad_rms": e.square().mean().sqrt(),
        }
        result[name] = {metric: value.item() for metric, value in result[name].items()}
        if name in alive:
            result[name]["dead_fraction"] = 1 - alive[name]
    return result


def assert_same(measured: dict[str, dict], reference: dict[str, dict], rel: float = 1e-4) -> None:
    assert list(measured) == list(reference), "layers in order of execution"
    for name, row in reference.items():
        assert set(measured[name]) == set(row), name
        for metric, value in row.items():
            if metric == "stable_rank":  # the largest gain comes from below
                assert value * (1 - rel) <= measured[name][metric] <= 1.04 * value, name
                continue
            tolerance = {"activation_mean": rel * row["activation_std"], "dead_fraction": 1e-6}.get(
                metric, 1e-12
            )
            assert measured[name][metric] == pytest.approx(value, rel=rel, abs=tolerance), (name, metric)


# ---------------------------------------------------------------- against autograd


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_small_vgg(batch_norm, channels_last):
    model, (x, y) = small_vgg(batch_norm=batch_norm), batch()
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    reference = expected(model, x, y)
    measured = measure(model, x, y)
    assert_same(measured, reference)
    assert len(measured) == 11 and "dead_fraction" not in measured["fc3"], "no ReLU, no dead units"
    assert set(LAYER_METRICS[:-1]) == set(measured["conv1_1"])


def test_an_mlp_with_adam():
    model, (x, y) = mlp(), batch()
    reference = expected(model, x, y)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    measured = measure(model, x, y, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True))
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            layer = name.removesuffix(".weight")
            reference[layer]["update_ratio"] = (
                (p.detach().double() - before[name]).norm() / before[name].norm()
            ).item()
    assert_same(measured, reference)


def test_float64():
    model, (x, y) = mlp().double(), batch()
    with torch.no_grad():
        model[1].weight.mul_(
            1e-12
        )  # a signal of 1e-12 on biases of 1e-2: beyond float32, well within float64
    reference = expected(model, x.double(), y)
    assert_same(measure(model, x.double(), y), reference)


def test_bfloat16():
    model, (x, y) = small_vgg().to(memory_format=torch.channels_last), batch()
    x = x.to(memory_format=torch.channels_last)
    assert_same(
        measure(copy.deepcopy(model), x, y, autocast=True), expected(model, x, y, autocast=True), rel=1e-3
    )


def test_the_collapse_of_the_story_in_float32():
    """Default VGG16: the signal falls to a billionth of the activations, and both are right to one
    percent.
    """
    torch.manual_seed(0)
    model, (x, y) = vgg(image_size=32, width=0.125), batch(16)
    measured, reference = measure(copy.deepcopy(model), x, y), expected(model.double(), x.double(), y)
    for name, row in reference.items():
        assert measured[name]["activation_std"] == pytest.approx(row["activation_std"], rel=1e-3), name
        # The network itself rounds in float32: what is beyond 1e-7 of the values is lost before anybody
        # measures.
        if row["signal_std"] > 1e-5 * row["activation_std"]:
            assert measured[name]["signal_std"] == pytest.approx(row["signal_std"], rel=0.01), name
        assert measured[name]["activation_grad_rms"] == pytest.approx(row["activation_grad_rms"], rel=0.01), (
            name
        )
    assert measured["fc2"]["signal_std"] < 1e-3 * measured["fc2"]["activation_std"]


# ---------------------------------------------------------------- numbers at the edges of float32

SHAPES = {
    "samples": (200,),
    "linear": (64, 300),
    "sequence": (16, 20, 30),
    "conv": (32, 8, 6, 6),
    "channels last": (32, 8, 6, 6),
    "conv3d": (16, 4, 3, 3, 3),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize(
    ("level", "between_units", "signal"),
    [
        (0.0, 2e-2, 1e-8),  # default VGG16, deep inside: biases, and hardly any input
        (2e-2, 0.0, 1e-8),
        (1.0, 1e-3, 1e-5),
        (0.0, 0.0, 1.0),
        (0.0, 0.0, 1e-25),
        (0.0, 1e-25, 1e-27),
        (0.0, 0.0, 1e20),
        (1e20, 1e19, 1e18),
        (-3e4, 10.0, 1.0),
    ],
)
def test_forward_statistics(shape, level, between_units, signal):
    generator = torch.Generator().manual_seed(0)
    size = SHAPES[shape]
    units = torch.randn(1, *size[1:], generator=generator, dtype=torch.float64)
    x = (
        level + between_units * units + signal * torch.randn(size, generator=generator, dtype=torch.float64)
    ).float()
    if shape == "channels last":
        x = x.to(memory_format=torch.channels_last)
    exact = x.double().reshape(len(x), -1)
    found = columns_of(x)
    std = exact.std(correction=0).item()
    assert found["signal_std"] == pytest.approx(
        exact.std(0, correction=0).square().mean().sqrt().item(), rel=0.01
    )
    assert found["activation_std"] == pytest.approx(std, rel=0.01)
    assert found["activation_mean"] == pytest.approx(exact.mean().item(), rel=1e-5, abs=1e-3 * std)


def test_forward_statistics_at_the_ends():
    assert columns_of(torch.full((5, 3), 0.7)) == {
        "activation_mean": pytest.approx(0.7),
        "activation_std": pytest.approx(0, abs=1e-7),
        "signal_std": 0,
    }
    assert columns_of(torch.zeros(4, 2, 3, 3)) == {"activation_mean": 0, "activation_std": 0, "signal_std": 0}
    one = columns_of(torch.tensor([[1.0, 3.0]]))
    assert one == {"activation_mean": 2, "activation_std": pytest.approx(1), "signal_std": 0}, (
        "one sample has no spread across samples"
    )
    for bad in (math.nan, math.inf):
        x = torch.ones(3, 4)
        x[1, 2] = bad
        assert not any(map(math.isfinite, columns_of(x).values()))
    half = torch.randn(50, 20).to(torch.bfloat16)
    assert columns_of(half)["signal_std"] == pytest.approx(
        half.double().std(0, correction=0).square().mean().sqrt().item(), rel=1e-3
    )
    # The first sample, from which the others are subtracted, may be the odd one.
    odd = torch.randn(100, 30) * 1e-3
    odd[0] += 1e3
    assert columns_of(odd)["signal_std"] == pytest.approx(
        odd.double().std(0, correction=0).square().mean().sqrt().item(), rel=0.01
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 200_000), (3, 131_072), (4, 300_000), (5, 40_000), (64, 5_000)])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_forward_statistics_in_pieces(kind, shape, level, monkeypatch):
    """Outputs that are looked at a few samples or units at a time, or one: what is converted may lie in
    memory that the next piece overwrites.
    """
    monkeypatch.setattr(gpu, "PIECE_BYTES", 2**19)
    x = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0)) * (1e-2 if level else 1.0) + level
    ).to(kind)
    exact = x.double()
    for asked in (False, True):
        found = columns_of(x, off=asked)
        std = exact.std(correction=0).item()
        assert found["activation_mean"] == pytest.approx(exact.mean().item(), rel=1e-4, abs=1e-5 * std)
        assert found["activation_std"] == pytest.approx(std, rel=1e-3)
        assert found["signal_std"] == pytest.approx(exact.var(0, correction=0).mean().sqrt().item(), rel=1e-3)
        assert not asked or torch.equal(found["off"], (exact <= 0).all(0))
    assert torch.equal(dead_units(x.relu()), (exact <= 0).all(0))
    assert float(norm(x)) == pytest.approx(exact.norm().item(), rel=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_nothing_has_no_norm_and_no_unit_that_is_on(kind):
    """An expert that no sample was sent to, in the middle of somebody's loop."""
    assert norm(torch.empty(0, 3, dtype=kind)) == 0
    assert dead_units(torch.empty(0, 3, dtype=kind)).tolist() == [True] * 3


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e-13, 1e-6, 1, 1e10, 1e18, 1e30, 1e38])
def test_norm(scale):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-2, 2) * scale
    assert norm(x) == pytest.approx(x.double().norm().item(), rel=1e-5)


def test_tiny_gradients_keep_their_size():
    """`normal_0.01` in a deep network: gradients of 1e-20 and less, whose squares float32 does not know."""
    model, (x, y) = mlp(), batch()
    with torch.no_grad():
        for layer in (model[1], model[3]):
            layer.weight.mul_(1e-8)
            layer.bias.zero_()
        model[5].weight.mul_(1e-12)
    reference = expected(copy.deepcopy(model).double(), x.double(), y)
    measured = measure(model, x, y)
    assert reference["1"]["grad_norm"] < 1e-19
    for name in ("1", "3", "5"):
        for metric in (
            "grad_norm",
            "grad_rms",
            "weight_norm",
            "activation_grad_rms",
            "signal_std",
            "activation_std",
        ):
            assert measured[name][metric] == pytest.approx(reference[name][metric], rel=0.01), (name, metric)


def test_weights_too_small_for_float32_squares():
    """``gain`` goes down to anything above zero: neither norm nor update ratio may underflow."""
    model, (x, y) = mlp(), batch()
    with torch.no_grad():
        model[3].weight.mul_(1e-24)
    reference = expected(model, x, y, learning_rate=1e-24)
    measured = measure(model, x, y, torch.optim.SGD(model.parameters(), lr=1e-24))
    for metric in ("weight_norm", "update_ratio"):
        assert measured["3"][metric] == pytest.approx(reference["3"][metric], rel=0.01), metric


def test_dead_fraction_is_exact():
    layer = nn.Conv2d(1, 4, 1)
    with torch.no_grad():
        layer.weight[:, 0, 0, 0] = torch.tensor([1.0, -1.0, 1.0, 0.0])
        layer.bias.copy_(torch.tensor([-0.5, 0.0, 1.0, 0.0]))
    x = torch.zeros(2, 1, 1, 4)
    x[0, 0, 0] = torch.tensor([0.0, 0.4, 0.6, 0.1])
    x[1, 0, 0] = torch.tensor([0.7, 0.5, 0.0, 0.2])
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    # Unit 0 (x - 0.5 > 0) lives at places 0 and 2; unit 1 (-x) nowhere; unit 2 everywhere; unit 3 (zero)
    # nowhere.
    assert measure(model, x, torch.tensor([0, 1]))["0"]["dead_fraction"] == 10 / 16


# ---------------------------------------------------------------- what users do


class Shifted(nn.Module):
    """A convolution and a rectifier, with something between the two in every second pass."""

    def __init__(self, rectifier: nn.Module, kind: str):
        super().__init__()
        self.layer, self.rectifier, self.kind, self.passes = nn.Conv2d(1, 6, 3), rectifier, kind, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.passes += 1
        if self.passes % 2 == 0 and self.kind == "in place":
            x += 0.3
        if self.passes % 2 == 0 and self.kind == "apart":
            x = x + 0.3
        self.before = x.detach().clone()
        return self.rectifier(x).flatten(1)[:, :10]


@pytest.mark.parametrize("kind", ["straight", "in place", "apart"])
@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()])
def test_dead_units_of_a_rectifier_that_is_known_by_now(rectifier, kind):
    """From the second step on they are counted with the layer's other statistics, if nothing came between
    layer and rectifier.
    """
    torch.manual_seed(0)
    model, (x, y) = Shifted(rectifier, kind), batch()
    with torch.no_grad():
        model.layer.bias.fill_(-0.5)
    with LayerMeter(model) as meter:
        for _ in range(5):
            loss_of(model, x, y).backward()
            dead = (model.before <= 0).flatten(1).all(0).double().mean().item()
            assert 0.05 < dead < 0.95
            assert read(meter)["layer"]["dead_fraction"] == pytest.approx(dead, abs=1e-6)


class Branches(nn.Module):
    """Layers that run between another and its rectifier, and after one that was not theirs."""

    def __init__(self, rectifier):
        super().__init__()
        self.stem, self.left, self.right, self.end = (
            nn.Linear(8, 64),
            nn.Linear(64, 32),
            nn.Linear(64, 4),
            nn.Linear(32, 4),
        )
        self.rectifier = rectifier

    def forward(self, x: Tensor) -> Tensor:
        self.shared = self.rectifier(self.stem(x))
        left, right = self.left(self.shared), self.right(self.shared)
        self.own = self.rectifier(left)
        return self.end(self.own) + right


@pytest.mark.parametrize("rectifier", [F.relu, nn.ReLU()])
def test_dead_units_are_of_the_layer_that_the_rectifier_stands_behind(rectifier):
    torch.manual_seed(0)
    model, x, y = Branches(rectifier), torch.randn(32, 8), torch.randint(0, 4, (32,))
    nn.init.constant_(model.stem.bias, -1.0)
    nn.init.normal_(model.left.bias, 0.0, 0.2)
    with LayerMeter(model) as meter:
        loss_of(model, x, y).backward()
        rows = read(meter)
    dead = {name: row["dead_fraction"] for name, row in rows.items() if "dead_fraction" in row}
    exact = {
        name: (output == 0).all(0).double().mean().item()
        for name, output in (("stem", model.shared), ("left", model.own))
    }
    assert dead == pytest.approx(exact) and 0.02 < min(exact.values()) < max(exact.values()) < 0.98
    assert meter.activations == {"stem": "ReLU", "left": "ReLU"}


class _Made(TorchDispatchMode):
    """The bytes of every tensor that an operation makes anew."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if not function.is_view:
            self.bytes = [
                *getattr(self, "bytes", []),
                *(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor)),
            ]
        return result


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_an_output_on_a_device_is_never_copied_whole(kind, monkeypatch):
    monkeypatch.setattr(gpu, "PIECE_BYTES", 2**19)
    x = torch.randn(64, 100_000).to(kind)
    with _Made() as made:
        gpu.forward_statistics(x, off=True)
    assert 2**18 < max(made.bytes) <= 2**19 < x.nbytes / 20


def test_norms_on_a_device():
    tensors = [
        torch.randn(30).to(kind) * 1e-12
        for kind in (torch.complex64, torch.bfloat16, torch.float32, torch.float64)
    ]
    assert [float(x) for x in gpu.norms(tensors)] == pytest.approx(
        [x.to(torch.complex128).norm().item() for x in tensors], rel=1e-12
    )
    assert float(gpu.norms([torch.full((4,), 1e-25)])[0]) == pytest.approx(2e-25, rel=1e-6)


def test_nothing_on_a_gpu_is_waited_for():
    """Fake CUDA tensors refuse to be looked at, so whatever a step makes of a layer stays on the device until
    the one transfer.
    """
    with FakeTensorMode():
        with torch.device("cuda"):
            output, weight, gradient = (
                torch.randn(4, 3, 5, 5),
                torch.randn(8, 3),
                torch.randn(4, 3, 5, 5).to(torch.bfloat16),
            )
        with pytest.raises(DataDependentOutputException):
            output.sum().item()
        before = [torch.empty_like(weight)]
        found = forward_statistics(output, off=True)
        (length,), (moved,), (norms_of,) = (
            copy_norms(before, [weight]),
            change_norms(before, [weight]),
            norms([weight]),
        )
        call = LayerCall(
            output.numel(),
            found,
            (0, 0),
            below=found.pop("off"),
            gradients=[norm(gradient)],
            off=dead_units(output.relu()),
        )
        weights = WeightNumbers([0], weight.numel(), {"weight": length, "moved": moved, "gradient": norms_of})
        waiting = StepMeasurements([[call]], [weights], [0], []).waiting
        assert torch.stack(waiting).device.type == "cuda" and len(waiting) == 9


def test_the_norm_is_taken_before_clipping():
    model, (x, y) = small_vgg(), batch()
    assert_same(
        {
            k: {m: v for m, v in row.items() if m != "update_ratio"}
            for k, row in measure(copy.deepcopy(model), x, y, clip=1e-4).items()
        },
        {
            k: {m: v for m, v in row.items() if m != "update_ratio"}
            for k, row in expected(model, x, y).items()
        },
    )


def test_gradient_accumulation_measures_the_total():
    model, (x, y) = mlp(), batch(8)
    total = expected(copy.deepcopy(model), x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LayerMeter(model, optimizer) as meter:
        for part in (slice(0, 4), slice(4, 8)):
            (loss_of(model, x[part], y[part]) / 2).backward()
        optimizer.step()
        measured = read(meter)
    for name, row in total.items():
        for metric in ("grad_norm", "grad_rms", "update_ratio"):
            assert measured[name][metric] == pytest.approx(row[metric], rel=1e-4), (name, metric)


def test_a_frozen_layer_and_one_that_never_runs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(3, 3)
            self.frozen, self.last = nn.Linear(5, 4), nn.Linear(4, 2)
            self.frozen.weight.requires_grad_(False)

        def forward(self, x):
            return self.last(torch.relu(self.frozen(x)))

    model = Net()
    measured = measure(model, torch.rand(6, 5), torch.tensor([0, 1] * 3))
    assert list(measured) == ["frozen", "last", "spare"], "what never ran comes last"
    assert {"grad_norm", "grad_rms"}.isdisjoint(measured["frozen"])
    assert measured["frozen"]["update_ratio"] == 0 and measured["frozen"]["signal_std"] > 0
    assert (
        set(measured["spare"]) == {"weight_norm", "update_ratio", "stable_rank"}
        and measured["spare"]["update_ratio"] == 0
    )
    assert "grad_norm" in measured["last"]


def test_zero_weights_that_stay_and_that_move():
    model, (x, y) = inits.initialize(mlp(), "zeros"), batch()
    measured = measure(model, x, y)
    assert [measured[name]["update_ratio"] for name in ("1", "3", "5")] == [0, 0, 0]
    model = nn.Sequential(nn.Flatten(), inits.initialize(nn.Linear(1024, 10), "zeros"))
    assert measure(model, x, y)["1"]["update_ratio"] == math.inf


def test_non_finite_values_are_counted():
    model, (x, y) = mlp(), batch()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    with LayerMeter(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.1)) as meter:
        loss_of(model, x, y).backward()
        optimizer.step()
        reading = meter.collect()
        rows = layer_values(reading.table(HostCopy(reading.waiting).numbers()))
    counts = dict(zip(meter.names, rows[-1].tolist(), strict=True))
    assert counts == {"1": 2, "3": 4, "5": 3}  # 1: its gradients; 5: all but its weight
    assert (rows[LAYER_METRICS.index("dead_fraction")] == np.float32(MISSING)).sum() == 2


def test_only_armed_training_passes_are_measured():
    model, (x, y) = small_vgg(batch_norm=True), batch()
    reference = expected(model, x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LayerMeter(model, optimizer) as meter:
        loss_of(model, x, y).backward()
        model.eval()
        loss_of(model, 100 * x, y)
        model.train()
        with torch.no_grad():
            model.get_submodule("conv1_1")(100 * x)
        optimizer.step()
        assert_same(read(meter), reference)
        meter.enabled = False
        loss_of(model, x, y).backward()
        optimizer.step()
        assert all(set(row) == {"weight_norm"} for row in read(meter).values())


def test_inplace_relu_and_a_function_call_are_measured_alike():
    class Called(nn.Module):
        def __init__(self, how):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.how = nn.Linear(8, 40), nn.Linear(40, 10), how

        def forward(self, x):
            return self.b(self.how(self.a(x) - 1))

    x, y = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    modules = measure(Called(nn.ReLU()), x, y)
    assert 0 < modules["a"]["dead_fraction"] < 1
    for how in (nn.ReLU(inplace=True), F.relu, torch.relu_):
        assert measure(Called(how), x, y) == modules


def test_shared_and_parametrized_weights():
    """A layer used twice, two layers with one weight, and a weight that is computed: measured or left out,
    never wrong, never an error.
    """
    shared = nn.Linear(12, 12)
    tied = nn.Linear(12, 12, bias=False)
    tied.weight = shared.weight
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(12, 12))
    model = nn.Sequential(
        shared, nn.ReLU(), shared, nn.ReLU(), tied, nn.ReLU(), normed, nn.ReLU(), nn.Linear(12, 3)
    )
    x, y = torch.randn(6, 12), torch.tensor([0, 1, 2] * 2)
    weights = [shared.weight, model[8].weight]
    gradients = torch.autograd.grad(loss_of(model, x, y), weights)
    before = {name: m.weight.detach().clone() for name, m in (("0", shared), ("4", tied), ("8", model[8]))}
    measured = measure(model, x, y)
    for name, gradient in (("0", gradients[0]), ("4", gradients[0]), ("8", gradients[1])):
        assert measured[name]["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    for name, module in (("0", shared), ("4", tied), ("8", model[8])):
        assert measured[name]["weight_norm"] == pytest.approx(before[name].norm().item(), rel=1e-4)
        assert measured[name]["update_ratio"] == pytest.approx(
            ((module.weight - before[name]).norm() / before[name].norm()).item(), rel=1e-3
        )
    assert {"activation_grad_rms", "dead_fraction"} <= set(measured["6.original1"]), (
        "the output goes with the last of a layer's weights"
    )
    assert set(measured["6.original0"]) == {
        "grad_norm",
        "grad_rms",
        "weight_norm",
        "update_ratio",
        "stable_rank",
    }


def test_spectral_norm_is_not_turned_by_looking():
    """StepMeasurements such a layer's weight in training mode moves its buffers."""
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 3)
    )
    twin, (x, y) = copy.deepcopy(model), (torch.randn(6, 12), torch.tensor([0, 1, 2] * 2))
    measure(model, x, y)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    loss_of(twin, x, y).backward()
    optimizer.step()
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


# ---------------------------------------------------------------- nothing left behind


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[object]:
    """Everything that hangs on any hook dictionary of the model, its parameters, the optimizer and torch
    itself.
    """
    everywhere = nn.modules.module
    found: list[object] = [
        h
        for name in vars(everywhere)
        if name.startswith("_global")
        for h in (getattr(everywhere, name) or {}).values()
    ]
    found += _global_optimizer_pre_hooks.values()
    found += [torch.amp.GradScaler.scale] if hasattr(torch.amp.GradScaler.scale, "__wrapped__") else []
    for owner in (*model.modules(), *model.parameters(), optimizer):
        names = [
            name
            for name in dir(type(owner)) + list(vars(owner) if hasattr(owner, "__dict__") else ())
            if "hook" in name.lower()
        ]
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, dict):
                found += [hook for _, hook in value.items()] + (
                    [value] if type(value) not in (dict, OrderedDict) else []
                )
    return found


def test_hooks_are_seen_by_the_test_itself():
    model, optimizer = mlp(), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not hooks(model, optimizer)
    with LayerMeter(model, optimizer):
        assert len(hooks(model, optimizer)) >= 6 + 2 * (4 + 6) + 2 + 1 + 1, (
            "parameters, modules, optimizer, all optimizers, loss scale"
        )


@pytest.mark.parametrize("where", ["in the block", "in forward", "in backward", "nowhere"])
def test_the_model_is_as_it_was(where):
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            if where == "in forward":
                raise ZeroDivisionError
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            if where == "in backward":
                raise ZeroDivisionError
            return gradient

    class Layer(nn.Module):
        def forward(self, x):
            return Breaks.apply(x)

    model, (x, y) = small_vgg(batch_norm=True), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before, pickled = copy.deepcopy(model.state_dict()), len(pickle.dumps(model))
    net = nn.Sequential(model[:5], Layer(), model[5:])
    mode, random = net.training, torch.get_rng_state()
    try:
        with LayerMeter(net, optimizer) as meter:
            loss_of(net, x, y).backward()
            optimizer.step()
            if where == "in the block":
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert where != "nowhere"
    assert not hooks(net, optimizer) and net.training is mode
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert list(before) == list(after) and all(
        torch.equal(before[k], after[k]) for k in before if "running" not in k and "tracked" not in k
    )
    assert (
        len(pickle.dumps(model)) - pickled <= sum(p.numel() for p in model.parameters()) * 4 + 20_000
    )  # gradients, nothing else
    pickle.loads(pickle.dumps(model))
    gone = weakref.ref(meter)
    del meter
    gc.collect()
    assert gone() is None, "something still holds the meter"


def test_measuring_changes_no_bit():
    x, y = batch()
    ends = []
    for watched in (False, True):
        model = small_vgg(dropout=0.5, batch_norm=True).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        torch.manual_seed(0)
        meter = LayerMeter(model, optimizer)
        if watched:
            meter.__enter__()
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model, x.to(memory_format=torch.channels_last), y).backward()
            optimizer.step()
            if watched:
                meter.collect()
        meter.__exit__(None, None, None)
        ends.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))


def test_by_sample_keeps_memory_order():
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert by_sample(x).data_ptr() == x.data_ptr() and by_sample(x).shape == (2, 60)
    assert by_sample(torch.rand(7)).shape == (7, 1)


def test_the_stable_rank_is_taken_in_thorough_steps():
    """Of matrices alone, as the step began, with the training's random numbers untouched."""
    torch.manual_seed(0)
    model, (x, y) = (
        nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.LayerNorm(8), nn.Linear(8, 10)),
        batch(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with LayerMeter(model, optimizer, kinds=["linear", "norm"]) as meter:
        state, seen = torch.get_rng_state(), []
        for step in range(8):
            meter.thoroughly = step % 3 == 0
            weight = model[1].weight.detach().double()
            exact = (weight.square().sum() / torch.linalg.matrix_norm(weight, 2).square()).item()
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
            measured = read(meter)
            assert "stable_rank" not in measured["2"], "a LayerNorm has no matrix"
            if "stable_rank" in measured["1"]:
                assert measured["1"]["stable_rank"] == pytest.approx(exact, rel=0.01)
                seen.append(step)
    assert seen == [0, 3, 6]
    assert torch.equal(torch.get_rng_state(), state)
