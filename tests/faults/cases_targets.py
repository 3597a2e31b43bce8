"""Faults of targets and of the optimizer's settings: unequal and sorted classes, targets out of reach, weight
decay, and odd healthy runs.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initscope.recording.recorder import Recorder
from initscope.store import Run
from tests.faults.kit import adam, clusters, cnn, digits, mlp, record, sgd, waves
from tests.faults.registry import case


def imbalanced(share: float, classes: int = 2, spread: float = 4.0) -> tuple:
    """Overlapping clusters of which the first class makes up ``share``."""
    x, y, val_x, val_y = clusters(classes, 20, 6000, spread)
    keep = (y > 0) & (
        torch.rand(len(y), generator=torch.Generator().manual_seed(5)) < (1 - share) / share / (classes - 1)
    )
    chosen = keep | (y == 0)
    return x[chosen] / spread, y[chosen], val_x / spread, val_y


def yes(samples: tuple) -> tuple:
    """Classes 0 and 1 as targets of one output, class 1 being the rare one."""
    x, y, val_x, val_y = samples
    return x, y.float().unsqueeze(1), val_x, val_y.float().unsqueeze(1)


def in_order(
    runs: Path,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss_fn: object = F.cross_entropy,
    rate: float = 0.05,
    steps: int = 120,
) -> Run:
    """Train on batches in the order of the targets."""
    order = y.flatten().argsort(stable=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    with Recorder(model, optimizer, runs=runs) as recorder:
        for i, index in enumerate((order.split(32) * 100)[:steps]):
            optimizer.zero_grad()
            loss = loss_fn(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
            recorder.step(loss, epoch=32 * i // len(x))
    return recorder.run


# ---------------------------------------------------------------- unequal classes


@case("mlp", "class_collapse")
def one_percent_of_two_classes(runs: Path) -> Run:
    return record(runs, mlp((20, 32, 2)), imbalanced(0.97), optimizer=sgd(0.01), steps=120)


@case("mlp", "class_collapse")
def rare_yes_of_one_output(runs: Path) -> Run:
    return record(
        runs,
        mlp((20, 32, 1)),
        yes(imbalanced(0.97, spread=8.0)),
        adam(3e-3),
        F.binary_cross_entropy_with_logits,
        steps=150,
    )


@case("cnn", "class_collapse")
def background_of_every_pixel(runs: Path) -> Run:
    x = digits()[0]
    y = (
        ((x > 0.9) & (torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.2))
        .long()
        .squeeze(1)
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return record(runs, model, (x, y, x, y), adam(3e-3), steps=150)


@case("mlp", "labels_unrelated")
def all_labels_are_zero(runs: Path) -> Run:
    x, y, val_x, val_y = digits()
    return record(runs, mlp(), (x, y * 0, val_x, val_y * 0), steps=80)


# ---------------------------------------------------------------- order and scale


@case("mlp", "data_order")
def digits_in_order(runs: Path) -> Run:
    x, y, *_ = digits()
    return in_order(runs, mlp(), x, y)


@case("cnn", "data_order")
def digits_in_order_without_validation_adam_rate(runs: Path) -> Run:
    x, y, *_ = digits()
    return in_order(runs, cnn(), x, y, rate=0.01, steps=200)


@case("mlp", "data_order")
def sorted_regression(runs: Path) -> Run:
    x, y, *_ = waves()
    return in_order(runs, mlp((8, 64, 64, 1)), x, y, F.mse_loss, rate=0.01)


@case("mlp", "target_scale")
def targets_in_thousands(runs: Path) -> Run:
    x, y, val_x, val_y = waves()
    return record(runs, mlp((8, 64, 64, 1)), (x, 300 * y + 5000, val_x, val_y), loss_fn=F.mse_loss, steps=150)


@case("mlp", "target_scale")
def targets_that_blow_up_sgd(runs: Path) -> Run:
    x, y, val_x, val_y = waves()
    return record(runs, mlp((8, 64, 64, 1)), (x, 1000 * y + 2000, val_x, val_y), sgd(0.01), F.mse_loss)


@case("mlp", "target_scale")
def absolute_error_of_far_targets(runs: Path) -> Run:
    x, y, val_x, val_y = waves()
    return record(runs, mlp((8, 64, 64, 1)), (x, 20 * y + 2000, val_x, val_y), loss_fn=F.l1_loss, steps=150)


# ---------------------------------------------------------------- weight decay


@case("cnn", "weight_decay_too_high")
def decay_of_sgd(runs: Path) -> Run:
    return record(
        runs,
        cnn(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.5),
        steps=150,
    )


@case("mlp", "weight_decay_too_high")
def decay_of_adam(runs: Path) -> Run:
    return record(runs, mlp(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1.0), steps=200)


@case("mlp", "weight_decay_too_high")
def decoupled_decay(runs: Path) -> Run:
    return record(
        runs, mlp(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=50.0), steps=150
    )


# ---------------------------------------------------------------- rate, outputs and loss


@case("mlp", "lr_too_low")
def rate_that_decays_every_step(runs: Path) -> Run:
    def decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] *= 0.3

    return record(runs, mlp(), optimizer=sgd(0.01), steps=100, per_step=decay)


@case("mlp", "lr_too_low", finds=("gradient_clipped",))
def clipped_to_a_hundred_thousandth(runs: Path) -> Run:
    def clip(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1e-5)

    return record(runs, mlp(), optimizer=sgd(0.1), steps=100, per_step=clip)


class Tied(nn.Module):
    """Next tokens by a softmax over the embedding itself, with its N(0, 1) weights."""

    def __init__(self, tokens: int = 100, size: int = 128):
        super().__init__()
        self.embedding, self.body = nn.Embedding(tokens, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        return F.layer_norm(h + F.relu(self.body(h)), (h.shape[-1],)) @ self.embedding.weight.T


@case("mlp", "init_too_large")
def shared_embedding_as_output(runs: Path) -> Run:
    torch.manual_seed(0)
    x = torch.randint(100, (1000, 6), generator=torch.Generator().manual_seed(1))
    y = (x * 7 + 3) % 100
    return record(
        runs,
        Tied(),
        (x, y, x, y),
        adam(1e-3),
        lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()),
        steps=80,
    )


@case("mlp", "loss_misuse")
def ten_classes_on_one_sigmoid(runs: Path) -> Run:
    x, y, val_x, val_y = digits()
    samples = x, y.float().unsqueeze(1), val_x, val_y.float().unsqueeze(1)
    return record(runs, mlp((64, 64, 1)), samples, adam(1e-3), F.binary_cross_entropy_with_logits, steps=100)


# ---------------------------------------------------------------- healthy, though it looks odd


@case("mlp", "healthy")
def noise_is_most_of_the_targets(runs: Path) -> Run:
    x, y, val_x, val_y = waves(3000)
    noise = torch.Generator().manual_seed(6)
    return record(
        runs,
        mlp((8, 32, 1)),
        (x, y + 4 * torch.randn(y.shape, generator=noise), val_x, val_y),
        adam(3e-3),
        F.mse_loss,
        steps=250,
    )


@case("mlp", "healthy")
def rare_class_with_weights(runs: Path) -> Run:
    weight = torch.tensor([0.05, 0.95])
    return record(
        runs,
        mlp((20, 32, 2)),
        imbalanced(0.95, spread=2.0),
        adam(3e-3),
        lambda o, y: F.cross_entropy(o, y, weight),
        steps=150,
    )


@case("mlp", "healthy")
def smoothed_labels(runs: Path) -> Run:
    return record(runs, mlp(), loss_fn=lambda o, y: F.cross_entropy(o, y, label_smoothing=0.3), steps=120)


@case("mlp", "healthy")
def a_small_penalty_in_the_loss(runs: Path) -> Run:
    model = mlp()
    return record(
        runs,
        model,
        loss_fn=lambda o, y: F.cross_entropy(o, y) + 1e-4 * sum(p.square().sum() for p in model.parameters()),
        steps=100,
    )


@case("mlp", "healthy")
def frozen_body_under_a_new_head(runs: Path) -> Run:
    model = mlp((64, 256, 10))
    model[1].requires_grad_(False)
    return record(runs, model, optimizer=adam(3e-3), steps=150)
