"""Small data, and the loops that most reports share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.registry import Loop, Optimizers

LossFn = Callable[[Tensor, Tensor], Tensor]
Split = tuple[Tensor, Tensor, Tensor, Tensor]
"""(training inputs, training targets, held-out inputs, held-out targets)"""


# ---------------------------------------------------------------- data: the same for every seed


@cache
def digits() -> Split:
    """8 x 8 grey images in 0..1, (N, 1, 8, 8), and their ten classes; a fifth is held out."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(3))
    x = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    y = torch.tensor(raw.target)[order]
    return x[:1437], y[:1437], x[1437:], y[1437:]


@cache
def table(samples: int = 1200, features: int = 10, noise: float = 0.0) -> Split:
    """A smooth function of standard normal columns, variance about 1, (N, 1), plus ``noise`` times a
    normal.
    """
    generator = torch.Generator().manual_seed(17)
    x = torch.randn(samples, features, generator=generator)
    w = torch.randn(features, generator=generator) / features**0.5
    y = (
        torch.tanh(2 * x[:, 0] * x[:, 1]) * 0.6
        + x @ w * 0.8
        + noise * torch.randn(samples, generator=generator)
    )
    cut = samples * 4 // 5
    y = y.unsqueeze(1)
    return x[:cut], y[:cut], x[cut:], y[cut:]


@cache
def clusters(
    classes: int,
    features: int = 16,
    samples: int = 1500,
    spread: float = 1.0,
    shares: tuple[float, ...] | None = None,
) -> Split:
    """Gaussian clusters round random centres; ``shares``: how often each class comes."""
    generator = torch.Generator().manual_seed(29)
    centres = torch.randn(classes, features, generator=generator)
    weights = torch.tensor(shares) if shares else torch.ones(classes)
    y = torch.multinomial(weights, samples, replacement=True, generator=generator)
    x = centres[y] + spread * torch.randn(samples, features, generator=generator)
    cut = samples * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


@cache
def sentences(samples: int = 1500, length: int = 12, words: int = 30, seed: int = 5) -> Split:
    """Token ids; the class (0 or 1) says which of tokens 1 and 2 comes more often, and both come."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(3, words, (samples, length), generator=generator)
    y = torch.randint(2, (samples,), generator=generator)
    places = torch.rand(samples, length, generator=generator).argsort(1)
    for row in range(samples):
        x[row, places[row, :3]] = 1 + y[row]
        x[row, places[row, 3]] = 2 - y[row]
    cut = samples * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


# ---------------------------------------------------------------- networks


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Flatten, then linear layers with ``activation`` between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def convnet(classes: int = 10, width: int = 8) -> nn.Sequential:
    """Two convolutions and two linear layers for 8 x 8 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


# ------------------------------------------------ scores: 0 is the best constant answer, 1 is perfect


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs in evaluation mode; the model's mode is put back."""
    training = model.training
    model.eval()
    outputs = model(x)
    model.train(training)
    return outputs


def imitation_skill(generator: nn.Module, real: Tensor) -> float:
    """How near the mean of 1,000 made samples comes to that of the real ones: 1 is there, 0 is zero's
    distance.
    """
    with torch.no_grad():
        made = generator(torch.randn(1000, 4))
    return 1 - float((made.mean(0) - real.mean(0)).norm() / real.mean(0).norm())


def class_skill(outputs: Tensor, y: Tensor, classes: int | None = None) -> float:
    """Balanced accuracy of the largest output (or of a single one's sign), from guessing (0) to perfect
    (1).
    """
    answers = (
        outputs.argmax(1) if outputs.dim() > 1 and outputs.shape[1] > 1 else (outputs.flatten() > 0).long()
    )
    present = y.flatten().long().unique()
    recall = sum(float((answers[y.flatten() == k] == k).float().mean()) for k in present) / len(present)
    chance = 1 / len(present)
    return (recall - chance) / (1 - chance)


def fit_skill(outputs: Tensor, y: Tensor) -> float:
    """Explained share of the targets' variance, R^2; a model that is not finite explains none."""
    error, variance = F.mse_loss(outputs, y).item(), y.var(unbiased=False).item()
    return 1 - error / variance if math.isfinite(error) else -math.inf


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """Share of the batch whose largest output is its class."""
    return (outputs.argmax(1) == y).float().mean()


# ---------------------------------------------------------------- loops


def supervised(
    model: nn.Module,
    optimizer: Optimizers,
    data: Split,
    loss_fn: LossFn = F.cross_entropy,
    *,
    steps: int = 200,
    batch: int = 32,
    metric: Callable[[Tensor, Tensor], Tensor] | None = None,
    score: Callable[[Tensor, Tensor], float] = class_skill,
    indices: Callable[[int], Tensor] | None = None,
    after_backward: Callable[[], object] = lambda: None,
    after_step: Callable[[int], object] = lambda i: None,
    epoch: int | None = None,
) -> Loop:
    """The usual loop over random batches, or those of ``indices(i)``; validates after every ``epoch``
    steps.
    """
    x, y, held_x, held_y = data

    def step(i: int) -> Tensor | tuple[Tensor, Tensor]:
        rows = indices(i) if indices else torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        outputs = model(x[rows])
        loss = loss_fn(outputs, y[rows])
        loss.backward()
        after_backward()
        optimizer.step()
        after_step(i)
        return (loss, metric(outputs, y[rows])) if metric else loss

    def validate() -> tuple[float, float]:
        outputs = predict(model, held_x)
        return loss_fn(outputs, held_y).item(), metric(outputs, held_y).item() if metric else math.nan

    return Loop(
        model,
        optimizer,
        step,
        lambda: score(predict(model, held_x), held_y),
        steps,
        epoch,
        validate if epoch else None,
    )


def passes(count: int, batch: int) -> Callable[[int], Tensor]:
    """Batches of whole passes over ``count`` samples, shuffled anew for each pass."""
    state: dict[str, tuple[Tensor, ...]] = {}
    per_pass = math.ceil(count / batch)

    def rows(i: int) -> Tensor:
        if i % per_pass == 0:
            state["order"] = torch.randperm(count).split(batch)
        return state["order"][i % per_pass]

    return rows


def bandit(loss_of: Callable[[Tensor, Tensor], Tensor]) -> Loop:
    """A policy that finds by rewards of 0 and 1 which of four actions suits a state of eight numbers;
    ``loss_of`` takes the log-probabilities and rewards of 64 actions.
    """
    policy = mlp(8, 32, 4)
    best = torch.randn(8, 4, generator=torch.Generator().manual_seed(71))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)

    def step(i: int) -> Tensor:
        states = torch.randn(64, 8)
        chances = torch.distributions.Categorical(logits=policy(states))
        actions = chances.sample()
        rewards = (actions == (states @ best).argmax(1)).float()
        loss = loss_of(chances.log_prob(actions), rewards)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:
        states = torch.randn(2000, 8)
        return class_skill(predict(policy, states), (states @ best).argmax(1))

    return Loop(policy, optimizer, step, score, steps=300)
