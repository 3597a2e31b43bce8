"""Every way of looping that people use, each against the same loop without the meter: a twin model, outputs
kept with ``retain_grad``, gradients read from ``.grad`` before clipping, and the contract's formulas in
float64. No code is shared.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from initscope.recording.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("error")
torch.set_num_threads(1)
WEIGHT = {"grad_norm", "grad_rms", "weight_norm", "update_ratio"}
OUTPUT = {"activation_mean", "activation_std", "signal_std", "activation_grad_rms"}


class Plain:
    """Watches a twin with hooks of its own. ``layers``: {row: module or (module, parameter)}, in the expected
    order.
    """

    def __init__(self, model: nn.Module, layers: dict[str, str | tuple[str, str]]):
        self.model = model
        self.layers = {
            row: where if isinstance(where, tuple) else (where, "weight") for row, where in layers.items()
        }
        self.outputs: dict[str, list[Tensor]] = {}
        for module in {module for module, _ in self.layers.values()}:
            model.get_submodule(module).register_forward_hook(
                lambda m, i, o, module=module: self._keep(module, o)
            )
        self.begin()

    def _keep(self, module: str, output: Tensor) -> None:
        if isinstance(output, Tensor) and self.model.training and torch.is_grad_enabled():
            if output.requires_grad:
                output.retain_grad()
            self.outputs.setdefault(module, []).append(output)

    def weight(self, row: str) -> Tensor:
        module, name = self.layers[row]
        return self.model.get_submodule(module).get_parameter(name)

    def begin(self) -> None:
        """A step begins: its weights are those before the update."""
        self.outputs, self.gradients = {}, {}
        self.before = {row: self.weight(row).detach().double().clone() for row in self.layers}

    def look(self, factor: float = 1.0) -> None:
        """The gradients as an optimizer would see them now."""
        for row in self.layers:
            gradient = self.weight(row).grad
            if gradient is not None:
                self.gradients[row] = gradient.detach().to_dense().double() * factor

    def rows(self, updated: bool = True, grad_factor: float = 1.0) -> dict[str, dict[str, float]]:
        """What should be recorded of the step."""
        result = {}
        for row, (module, _) in self.layers.items():
            before, after = self.before[row], self.weight(row).detach().double()
            values = {"weight_norm": before.square().sum().sqrt()}
            if updated:
                values["update_ratio"] = (after - before).square().sum().sqrt() / values["weight_norm"]
            if row in self.gradients:
                values["grad_norm"] = self.gradients[row].square().sum().sqrt()
                values["grad_rms"] = self.gradients[row].square().mean().sqrt()
            outputs = self.outputs.get(module, [])
            outputs = [o for o in outputs if o.grad is not None] or outputs[-1:]
            if outputs:
                every = torch.cat([o.detach().double().flatten() for o in outputs])
                spread = torch.cat(
                    [o.detach().double().var(0, correction=0).flatten().repeat(len(o)) for o in outputs]
                )
                values |= {
                    "activation_mean": every.mean(),
                    "activation_std": every.std(correction=0),
                    "signal_std": spread.mean().sqrt(),
                }
                if outputs[0].grad is not None:
                    errors = torch.cat([o.grad.double().flatten() for o in outputs]) * grad_factor
                    values["activation_grad_rms"] = errors.square().mean().sqrt()
            result[row] = {metric: float(value) for metric, value in values.items()}
        return result


def recorded(recorder: Recorder, step: int = -1) -> dict[str, dict[str, float]]:
    """{layer: {metric: value}} of a step in the file, the last by default; nulls left out."""
    table = recorder.run.read("layers").to_pylist()
    step = table[-1]["step"] if step == -1 else step
    # The stable rank, which few steps have, is compared in test_meter.
    skipped = ("step", "layer", "depth", "kind", "nonfinite", "stable_rank")
    return {
        r["layer"]: {k: v for k, v in r.items() if v is not None and k not in skipped}
        for r in table
        if r["step"] == step
    }


def assert_same(
    found: dict[str, dict], expected: dict[str, dict], rel: float = 1e-4, only: set[str] | None = None
) -> None:
    assert list(found) == list(expected)
    for layer, row in expected.items():
        measured = {k for k in found[layer] if k != "dead_fraction"}
        assert measured == (set(row) if only is None else set(row) & only), layer
        for metric in measured:
            near = rel * row["activation_std"] if metric == "activation_mean" else 1e-12
            assert found[layer][metric] == pytest.approx(row[metric], rel=rel, abs=near), (layer, metric)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))


MLP = {"0": "0", "2": "2", "4": "4"}


def batch(samples: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 8, generator=generator), torch.randint(4, (samples,), generator=generator)


def sgd(model: nn.Module, **options) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1, "momentum": 0.9} | options))


def follow(
    runs: Path,
    model: nn.Module,
    layers: dict,
    step: Callable[[nn.Module, torch.optim.Optimizer, Callable], Tensor],
    steps: int = 3,
    optimizer: Callable = sgd,
    only: set[str] | None = None,
    **options,
) -> Recorder:
    """Train ``model`` under a Recorder and its twin under ``Plain``: rows of every step alike, losses and
    weights the same to the bit.

    ``step(model, optimizer, look)`` is one round of the loop; it calls ``look()`` where the gradients stand
    as they should be recorded.
    """
    twin = copy.deepcopy(model)
    expected, losses, plain, other = [], [], Plain(twin, layers), optimizer(twin)
    torch.manual_seed(1)
    for _ in range(steps):
        plain.begin()
        losses.append(step(twin, other, plain.look).item())
        expected.append(plain.rows())
    random = torch.get_rng_state()
    mine = optimizer(model)
    torch.manual_seed(1)
    with Recorder(model, mine, runs=runs, **options) as recorder:
        for value in losses:
            loss = step(model, mine, lambda: None)
            recorder.step(loss)
            assert loss.item() == value, "the same loss to the bit"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    for k, rows in enumerate(expected):
        assert_same(recorded(recorder, k), rows, only=only)
    return recorder


def simple(model: nn.Module, optimizer: torch.optim.Optimizer, look: Callable) -> Tensor:
    x, y = batch()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    look()
    optimizer.step()
    return loss


# ---------------------------------------------------------------- loops


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(tmp_path, to_none):
    def step(model, optimizer, look):
        optimizer.zero_grad(set_to_none=to_none)
        loss = F.cross_entropy(model(batch()[0]), batch()[1])
        loss.backward()
        look()
        optimizer.step()
        return loss

    follow(tmp_path, mlp(), MLP, step)


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_accumulation_and_clipping(tmp_path, clip):
    def step(model, optimizer, look):
        x, y = batch()
        optimizer.zero_grad()
        for part in range(3):
            loss = F.cross_entropy(model(x[part::3]), y[part::3]) / 3
            loss.backward()
        look()
        if clip == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        else:
            nn.utils.clip_grad_value_(model.parameters(), 1e-4)
        optimizer.step()
        return loss

    follow(tmp_path, mlp(), MLP, step)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_kinds_of_optimizers(tmp_path, kind, options):
    follow(tmp_path, mlp(), MLP, simple, optimizer=lambda m: kind(m.parameters(), lr=1e-2, **options))


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_compiled_step(tmp_path, scheduled):
    """``optimizer.step = torch.compile(optimizer.step)`` calls no hooks: the update is measured around it."""

    def compiled(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if scheduled:
            torch.optim.lr_scheduler.StepLR(optimizer, 100)
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        made.append((optimizer, optimizer.step))
        return optimizer

    made = []
    follow(tmp_path, mlp(), MLP, simple, optimizer=compiled)
    assert all(optimizer.step is step for optimizer, step in made), "put back"


def test_a_step_inside_of_a_compiled_function(tmp_path):
    """Its hooks are never called: the weights are compared before and after."""

    def step(model, optimizer, look):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch()[0]), batch()[1])
        loss.backward()
        look()
        made.setdefault(id(optimizer), torch.compile(optimizer.step, backend="eager"))()
        return loss

    made = {}
    follow(tmp_path, mlp(), MLP, step)


def masters(model):
    """Copies that the loop writes back."""
    return [p.detach().clone() for p in model.parameters()]


def flat(model):
    """One long parameter that all of the model's are views of."""
    whole = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = 0
    for p in model.parameters():
        p.data, start = whole.data[start : start + p.numel()].view_as(p), start + p.numel()
    return [whole]


@pytest.mark.parametrize("trained", [masters, flat])
def test_an_optimizer_of_other_tensors(tmp_path, trained):
    """The update is what the model's own weights show of it when the step is over."""

    def step(model, optimizer, look):
        model.zero_grad()
        loss = F.cross_entropy(model(batch()[0]), batch()[1])
        loss.backward()
        look()
        own, others = list(model.parameters()), optimizer.param_groups[0]["params"]
        gradients = [p.grad for p in own]
        for p, gradient in zip(
            others,
            gradients if len(others) > 1 else [torch.cat([g.flatten() for g in gradients])],
            strict=True,
        ):
            p.grad = gradient.clone()
        optimizer.step()
        with torch.no_grad():
            for p, other in zip(own, others if len(others) > 1 else own, strict=True):
                p.copy_(other)
        return loss

    told = pytest.warns(UserWarning, match="unless the loop copies") if trained is masters else nullcontext()
    with told:
        recorder = follow(
            tmp_path, mlp(), MLP, step, optimizer=lambda model: torch.optim.SGD(trained(model), lr=0.1)
        )
    assert recorder.run.state()["facts"]["unoptimized"] == ([*MLP] if trained is masters else [])


def test_a_closure_that_is_called_again_and_again(tmp_path):
    """LBFGS: the row is that of the first evaluation, at the weights before the step."""

    def step(model, optimizer, look):
        looks = []

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch()[0]), batch()[1])
            loss.backward()
            if not looks:
                looks.append(look())
                for module in model.modules():  # the twin keeps outputs no longer
                    module._forward_hooks.clear()
            return loss

        return optimizer.step(closure)

    follow(
        tmp_path,
        mlp(),
        MLP,
        step,
        steps=1,
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=6, line_search_fn="strong_wolfe"),
    )


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_loss_scaling(tmp_path, fused, clip):
    """Gradients are those of the loss, not of the scaled loss; also where a step is skipped because some
    overflowed.
    """
    model, plain = mlp(), Plain(twin := mlp(), MLP)
    mine, other = sgd(model, fused=fused), sgd(twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with Recorder(model, mine, runs=tmp_path) as recorder:
        for k in range(3):
            x, y = batch(seed=k)
            plain.begin()
            other.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            plain.look()
            if clip:
                nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
            other.step()
            expected = plain.rows()

            mine.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(mine)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(mine)
            scaler.update()
            recorder.step(loss)
            recorder.sync()
            assert_same(recorded(recorder, k), expected, rel=1e-3)
    assert not hasattr(torch.amp.GradScaler.scale, "__wrapped__")


def test_an_overflow_under_loss_scaling(tmp_path):
    """At the first steps a scaler's factor is often too large: what did not overflow is right, and nothing
    was updated.
    """
    model = mlp()
    with torch.no_grad():
        model[4].weight.mul_(1e3)
    plain = Plain(twin := copy.deepcopy(model), MLP)
    x, y = batch()
    F.cross_entropy(twin(x), y).backward()
    plain.look()
    expected = plain.rows(updated=False)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=2.0**125), sgd(model)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        recorder.step(loss)
    found = recorded(recorder)
    finite = [name for name in MLP if math.isfinite(found[name].get("grad_norm", math.nan))]
    assert 0 < len(finite) < 3, "some overflowed and some did not"
    for name in finite:
        assert found[name]["grad_norm"] == pytest.approx(expected[name]["grad_norm"], rel=1e-3)
    assert all("update_ratio" not in row for row in found.values())


def test_bfloat16_autocast(tmp_path):
    def step(model, optimizer, look):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(batch()[0]).float(), batch()[1])
        loss.backward()
        look()
        optimizer.step()
        return loss

    follow(tmp_path, mlp(), MLP, step)


def test_validation_in_between(tmp_path):
    """In evaluation mode, under no_grad, and by people who forget both."""

    def step(model, optimizer, look):
        with torch.no_grad():
            model(100 * batch()[0])
        model.eval()
        model(100 * batch()[0])
        model.train()
        model(100 * batch()[0])  # no gradient reaches it
        return simple(model, optimizer, look)

    follow(tmp_path, mlp(), MLP, step)


def test_gradients_for_inputs(tmp_path):
    """A gradient penalty and an adversarial example: passes that are not the loss's."""

    def step(model, optimizer, look):
        x = batch()[0].requires_grad_()
        optimizer.zero_grad()
        torch.autograd.grad(1000 * model(x).sum(), x)
        outputs = model(x)
        (slope,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
        loss = F.cross_entropy(outputs, batch()[1]) + slope.square().mean()
        loss.backward()
        look()
        optimizer.step()
        return loss

    model, plain = mlp(), Plain(twin := mlp(), MLP)
    other = sgd(twin)
    # The twin's outputs of the first pass are not the loss's either.
    x = batch()[0].requires_grad_()
    outputs = twin(x)
    (slope,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
    for kept in plain.outputs.values():
        kept[0].grad = None
    (F.cross_entropy(outputs, batch()[1]) + slope.square().mean()).backward()
    plain.look()
    other.step()
    expected, mine = plain.rows(), sgd(model)
    with Recorder(model, mine, runs=tmp_path) as recorder:
        recorder.step(step(model, mine, lambda: None))
    assert_same(recorded(recorder), expected)


def test_two_backward_passes_through_one_forward_pass(tmp_path):
    """The weights' gradients add up; of the output's only the parts are seen, so it is left out."""

    def step(model, optimizer, look):
        optimizer.zero_grad()
        outputs = model(batch()[0])
        loss = F.cross_entropy(outputs, batch()[1])
        loss.backward(retain_graph=True)
        outputs.square().mean().backward()
        look()
        optimizer.step()
        return loss

    follow(tmp_path, mlp(), MLP, step, only=WEIGHT | OUTPUT - {"activation_grad_rms"})


def test_an_optimizer_for_each_parameter_stepped_in_the_backward_pass(tmp_path):
    """PyTorch's way to save memory: no gradient is left when the pass ends."""
    plain = Plain(twin := mlp(), MLP)
    simple(twin, sgd(twin), plain.look)
    model = mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    with Recorder(model, list(optimizers.values()), runs=tmp_path) as recorder:
        loss = F.cross_entropy(model(batch()[0]), batch()[1])
        loss.backward()
        recorder.step(loss)
    assert all(p.grad is None for p in model.parameters())
    assert_same(recorded(recorder), plain.rows())


def test_fast_weights(tmp_path):
    """Meta-learning: the loss of weights that are a function of the model's, called through
    ``functional_call``.
    """

    def step(model, optimizer, look):
        x, y = batch()
        slow = dict(model.named_parameters())
        loss = F.cross_entropy(torch.func.functional_call(model, slow, (x,)), y)
        slopes = torch.autograd.grad(loss, list(slow.values()), create_graph=True)
        fast = {
            name: weight - 0.1 * slope for (name, weight), slope in zip(slow.items(), slopes, strict=True)
        }
        loss = F.cross_entropy(torch.func.functional_call(model, fast, (x,)), y)
        loss.backward()
        look()
        optimizer.step()
        return loss

    model, plain = mlp(), Plain(twin := mlp(), MLP)
    step(twin, sgd(twin), plain.look)
    optimizer = sgd(model)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        recorder.step(step(model, optimizer, lambda: None))
    found = {layer: {metric: row[metric] for metric in WEIGHT} for layer, row in recorded(recorder).items()}
    assert_same(found, plain.rows(), only=WEIGHT)


def test_two_recorders_at_once(tmp_path):
    """One within the other on one model, and two models beside each other."""
    model, other = mlp(), mlp(seed=1)
    optimizer, others = sgd(model), sgd(other)
    plain = Plain(twin := mlp(), MLP)
    twins, expected = sgd(twin), []
    with Recorder(model, optimizer, runs=tmp_path) as outer, Recorder(other, others, runs=tmp_path) as beside:
        with Recorder(model, optimizer, runs=tmp_path, every=2) as inner:
            for _ in range(3):
                plain.begin()
                simple(twin, twins, plain.look)
                expected.append(plain.rows())
                loss = simple(model, optimizer, lambda: None)
                beside.step(simple(other, others, lambda: None))
                outer.step(loss)
                inner.step(loss)
        beside.step(simple(other, others, lambda: None))
    for k, rows in enumerate(expected):
        assert_same(recorded(outer, k), rows)
    assert_same(recorded(inner), expected[2])
    assert inner.run.read("steps")["step"].to_pylist() == [0, 2] and len(beside.run.read("steps")) == 4


# ---------------------------------------------------------------- models


def test_rectifiers_that_write_over_their_input(tmp_path):
    plain = Plain(twin := mlp(), MLP)
    simple(twin, sgd(twin), plain.look)
    model = mlp()
    model[1].inplace = True
    optimizer = sgd(model)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        recorder.step(simple(model, optimizer, lambda: None))
    assert_same(recorded(recorder), plain.rows())


def test_frozen_layers_and_one_that_thaws(tmp_path):
    model = mlp()
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    count = iter(range(100))

    def step(model, optimizer, look):
        model[2].weight.requires_grad_(next(count) % 3 > 0)  # three steps for the twin, three for the model
        return simple(model, optimizer, look)

    recorder = follow(tmp_path, model, MLP, step)
    assert "grad_norm" not in recorded(recorder, 0)["2"] and recorded(recorder, 0)["2"]["update_ratio"] == 0
    assert (
        "grad_norm" in recorded(recorder, 2)["2"] and "activation_grad_rms" not in recorded(recorder, 2)["0"]
    )


class Language(nn.Module):
    """Tied weights, a layer that runs twice, an output that is a mapping."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> dict:
        x = torch.relu(self.block(torch.relu(self.block(self.embed(tokens)))))
        logits = self.head(x)
        return {
            "loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            "logits": logits,
            "hidden": (x, [x]),
        }


def test_shared_weights_and_repeated_modules(tmp_path):
    torch.manual_seed(0)
    tokens = torch.randint(9, (5, 7))

    def step(model, optimizer, look):
        optimizer.zero_grad()
        loss = model(tokens=tokens, labels=tokens.roll(1))["loss"]
        loss.backward()
        look()
        optimizer.step()
        return loss

    recorder = follow(tmp_path, Language(), {"embed": "embed", "block": "block", "head": "head"}, step)
    rows = recorded(recorder)
    assert {m: rows["embed"][m] for m in WEIGHT} == {m: rows["head"][m] for m in WEIGHT}, (
        "one weight, one gradient"
    )
    assert recorder.run.state()["facts"]["batch_size"] == 5


def test_outputs_of_every_shape(tmp_path):
    class Net(nn.Module):
        def __init__(self, form):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.form = nn.Linear(8, 16), nn.Linear(16, 4), form

        def forward(self, x):
            return self.form(self.b(torch.relu(self.a(x))))

    class Output(dict):  # transformers' ModelOutput: a mapping with attributes
        __getattr__ = dict.__getitem__

    @dataclasses.dataclass
    class Logits:
        aux: Tensor
        logits: Tensor

    forms = {
        "tuple": (lambda x: (x, x.sum()), lambda o: o[0]),
        "mapping": (lambda x: {"aux": x.sum(), "logits": x}, lambda o: o["logits"]),
        "attributes": (lambda x: Output(loss=x.mean(), logits=x), lambda o: o.logits),
        "dataclass": (lambda x: Logits(x.sum(), x), lambda o: o.logits),
    }
    for name, (form, take) in forms.items():

        def step(model, optimizer, look, take=take):
            optimizer.zero_grad()
            loss = F.cross_entropy(take(model(batch()[0])), batch()[1])
            loss.backward()
            look()
            optimizer.step()
            return loss

        recorder = follow(tmp_path / name, Net(form), {"a": "a", "b": "b"}, step)
        facts = recorder.run.state()["facts"]
        assert (
            facts["outputs"] == 4
            and facts["loss"]["chain"] == ["NllLoss", "LogSoftmax"]
            and facts["targets"]["price"] > 0
        )


def test_a_gan(tmp_path):
    """Two optimizers: each weight's gradient is the one its own optimizer saw, whatever passed through it
    afterwards.
    """

    class Gan(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.generator = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))
            self.critic = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def optimizers(model):
        return [
            torch.optim.SGD(model.generator.parameters(), lr=0.1),
            torch.optim.Adam(model.critic.parameters(), lr=0.01),
        ]

    def step(model, optimizers, look):
        generator, critic = optimizers
        fake = model.generator(torch.randn(12, 3))
        critic.zero_grad()
        (
            F.softplus(model.critic(fake.detach())).mean() + F.softplus(-model.critic(batch()[0])).mean()
        ).backward()
        look("critic")
        critic.step()
        generator.zero_grad()
        loss = F.softplus(-model.critic(fake)).mean()
        loss.backward()
        look("generator")
        generator.step()
        return loss

    layers = {name: name for name in ("generator.0", "generator.2", "critic.0", "critic.2")}
    model, twin = Gan(), Gan()
    plain, expected = Plain(twin, layers), []
    torch.manual_seed(1)

    def look(part):
        saved = dict(plain.gradients)
        plain.look()
        plain.gradients = saved | {k: v.clone() for k, v in plain.gradients.items() if k.startswith(part)}

    theirs = optimizers(twin)
    for _ in range(3):
        plain.begin()
        step(twin, theirs, look)
        expected.append(plain.rows())
    torch.manual_seed(1)
    mine = optimizers(model)
    with Recorder(model, mine, runs=tmp_path) as recorder:
        for _ in range(3):
            recorder.step(step(model, mine, lambda part: None))
    for k, rows in enumerate(expected):
        assert_same(recorded(recorder, k), rows)
    assert (
        recorder.run.state()["facts"]["optimizer"] == "SGD, Adam"
        and recorder.run.state()["facts"]["unoptimized"] == []
    )

    # One update a recorded step, by turns: a network whose turn it is not has no gradient to show.
    with Recorder(model, mine, runs=tmp_path) as recorder:
        mine[1].zero_grad()
        loss = F.softplus(model.critic(model.generator(torch.randn(12, 3)))).mean()
        loss.backward()
        mine[1].step()
        recorder.step(loss)
    rows = recorded(recorder)
    assert "grad_norm" in rows["critic.0"] and {"grad_norm", "update_ratio"}.isdisjoint(rows["generator.0"])


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(tmp_path, reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.a, self.b, self.head = (
                nn.Linear(8, 16),
                nn.Linear(16, 16),
                nn.Linear(16, 16),
                nn.Linear(16, 4),
            )
            self.checkpointing = True

        def block(self, x):
            return F.dropout(torch.tanh(self.b(torch.tanh(self.a(x)))), 0.3)

        def forward(self, x):
            x = self.stem(x)
            x = checkpoint(self.block, x, use_reentrant=reentrant) if self.checkpointing else self.block(x)
            return self.head(x)

    # The twin does without: the numbers must be the same.
    model, plain = Net(), Plain(twin := Net(), {name: name for name in ("stem", "a", "b", "head")})
    twin.checkpointing = False
    torch.manual_seed(2)
    simple(twin, sgd(twin), plain.look)
    optimizer = sgd(model)
    torch.manual_seed(2)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        recorder.step(simple(model, optimizer, lambda: None))
    assert_same(recorded(recorder), plain.rows())


def test_parametrizations(tmp_path):
    """The weight that is computed is never read (that turns spectral_norm's vectors); its parameters are
    followed.
    """
    torch.manual_seed(0)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16))
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(16, 12))
    layers = {
        "0": ("0", "parametrizations.weight.original"),
        "2.original0": ("2", "parametrizations.weight.original0"),
        "2.original1": ("2", "parametrizations.weight.original1"),
        "4": "4",
    }
    model = nn.Sequential(spectral, nn.ReLU(), weighted, nn.Tanh(), nn.Linear(12, 4))
    plain = Plain(copy.deepcopy(model), layers)
    simple(plain.model, sgd(plain.model), plain.look)
    optimizer = sgd(model)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        recorder.step(simple(model, optimizer, lambda: None))
    assert all(map(torch.equal, model.state_dict().values(), plain.model.state_dict().values())), (
        "buffers too"
    )
    expected = plain.rows()
    expected["2.original0"] = {m: v for m, v in expected["2.original0"].items() if m in WEIGHT}
    assert_same(recorded(recorder), expected)


def test_lazy_modules(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))
    twin = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = sgd(model)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        x, y = batch()
        loss = F.cross_entropy(model(x), y)
        twin.load_state_dict(model.state_dict())
        loss.backward()
        optimizer.step()
        recorder.step(loss)
    plain = Plain(twin, {"0": "0", "2": "2"})
    simple(twin, sgd(twin), plain.look)
    assert_same(recorded(recorder), plain.rows())
    assert recorder.run.state()["facts"]["parameters"] == 8 * 16 + 16 + 16 * 4 + 4
    assert set(recorder.run.read("layers")["kind"].to_pylist()) == {"linear"}


# ---------------------------------------------------------------- wrappers


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("when", ["before", "inside", "in place"])
def test_compiled(tmp_path, when):
    """Outputs are measured by a second pass, here of the whole small batch; what only the compiled graph
    would tell of them is null.
    """
    plain = Plain(twin := mlp(), MLP)
    other, expected = sgd(twin), []
    for _ in range(2):
        plain.begin()
        simple(twin, other, plain.look)
        expected.append(plain.rows())
    torch._dynamo.reset()
    model = mlp()
    if when == "in place":
        model.compile(backend="aot_eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="aot_eager")
        if when == "before":
            compiled(batch()[0])
    optimizer = sgd(model)
    torch._dynamo.utils.counters.clear()
    with Recorder(compiled, optimizer, runs=tmp_path) as recorder:
        for _ in range(2):
            recorder.step(simple(compiled, optimizer, lambda: None))
    for k in range(2):
        assert_same(recorded(recorder, k), expected[k], only=WEIGHT | OUTPUT - {"activation_grad_rms"})
        assert "dead_fraction" in recorded(recorder, k)["0"]
    assert recorder.run.state()["facts"]["shadow_pass"] == {"samples": 12, "batch": 12}
    compiled(batch()[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= (0 if when == "before" else 1), (
        "compiled no second time"
    )
    assert recorder.run.state()["facts"]["outputs"] == 4


def test_a_compiled_pass_that_would_leave_a_trace_is_not_repeated(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.own = mlp(), torch.Generator().manual_seed(1)

        def forward(self, x):
            return self.body(x + torch.rand(x.shape, generator=self.own))

    losses = []
    for recorded_too in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Noisy()
        compiled, optimizer = torch.compile(model, backend="eager"), sgd(model)
        with Recorder(compiled, optimizer, runs=tmp_path) if recorded_too else nullcontext() as recorder:
            for _ in range(3):
                loss = simple(compiled, optimizer, lambda: None)
                losses.append(loss.item())
                if recorder:
                    recorder.step(loss)
    assert losses[:3] == losses[3:]
    assert "torch.Generator" in recorder.run.state()["facts"]["shadow_pass"]["failed"]


@pytest.mark.parametrize("scripted", ["part", "all", "traced"])
def test_scripted_modules_are_passed_over(tmp_path, scripted):
    """They take no hooks: what is left is measured, and of nothing at all the loss is recorded."""
    x, y = torch.randn(12, 6), torch.randn(12, 3)

    def train(recorded):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        model = nn.Sequential(first, nn.Linear(5, 3))
        with pytest.warns(FutureWarning, match="deprecated"):
            if scripted == "part":
                model[0] = torch.jit.script(first)
            else:
                model = torch.jit.script(model) if scripted == "all" else torch.jit.trace(model, x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses, expected = [], []
        with (
            pytest.warns(UserWarning, match="made by torch.jit") if recorded else nullcontext(),
            Recorder(model, optimizer, runs=tmp_path) if recorded else nullcontext() as recorder,
        ):
            for _ in range(9):
                optimizer.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                expected.append(list(model.parameters())[2].grad.double().norm().item())
                optimizer.step()
                losses.append(loss.item())
                if recorded:
                    recorder.step(loss)
        return losses, [p.detach().clone() for p in model.parameters()], expected, recorder

    bare, recorded = train(False), train(True)
    assert bare[0] == recorded[0] and all(map(torch.equal, bare[1], recorded[1]))
    run = recorded[3].run
    assert [row["loss"] for row in run.read("steps").to_pylist()] == pytest.approx(bare[0], rel=1e-6)
    rows = run.read("layers").to_pylist()
    assert {row["layer"] for row in rows} == ({"1"} if scripted == "part" else set())
    assert [row["grad_norm"] for row in rows] == pytest.approx(bare[2] if rows else [], rel=1e-5)
    state = run.info().state
    assert state["status"] == "finished" and "recording_error" not in state["facts"]
    named = "0 are" if scripted == "part" else "the model are"
    assert state["facts"]["not_measured"].startswith(f"the layers of {named} not measured")


def test_data_parallel_and_copies(tmp_path):
    """A wrapper that only calls the model: names are the model's own."""
    plain = Plain(twin := mlp(), MLP)
    simple(twin, sgd(twin), plain.look)
    model = nn.DataParallel(mlp())
    optimizer = sgd(model)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        recorder.step(simple(model, optimizer, lambda: None))
    assert_same(recorded(recorder), plain.rows())


def test_copies_and_pickles_in_the_middle(tmp_path):
    """A moving average, a checkpoint of the whole module: free of the recorder, and training a copy records
    nothing.
    """
    model = mlp()
    optimizer = sgd(model)
    with Recorder(model, optimizer, runs=tmp_path) as recorder:
        loss = simple(model, optimizer, lambda: None)
        average = copy.deepcopy(model)
        torch.save(model, buffer := io.BytesIO())
        restored = pickle.loads(pickle.dumps((model, optimizer)))[0]
        simple(average, sgd(average), lambda: None)
        restored(batch()[0]).sum().backward()
        recorder.step(loss)
    buffer.seek(0)
    for other in (average, restored, torch.load(buffer, weights_only=False)):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())
        assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in other.parameters())
    twin = mlp()
    plain = Plain(twin, MLP)
    simple(twin, sgd(twin), plain.look)
    assert_same(recorded(recorder), plain.rows())


WORKER = """
    import os, sys, torch, torch.nn.functional as F
    import torch.distributed as dist
    from torch import nn
    from initscope.recording.recorder import Recorder
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1e-4)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.load(f"{folder}/batch.pt")
    mine = slice(rank, None, 2)
    with Recorder(ddp, optimizer, runs=f"{folder}/runs") as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            with ddp.no_sync():
                (F.cross_entropy(ddp(x[mine]), y[mine]) / 2).backward()
            loss = F.cross_entropy(ddp(x[mine]), y[mine]) / 2
            loss.backward()
            nn.utils.clip_grad_norm_(ddp.parameters(), 1e-2)
            optimizer.step()
            recorder.step(loss)
        recorder.epoch(0, 1.0, 0.1, 1.0, 0.1)
    assert (recorder.run is None) == (rank == 1)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the interpreter, and abort it
"""


def test_distributed_data_parallel(tmp_path):
    """Two real processes: the first records, and what it records is the gradient averaged over both."""
    x, y = batch()
    torch.save((x, y), tmp_path / "batch.pt")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    script = textwrap.dedent(WORKER)
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    from initscope.store import Runs

    (info,) = Runs(tmp_path / "runs").list()
    assert (info.status, info.config["model"]) == ("finished", "Sequential")
    model = mlp()
    plain, optimizer = Plain(model, MLP), sgd(model)
    rows = Runs(tmp_path / "runs").get(info.run).read("layers").to_pylist()
    for step in range(2):
        plain.begin()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        plain.look()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        optimizer.step()
        for name, expected in plain.rows().items():
            (row,) = [r for r in rows if (r["step"], r["layer"]) == (step, name)]
            for metric in WEIGHT:
                assert row[metric] == pytest.approx(expected[metric], rel=1e-3), (step, name, metric)
