"""One batch through a real model, forward and backward, no training: what each layer measures beside what
theory says.

The model is left as it was: hooks are removed, parameters' gradients, buffers (batch norm's running
statistics), train/eval modes and the global random state are as before, whatever happens.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from initscope import networks, theory
from initscope.config.run_config import RunConfig
from initscope.data import loading
from initscope.data.datasets import Split
from initscope.networks import inits
from initscope.networks.outputs import training_loss
from initscope.theory import METRICS, any_network
from initscope.theory.forecast import forecast

Row = dict[str, Any]


def probe(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: Callable[[Any, Tensor], Tensor] = training_loss,
) -> list[Row]:
    """Measure every convolution and linear layer of ``model`` on one batch, in train mode, in order of
    execution.

    Each row holds ``layer`` (name in the model), ``depth`` (0 = nearest the input), ``kind`` (class, lower
    case), ``fan_in``, ``weight_rms`` and the quantities of ``theory.METRICS``, defined there;
    ``loss_fn(outputs, targets)`` must be the mean over the batch. A value that does not exist is None:
    across-sample quantities of a single sample, the cosine of a zero vector, gradients of a frozen weight. Of
    a layer that runs several times the first is measured.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, inits.LAYERS)}
    rows: dict[nn.Module, Row] = {}

    def watch(module: nn.Module, _: Any, output: Tensor) -> None:
        if module in rows:
            return
        row = {
            "layer": names[module],
            "depth": len(rows),
            "kind": type(module).__name__.lower(),
            "fan_in": inits.fans(module)[0],
            "weight_rms": rms(module.weight),
            **forward_metrics(output.detach()),
        }
        row |= {"activation_grad_rms": None, "grad_rms": None}
        rows[module] = row
        if output.requires_grad:
            output.register_hook(lambda grad: row.update(activation_grad_rms=rms(grad)))

    with _untouched(model), contextlib.ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_hook(watch).remove)
        model.train()
        with torch.enable_grad():
            loss = loss_fn(model(inputs), targets)
            modules = [module for module in rows if module.weight.requires_grad]
            if modules and loss.requires_grad:
                # autograd.grad and not backward(): nobody's .grad is touched.
                grads = torch.autograd.grad(loss, [module.weight for module in modules], allow_unused=True)
                for module, grad in zip(modules, grads, strict=True):
                    rows[module]["grad_rms"] = None if grad is None else rms(grad)
    return [
        {key: row[key] for key in ("layer", "depth", "kind", "fan_in", "weight_rms", *METRICS)}
        for row in rows.values()
    ]


def rms(values: Tensor) -> float:
    """Root mean square in double precision: float32 squares would underflow below 1e-19."""
    return float(values.detach().double().square().mean().sqrt())


def forward_metrics(output: Tensor) -> dict[str, float | None]:
    """``activation_rms``, ``signal_std`` and ``correlation`` of pre-activations, one sample a row."""
    samples = output.flatten(1)
    count = len(samples)
    result: dict[str, float | None] = {
        "activation_rms": rms(samples),
        "signal_std": None,
        "correlation": None,
    }
    if count > 1:
        # Sample 0 is taken off first: close floats subtract exactly, so a signal 1e-7 of the value keeps its
        # digits.
        differences = (samples - samples[:1]).double()
        result["signal_std"] = float(differences.var(dim=0, correction=0).mean().sqrt())
        unit = nn.functional.normalize(samples.double(), dim=1, eps=0)
        cosine = float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))
        result["correlation"] = None if math.isnan(cosine) else cosine
    return result


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore buffers, train/eval modes and the random state of the CPU."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, training in modes:
                module.training = training


NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Layers that take the scale out of what they are given."""
MOST_PIXELS = 2**18
"""Pixels of a probe's batch (samples x height x width): 5 samples at 224x224, 256 at 32x32. A CPU takes
seconds for it.
"""


def first_batch(config: RunConfig) -> tuple[Tensor, Tensor, int]:
    """(images, labels, classes): the batch that training starts with, cut to ``MOST_PIXELS`` (at least two
    samples).
    """
    batches = _Unresized(loading.raw(config), config)
    images, labels = next(batches.epoch(0))
    count = max(2, MOST_PIXELS // config.image_size**2)
    return images[:count], labels[:count], batches.classes


class _Unresized(loading.Data):
    """Data that resizes only the batches that are asked for."""

    def _hold(self, split: Split) -> tuple[Split, bool]:
        return split, not self.are_images


def probe_config(config: RunConfig, seeds: int = 1) -> list[list[Row]]:
    """``probe`` of the model of ``config`` on its first batch, on the CPU, for ``seeds`` init seeds from
    ``config.init_seed`` on.
    """
    return [rows for _, rows in _probes(config, seeds, *first_batch(config))]


def _probes(
    config: RunConfig, seeds: int, images: Tensor, labels: Tensor, classes: int
) -> Iterator[tuple[nn.Module, list[Row]]]:
    """(model, its rows) for each seed."""
    with _threads(config.threads):
        for seed in range(config.init_seed, config.init_seed + seeds):
            seeded = config.replace(init_seed=seed)
            channels = images.shape[1 if images.dim() == 4 else -1]
            model = networks.build(seeded, in_channels=channels, num_classes=classes, sample=images)
            yield model, probe(model, images, labels)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def predict(
    model: nn.Module, config: RunConfig, images: Tensor, labels: Tensor
) -> tuple[dict[str, Row], str | None]:
    """(by layer METRICS, ``made`` and ``band``; what is to be said about them) for a model built from
    ``config``.

    Chains have the theory of chains; any other network the moments over its graph (``any_network``). Where
    those cannot be had there are no rows, and the text says why.
    """
    scheme = config.init if theory.has_formula(config.init) else None
    try:
        layers = theory.module_layers(model, scheme, config.gain)
    except theory.TheoryUnavailable as error:
        return any_network.predict(model, images, labels, str(error))
    rows = theory.predict(layers, theory.input_stats(images.numpy(), labels.numpy()))
    return {row["layer"]: {**row, "made": "chain", "band": None} for row in rows}, None


def band(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Over several seeds: for each layer and metric {"min", "median", "max"}; None where a seed has no
    value.
    """
    result = []
    for layers in zip(*runs, strict=True):
        row = {key: layers[0][key] for key in ("layer", "depth")}
        for metric in METRICS:
            values = [layer[metric] for layer in layers]
            known = None not in values
            row[metric] = (
                {"min": min(values), "median": statistics.median(values), "max": max(values)}
                if known
                else None
            )
        result.append(row)
    return result


def report(config: RunConfig, seeds: int = 1) -> dict[str, Any]:
    """Measured beside predicted, and what is to be expected of the training: what ``initscope probe`` prints
    as JSON.

    ``layers``: {layer, depth, measured, predicted, made, band} with METRICS in ``measured`` (at
    ``config.init_seed``) and ``predicted``. ``made`` says how the prediction came about: ``chain``,
    ``rule``, ``sampled`` or ``unknown`` (None: there is none), ``band`` by which factors 95 of 100 draws of
    the weights differ from it, where that is known. ``forecast``: {outcome, reason}; ``seeds``, ``samples``,
    and with several seeds ``band``. ``theory`` says what is to be said about the predictions: why values are
    None, what was sampled.
    """
    images, labels, classes = first_batch(config)
    runs = []
    predicted: dict[str, Row] = {}
    reason, normalized = None, False
    for model, rows in _probes(config, seeds, images, labels, classes):
        if not runs:
            normalized = any(isinstance(module, NORMALIZATIONS) for module in model.modules())
            predicted, reason = predict(model, config, images, labels)
        runs.append(rows)
    layers = [
        {
            "layer": row["layer"],
            "depth": row["depth"],
            "measured": {metric: row[metric] for metric in METRICS},
            "predicted": {metric: predicted.get(row["layer"], {}).get(metric) for metric in METRICS},
            "made": predicted.get(row["layer"], {}).get("made"),
            "band": predicted.get(row["layer"], {}).get("band"),
        }
        for row in runs[0]
    ]
    said = forecast(runs[0], config, samples=len(images), normalized=normalized)
    result = {"layers": layers, "forecast": said, "seeds": seeds, "samples": len(images)}
    if seeds > 1:
        result["band"] = band(runs)
    if reason:
        result["theory"] = reason
    return result
