"""Loops in which the network, its tensors or its optimizers are of unusual kinds, or change: what is measured
is right, what cannot be measured is null, and nothing outside the model is touched. Expected numbers come
from torch alone.
"""

from __future__ import annotations

import copy
import pickle
import random
import threading
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initscope.recording.calls import LayerCall, ProducerIndex
from initscope.recording.meter import LayerMeter
from initscope.recording.recorder import Recorder
from initscope.recording.tensors import SEARCH_LIMIT
from tests.recording.test_meter import read

pytestmark = pytest.mark.filterwarnings("error")
torch.set_num_threads(1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)


def rows(recorder: Recorder, step: int) -> dict[str, dict]:
    return {row["layer"]: row for row in recorder.run.read("layers").to_pylist() if row["step"] == step}


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """A step of an ordinary loop: {layer: (gradient norm, update ratio)} of the weights that were trained."""
    x, y = batch()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    named = {
        name.removesuffix(".weight"): p
        for name, p in model.named_parameters()
        if "bias" not in name and p.requires_grad
    }
    before = {name: (p.grad.norm().item(), p.detach().clone()) for name, p in named.items()}
    optimizer.step()
    return {
        name: (g, ((named[name].detach() - b).norm() / b.norm()).item()) for name, (g, b) in before.items()
    }


# ---------------------------------------------------------------- kinds of tensors


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors(tmp_path, layout):
    """Inputs and outputs of samples of different lengths: weights and gradients as ever, outputs null."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(action="ignore"):
        x = torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(5, 6)], layout=layout)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        output = model(x)
        loss = torch.cat(output.unbind()).square().mean()
        loss.backward()
        recorder_sees = model[0].weight.grad.norm().item()
        optimizer.step()
        recorder.step(loss)
    assert rows(recorder, 0)["0"]["grad_norm"] == pytest.approx(recorder_sees, rel=1e-5)
    assert rows(recorder, 0)["0"]["activation_std"] is None


class Quantized(Tensor):
    """A weight that knows few operations, as those of quantization libraries."""

    @staticmethod
    def __new__(cls, whole, scale):
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.float32, device=whole.device)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(arguments[0].whole, arguments[0].scale)
        raise NotImplementedError(f"{function} of a quantized weight")


@pytest.mark.parametrize("kind", ["float8", "quantized", "nothing in", "nothing out"])
def test_weights_that_cannot_be_read_are_skipped(tmp_path, kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.head = nn.Linear(6, 8, bias=False), nn.Linear(6, 3)
            if kind == "float8":
                self.base.weight = nn.Parameter(
                    torch.randn(8, 6).to(torch.float8_e4m3fn), requires_grad=False
                )
            elif kind == "quantized":
                whole = torch.randint(-8, 8, (8, 6), dtype=torch.int8)
                self.base.weight = nn.Parameter(Quantized(whole, 0.1), requires_grad=False)
            else:
                self.base = nn.Linear(0, 4) if kind == "nothing in" else nn.Linear(6, 0)

        def forward(self, x):
            if kind.startswith("nothing"):
                self.base(x[:, :0] if kind == "nothing in" else x)
            return self.head(x)

    with warnings.catch_warnings(action="ignore"):
        model, (x, y) = Net(), batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    found = rows(recorder, 0)
    assert found["head"]["grad_norm"] > 0 and found["head"]["update_ratio"] > 0
    assert found["base"]["weight_norm"] == (0 if kind.startswith("nothing") else None)
    assert list(recorder.run.state()["facts"]["scales"]) == ["head"]


# ---------------------------------------------------------------- optimizers and gradients


class Wrapping(torch.optim.Optimizer):
    """An optimizer around another that was never initialized as one, like opacus' DPOptimizer."""

    def __init__(self, optimizer):
        self.original_optimizer = optimizer

    param_groups = property(lambda self: self.original_optimizer.param_groups)
    state = property(lambda self: self.original_optimizer.state)
    defaults = property(lambda self: self.original_optimizer.defaults)

    def zero_grad(self, set_to_none=True):
        self.original_optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.original_optimizer.step(closure)


class Outer(torch.optim.Optimizer):
    """An optimizer that moves the weights once more after the one inside of it."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__([p for group in inner.param_groups for p in group["params"]], {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step(closure)
        for p in self.param_groups[0]["params"]:
            p.mul_(0.9)


@pytest.mark.parametrize("wrapper", [Wrapping, Outer])
def test_an_optimizer_that_wraps_another(tmp_path, wrapper):
    model = mlp()
    optimizer = wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        expected = one_step(model, optimizer)
        recorder.step(1.0)
    for layer, (gradient, ratio) in expected.items():
        assert rows(recorder, 0)[layer]["grad_norm"] == pytest.approx(gradient, rel=1e-5)
        assert rows(recorder, 0)[layer]["update_ratio"] == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("kind", ["before accumulation", "after accumulation"])
def test_gradients_that_are_freed_in_the_backward_pass(tmp_path, kind):
    """LOMO: a hook updates the weight and drops the gradient before the pass has ended."""
    model, (x, y) = mlp(), batch()

    def free(*_: object) -> None:
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
                    p.grad = None

    for p in model.parameters():
        p.register_hook(
            lambda gradient: free()
        ) if kind == "before accumulation" else p.register_post_accumulate_grad_hook(free)
    with Recorder(model, runs=tmp_path) as recorder:
        expected = []
        for _ in range(2):
            twin = copy.deepcopy(mlp())
            twin.load_state_dict(model.state_dict())
            F.cross_entropy(twin(x), y).backward()
            expected.append({name: twin.get_parameter(f"{name}.weight").grad.norm().item() for name in "024"})
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            free()
            recorder.step(loss)
    for step, gradients in enumerate(expected):
        assert {name: rows(recorder, step)[name]["grad_norm"] for name in "024"} == pytest.approx(
            gradients, rel=1e-5
        )


def test_gradients_put_there_by_hand(tmp_path):
    """Per-sample gradients, averaged into ``.grad``: recorded, and nobody is warned."""
    model, (x, y) = mlp(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())

    def loss_of(values, sample, target):
        return F.cross_entropy(torch.func.functional_call(model, values, (sample[None],)), target[None])

    norms = []
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        for _ in range(8):
            each = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0))(
                {k: p.detach() for k, p in parameters.items()}, x, y
            )
            for name, p in parameters.items():
                p.grad = None  # the next one may take its place in memory, and is another all the same
                p.grad = each[name].mean(0)
            norms.append({name: parameters[f"{name}.weight"].grad.norm().item() for name in "024"})
            optimizer.step()
            recorder.step(1.0)
    for step, expected in enumerate(norms):
        found = rows(recorder, step)
        assert {name: found[name]["grad_norm"] for name in "024"} == pytest.approx(expected, rel=1e-5)
        assert all(found[name]["update_ratio"] > 0 for name in "024")


# ---------------------------------------------------------------- what changes


class LoRA(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(4, 8) * 0.1), nn.Parameter(torch.ones(8, 4))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


def new_optimizer(model, optimizer):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def new_head(model, optimizer):
    model[4] = nn.Linear(8, 3)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    return optimizer


def new_parameter(model, optimizer):
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    optimizer.param_groups[0]["params"] = list(model.parameters())
    return optimizer


def assigned(model, optimizer):
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}, assign=True)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    return optimizer


def grown(model, optimizer):
    model.append(nn.Linear(3, 3))
    optimizer.add_param_group({"params": model[5].parameters()})
    return optimizer


def wrapped_in_lora(model, optimizer):
    model[2] = LoRA(model[2])
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)


def swapped(model, optimizer):
    """How subclasses of tensors are converted in place."""
    for p in list(model.parameters()):
        p.grad = None
        torch.utils.swap_tensors(p, nn.Parameter(p.detach().clone()))
    return optimizer


def other_hooks(model, optimizer):
    for module in model.modules():
        module._forward_hooks = OrderedDict()
    return optimizer


@pytest.mark.parametrize(
    "change", [new_optimizer, new_head, new_parameter, assigned, swapped, grown, wrapped_in_lora, other_hooks]
)
def test_changes_in_the_middle_are_followed(tmp_path, change):
    """From the very step on that comes after the change: gradients, updates, outputs, the learning rate and
    the order of layers.
    """
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        for step in range(4):
            if step == 2:
                optimizer = change(model, optimizer)
            expected = one_step(model, optimizer)
            recorder.step(1.0)
            if step < 2:
                continue
            recorder.sync()
            found = rows(recorder, step)
            for layer, (gradient, ratio) in expected.items():
                assert found[layer]["grad_norm"] == pytest.approx(gradient, rel=1e-4), (step, layer)
                assert found[layer]["update_ratio"] == pytest.approx(ratio, rel=1e-3), (step, layer)
            assert all(
                row["activation_std"] is not None and row["activation_grad_rms"] is not None
                for layer, row in found.items()
                if layer not in ("2.A", "2.B")
            )
            in_order = [layer for layer, _ in sorted(found.items(), key=lambda item: item[1]["depth"])]
            assert [layer.split(".")[0] for layer in in_order] == sorted(
                layer.split(".")[0] for layer in in_order
            )
    assert recorder.run.read("steps")["learning_rate"].to_pylist()[-1] == pytest.approx(
        optimizer.param_groups[0]["lr"]
    )
    assert all(type(m._forward_hooks) is OrderedDict and not m._forward_hooks for m in model.modules())


# ---------------------------------------------------------------- cost, and what is not ours


def test_the_search_behind_an_activation_is_bounded():
    """Many activations behind functional operations: each search ends at the one before."""
    looked = []

    class Counting(dict):
        def __contains__(self, key):
            looked.append(key)
            return dict.__contains__(self, key)

    index = ProducerIndex()
    index._calls = Counting()
    weight = torch.randn(4, 4, requires_grad=True)
    x = torch.randn(2, 4) @ weight
    index.add(0, LayerCall(8, {}, (0, 0)), x)
    index._calls = Counting(index._calls)
    for _ in range(300):
        x = x * 1.01 + 0.1
        y = torch.tanh(x)
        assert index.before(x, y)[0] == 0
        x = y
    assert len(looked) < 300 * 12, "a few nodes a search, not all that came before"
    for _ in range(2 * SEARCH_LIMIT):
        x = x + 1
    assert index.before(x) is None, "far from any layer nothing is said"


def test_only_the_model_itself_is_watched():
    model, other = mlp(), mlp()
    everywhere = nn.modules.module
    with LayerMeter(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        assert not any(
            value
            for name, value in vars(everywhere).items()
            if name.startswith("_global") and "hook" in name and isinstance(value, dict)
        )
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(type(m._forward_hooks) is OrderedDict and not m._forward_hooks for m in twin.modules())
        assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()), (
            "transformers keep their fast path"
        )


def test_hooks_of_others_stay_where_their_handles_find_them():
    model, (x, y) = mlp(), batch()
    seen: list[str] = []
    first = model[0].register_forward_hook(lambda *_: seen.append("before"))
    with LayerMeter(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.1)) as meter:
        second = model[2].register_forward_hook(lambda *_: seen.append("within"))
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        found = read(meter)
    assert all("activation_std" in found[name] for name in "024") and seen == ["before", "within"]
    model(x)
    assert seen == ["before", "within"] * 2
    first.remove()
    second.remove()
    model(x)
    assert seen == ["before", "within"] * 2 and not any(m._forward_hooks for m in model.modules())


def test_evaluation_in_another_thread_changes_nothing():
    """A pass without gradients, in the middle of a training pass."""

    class Net(nn.Sequential):
        def forward(self, x):
            for k, layer in enumerate(self):
                x = layer(x)
                if k == 2 and torch.is_grad_enabled():
                    aside = threading.Thread(target=self.evaluate, args=(x.shape[0],))
                    aside.start()
                    aside.join()
            return x

        @torch.no_grad()
        def evaluate(self, samples):
            self(torch.zeros(samples, 6))

    measured = []
    for kind in (nn.Sequential, Net):
        model, (x, y) = kind(*mlp()), batch()
        with LayerMeter(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.1)) as meter:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            measured.append(read(meter))
    assert measured[0] == measured[1] and "dead_fraction" in measured[0]["2"]


def test_a_function_before_global_pooling():
    class Net(nn.Module):
        def __init__(self, pool):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head, self.pool = nn.Conv2d(1, 16, 3), nn.Linear(16, 3), pool

        def forward(self, x):
            self.after = F.relu(self.conv(x) - 1)
            return self.head(self.pool(self.after).flatten(1))

    x, y = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    for pool in (
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_max_pool2d(x, 1),
        nn.AdaptiveAvgPool2d(1),
    ):
        model = Net(pool)
        with LayerMeter(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.1)) as meter:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            dead = read(meter)["conv"]["dead_fraction"]
        assert (
            dead == pytest.approx((model.after == 0).all(dim=(0, 2, 3)).double().mean().item())
            and 0 < dead < 1
        )


def test_training_in_evaluation_mode_is_measured_and_said(tmp_path):
    model, (x, y) = mlp(), batch()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        Recorder(model.eval(), optimizer, runs=tmp_path) as recorder,
        pytest.warns(UserWarning, match=r"model.train\(\)"),
    ):
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    assert all(row["activation_std"] > 0 for row in rows(recorder, 1).values()), (
        "also of the layer that is frozen"
    )
    assert (
        recorder.run.state()["facts"]["trained_in_evaluation"] is True
        and "batch_size" in recorder.run.state()["facts"]
    )


def test_evaluation_with_gradients_that_nobody_asks_for_is_not_measured():
    model, (x, y) = mlp(), batch()
    measured = []
    for evaluates in (False, True):
        twin = copy.deepcopy(model)
        with LayerMeter(twin, optimizer := torch.optim.SGD(twin.parameters(), lr=0.1)) as meter:
            loss = F.cross_entropy(twin(x), y)
            if evaluates:
                twin.eval()(100 * x)
                twin.train()
            loss.backward()
            optimizer.step()
            measured.append(read(meter))
    assert measured[0] == measured[1]


# ---------------------------------------------------------------- compiled


class Restless(nn.Module):
    """Everything a second pass could disturb: dropout, running statistics, attributes, lists, other random
    states.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return self.b(F.dropout(F.relu(self.norm(self.a(x))), 0.3, self.training))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_second_pass_leaves_a_compiled_network_as_it_was(tmp_path):
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    ends = []
    for watched in (False, True):
        torch._dynamo.reset()
        model = Restless()
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        losses = []
        with (
            Recorder(compiled, optimizer, runs=tmp_path) if watched else warnings.catch_warnings() as recorder
        ):
            for _ in range(3):
                optimizer.zero_grad()
                loss = F.cross_entropy(compiled(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                if watched:
                    recorder.step(loss)
        state = [v.clone() for v in model.state_dict().values()]
        ends.append(
            [
                *losses,
                *state,
                torch.get_rng_state(),
                torch.tensor([random.random(), np.random.rand()], dtype=torch.float64),
            ]
        )
    assert all(map(torch.equal, *ends))
    found, facts = rows(recorder, 0), recorder.run.state()["facts"]
    assert facts["shadow_pass"] == {"samples": 16, "batch": 64}
    first = Restless()
    output = first.a(x[:16])
    assert found["a"]["activation_std"] == pytest.approx(output.std(correction=0).item(), rel=1e-4)
    after = F.relu(first.norm(output))
    assert found["a"]["dead_fraction"] == pytest.approx((after == 0).all(0).double().mean().item())
    assert found["a"]["activation_grad_rms"] is None and found["a"]["grad_norm"] > 0
