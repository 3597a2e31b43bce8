"""What the bench of planted faults is built from: small data, small networks, and a plain loop with the
two-line Recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initscope.config.run_config import RunConfig, quick
from initscope.data import datasets
from initscope.networks import vgg
from initscope.networks.inits import LAYERS, initialize
from initscope.recording.recorder import Recorder
from initscope.store import Run, Runs
from initscope.training.trainer import train

LossFn = Callable[[Tensor, Tensor], Tensor]


# ---------------------------------------------------------------- data


@cache
def digits(size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(train images, train labels, validation images, validation labels): digits in [0, 1] at ``size`` x
    ``size``.
    """
    raw = datasets.read("digits", size)
    parts = []
    for split in (raw.train, raw.validation):
        images = split.images / raw.white
        if size != images.shape[-1]:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        parts += [images, split.labels]
    return tuple(parts)


@cache
def clusters(
    classes: int = 10, features: int = 20, samples: int = 1000, spread: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gaussian clusters round random centres: (train x, train y, validation x, validation y), x about unit
    variance.
    """
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(classes, features, generator=generator)
    y = torch.randint(classes, (samples,), generator=generator)
    x = centres[y] + spread * torch.randn(samples, features, generator=generator)
    cut = samples * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


@cache
def waves(samples: int = 800, features: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A smooth regression: y = sin(sum of some x) + a linear part, with unit-variance inputs; y is (N, 1)."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(samples, features, generator=generator)
    y = (torch.sin(x[:, :3].sum(1)) + x[:, 3:].sum(1) / 2).unsqueeze(1)
    cut = samples * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def shuffled(y: Tensor, share: float = 1.0, seed: int = 3) -> Tensor:
    """``y`` with ``share`` of its entries permuted among themselves: those labels no longer belong to their
    inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    y = y.clone()
    y[chosen] = y[chosen[torch.randperm(len(chosen), generator=generator)]]
    return y


# ---------------------------------------------------------------- networks


def mlp(
    widths: Iterable[int] = (64, 128, 128, 10),
    activation: Callable[[], nn.Module] = nn.ReLU,
    init: str = "kaiming_normal",
    gain: float = 1.0,
    norm: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Fully connected layers of these widths, input first, with ``activation`` between them."""
    torch.manual_seed(seed)
    widths = list(widths)
    modules: list[nn.Module] = [nn.Flatten()]
    for i, (a, b) in enumerate(pairwise(widths)):
        modules.append(nn.Linear(a, b))
        if i < len(widths) - 2:
            modules += [nn.BatchNorm1d(b)] if norm else []
            modules.append(activation())
            modules += [nn.Dropout(dropout)] if dropout else []
    return initialize(nn.Sequential(*modules), init, gain=gain, seed=seed)


class PlainCNN(nn.Module):
    """Four 3x3 convolutions, two poolings and two linear layers; its nonlinearity is called as a function."""

    def __init__(
        self,
        channels: int = 16,
        classes: int = 10,
        size: int = 8,
        in_channels: int = 1,
        activation: Callable = F.relu,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.conv4 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.fc1 = nn.Linear(2 * channels * (size // 4) ** 2, 64)
        self.fc2 = nn.Linear(64, classes)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        act = self.activation
        x = F.max_pool2d(act(self.conv2(act(self.conv1(x)))), 2)
        x = F.max_pool2d(act(self.conv4(act(self.conv3(x)))), 2)
        return self.fc2(act(self.fc1(x.flatten(1))))


def cnn(init: str = "kaiming_normal", gain: float = 1.0, seed: int = 0, **shape: object) -> PlainCNN:
    torch.manual_seed(seed)
    return initialize(PlainCNN(**shape), init, gain=gain, seed=seed)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, added to what came in (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv2, self.bn2 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def resnet(
    blocks: int = 3,
    channels: int = 16,
    init: str = "default",
    gain: float = 1.0,
    classes: int = 10,
    seed: int = 0,
) -> nn.Sequential:
    """A residual network with batch norm for 8x8 images."""
    torch.manual_seed(seed)
    stem = [nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return initialize(
        nn.Sequential(*stem, *(Block(channels) for _ in range(blocks)), *head), init, gain=gain, seed=seed
    )


def small_vgg(
    name: str = "vgg11",
    init: str = "kaiming_normal",
    gain: float = 1.0,
    width: float = 0.125,
    batch_norm: bool = False,
) -> nn.Module:
    """The story's family on 32x32 images, an eighth as wide."""
    torch.manual_seed(0)
    return initialize(vgg(name, image_size=32, width=width, batch_norm=batch_norm), init, gain=gain, seed=0)


def with_bias(model: nn.Module, value: float, layers: slice = slice(None, -1)) -> nn.Module:
    """Set the biases of these layers (default: all but the last) to ``value``."""
    for module in [m for m in model.modules() if isinstance(m, LAYERS)][layers]:
        nn.init.constant_(module.bias, value)
    return model


def with_weights(model: nn.Module, value: float, layers: slice = slice(None)) -> nn.Module:
    """Set every weight of these layers to ``value``, and their biases to zero."""
    for module in [m for m in model.modules() if isinstance(m, LAYERS)][layers]:
        nn.init.constant_(module.weight, value)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


# ---------------------------------------------------------------- loops


@dataclass
class Loop:
    """What ``record`` is about to train with; a repair may change it."""

    model: nn.Module
    samples: tuple[Tensor, Tensor, Tensor, Tensor]
    optimizer: torch.optim.Optimizer
    loss_fn: LossFn
    update: bool
    per_step: Callable[[nn.Module, torch.optim.Optimizer], None]
    steps: int


REPAIR: ContextVar[Callable[[Loop], None] | None] = ContextVar("REPAIR", default=None)
"""Applied to a loop before it is trained: how ``follow`` carries out a remedy."""


def sgd(lr: float, momentum: float = 0.9) -> Callable:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def adam(lr: float = 1e-3) -> Callable:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def record(
    runs: Path,
    model: nn.Module,
    samples: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    optimizer: Callable | torch.optim.Optimizer = torch.optim.Adam,
    loss_fn: LossFn = F.cross_entropy,
    steps: int = 80,
    batch: int = 64,
    *,
    name: str = "",
    validate: bool = False,
    update: bool = True,
    per_step: Callable[[nn.Module, torch.optim.Optimizer], None] = lambda model, optimizer: None,
    floats: bool = False,
) -> Run:
    """Train ``model`` in a plain loop with the two-line Recorder and return the run.

    ``update=False`` leaves ``optimizer.step()`` out; ``per_step`` is called between ``backward`` and
    ``step``; ``validate`` also writes a row of accuracies an epoch; ``floats`` hands the recorder a number in
    place of the loss tensor.
    """
    torch.manual_seed(0)
    x, y, val_x, val_y = samples if samples is not None else digits()
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer([p for p in model.parameters() if p.requires_grad])
    loop = Loop(model, (x, y, val_x, val_y), optimizer, loss_fn, update, per_step, steps)
    if (repair := REPAIR.get()) is not None:
        repair(loop)
    model, (x, y, val_x, val_y), optimizer, loss_fn = loop.model, loop.samples, loop.optimizer, loop.loss_fn
    update, per_step, steps = loop.update, loop.per_step, loop.steps
    order, epoch, losses, correct, seen = iter(()), -1, 0.0, 0.0, 0
    generator = torch.Generator().manual_seed(1)
    model.train()
    with Recorder(model, optimizer, name=name, runs=runs) as recorder:
        for _ in range(steps):
            index = next(order, None)
            if index is None:
                if validate and epoch >= 0:
                    recorder.epoch(
                        epoch, losses / seen, correct / seen, *_evaluate(model, val_x, val_y, loss_fn)
                    )
                epoch, losses, correct, seen = epoch + 1, 0.0, 0.0, 0
                order = iter(torch.randperm(len(x), generator=generator).split(batch))
                index = next(order)
            optimizer.zero_grad()
            outputs = model(x[index])
            loss = loss_fn(outputs, y[index])
            loss.backward()
            per_step(model, optimizer)
            if update:
                optimizer.step()
            losses, seen = losses + loss.item() * len(index), seen + len(index)
            if validate:
                correct += (outputs.argmax(1) == y[index]).sum().item()
            recorder.step(loss.item() if floats else loss, epoch=epoch)
        if validate:
            recorder.epoch(epoch, losses / seen, correct / seen, *_evaluate(model, val_x, val_y, loss_fn))
    return recorder.run


@torch.no_grad()
def _evaluate(model: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFn) -> tuple[float, float]:
    model.eval()
    outputs = model(x)
    model.train()
    return loss_fn(outputs, y).item(), (outputs.argmax(1) == y).float().mean().item()


def trained(runs: Path, **changes: object) -> Run:
    """A run of the project's own trainer: the quick preset at an eighth of the width, with ``changes``."""
    config: RunConfig = quick().replace(
        **{"width": 0.125, "epochs": 3, "model": "vgg11", "device": "cpu", **changes}
    )
    run = Runs(runs).create(config)
    train(run)
    return run
