"""One batch through a real model, forward and backward, no training: what each layer measures beside what theory says.

The model is left as it was: hooks are removed, parameters' gradients, buffers (batch norm's running statistics),
train/eval modes and the global random state are as before, whatever happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core import inits
from core.theory import METRICS

Row = dict[str, Any]


def probe(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> list[Row]:
    """Measure every convolution and linear layer of ``model`` on one batch, in train mode, in order of execution.

    Each row holds ``layer`` (name in the model), ``depth`` (0 = nearest the input), ``kind`` (class, lower case) and the
    quantities of ``theory.METRICS``, defined there; ``loss_fn(outputs, targets)`` must be the mean over the batch. A
    value that does not exist is None: across-sample quantities of a single sample, the cosine of a zero vector,
    gradients of a frozen weight. Of a layer that runs several times the first is measured.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, inits.LAYERS)}
    rows: dict[nn.Module, Row] = {}

    def watch(module: nn.Module, _: Any, output: Tensor) -> None:
        if module in rows:
            return
        row = {"layer": names[module], "depth": len(rows), "kind": type(module).__name__.lower(), **forward_metrics(output.detach())}
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
    return [{key: row[key] for key in ("layer", "depth", "kind", *METRICS)} for row in rows.values()]


def rms(values: Tensor) -> float:
    """Root mean square in double precision: float32 squares would underflow below 1e-19."""
    return float(values.detach().double().square().mean().sqrt())


def forward_metrics(output: Tensor) -> dict[str, float | None]:
    """``activation_rms``, ``signal_std`` and ``correlation`` of pre-activations, one sample a row."""
    samples = output.flatten(1)
    count = len(samples)
    result: dict[str, float | None] = {"activation_rms": rms(samples), "signal_std": None, "correlation": None}
    if count > 1:
        # Sample 0 is taken off first: close floats subtract exactly, so a signal 1e-7 of the value keeps its digits.
        differences = (samples - samples[:1]).double()
        result["signal_std"] = float(differences.var(dim=0, correction=0).mean().sqrt())
        unit = nn.functional.normalize(samples.double(), dim=1, eps=0)
        cosine = float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))
        result["correlation"] = cosine if cosine == cosine else None
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
