"""Faults that the rules met for the first time after they were settled (tests/benchmarks/LOG.md): other
networks, losses and loops.

The first twelve were missed then.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initscope.recording.recorder import Recorder
from initscope.store import Run
from tests.faults.kit import adam, clusters, cnn, digits, mlp, record, resnet, sgd, shuffled, waves, with_bias
from tests.faults.registry import case, first, relabelled


class Transformer(nn.Module):
    """Two encoder layers on token ids; which token comes most often?"""

    def __init__(self, tokens: int = 8, length: int = 10, size: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(tokens, size)
        layer = nn.TransformerEncoderLayer(size, 4, 2 * size, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(size, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x)).mean(1))


def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer()


def most_frequent_token(samples: int = 1500) -> tuple:
    x = torch.randint(8, (samples, 10), generator=torch.Generator().manual_seed(2))
    y = F.one_hot(x, 8).sum(1).argmax(1)
    cut = samples * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def yes_or_no(samples: int = 800) -> tuple:
    """Two clusters with targets as binary cross-entropy wants them."""
    x, y, val_x, val_y = clusters(2, 8, samples, 0.8)
    return x, y.float().unsqueeze(1), val_x, val_y.float().unsqueeze(1)


# ---------------------------------------------------------------- missed at first sight


@case("mlp", "input_scale")
def nan_in_a_later_batch(runs: Path) -> Run:
    x, y, *_ = clusters()
    x = x.clone()
    x[-64:, 0] = torch.nan
    model = mlp((20, 64, 64, 10))
    optimizer = torch.optim.Adam(model.parameters())
    with Recorder(model, optimizer, runs=runs) as recorder:
        for at in range(0, len(x), 64):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[at : at + 64]), y[at : at + 64])
            loss.backward()
            optimizer.step()
            recorder.step(loss)
    return recorder.run


@case("cnn", "labels_unrelated")
def few_shuffled_labels_learned_by_heart(runs: Path) -> Run:
    x, y, val_x, val_y = first(200)
    return record(
        runs, cnn(), (x, shuffled(y), val_x, val_y), optimizer=adam(3e-3), steps=160, batch=50, validate=True
    )


@case("mlp", "labels_unrelated")
def shuffled_labels_of_a_hundred_classes(runs: Path) -> Run:
    return record(
        runs,
        mlp((32, 256, 100), init="default"),
        relabelled(clusters(100, 32, 6000)),
        optimizer=adam(2e-3),
        steps=120,
        validate=True,
    )


@case("mlp", "loss_misuse")
def softmax_of_a_single_output(runs: Path) -> Run:
    return record(
        runs, nn.Sequential(mlp((8, 32, 32, 1)), nn.Softmax(1)), yes_or_no(), loss_fn=F.binary_cross_entropy
    )


@case("resnet", "labels_unrelated")
def creeping_loss_and_validation_at_guessing(runs: Path) -> Run:
    x, y, val_x, val_y = digits()
    return record(
        runs,
        resnet(2, 12),
        (x, shuffled(y, seed=9), val_x, val_y),
        optimizer=adam(2e-3),
        steps=100,
        validate=True,
    )


@case("mlp", "loss_misuse")
def likelihood_without_its_minus_sign(runs: Path) -> Run:
    return record(
        runs, mlp(), loss_fn=lambda outputs, y: F.log_softmax(outputs, 1).gather(1, y.unsqueeze(1)).mean()
    )


@case("mlp", "overfitting")
def a_regression_has_no_accuracies(runs: Path) -> Run:
    samples = first(60, waves())
    return record(
        runs, mlp((8, 256, 256, 1)), samples, adam(3e-3), F.mse_loss, steps=150, batch=30, validate=True
    )


@case("mlp", "labels_unrelated")
def guesses_that_agree_by_chance(runs: Path) -> Run:
    """A class is guessed as one, so 360 guesses are no more than ten: the validation loss, never below
    guessing, tells.
    """
    x, y, val_x, val_y = digits()
    return record(
        runs,
        mlp((64, 128, 128, 10), seed=1),
        (x, shuffled(y, seed=4), val_x, val_y),
        adam(3e-3),
        steps=250,
        validate=True,
    )


@case("mlp", "labels_unrelated")
def learned_by_heart_after_a_spike(runs: Path) -> Run:
    x, y, val_x, val_y = first(300, clusters(4, 20, 2000, 1.0))
    return record(
        runs,
        mlp((20, 256, 256, 4)),
        (x, shuffled(y), val_x, val_y),
        adam(2e-2),
        steps=250,
        batch=50,
        validate=True,
    )


@case("mlp", "healthy")
def a_sum_over_the_batch(runs: Path) -> Run:
    return record(runs, mlp(), loss_fn=lambda outputs, y: F.cross_entropy(outputs, y, reduction="sum"))


@case("resnet", "healthy")
def running_statistics_that_lag_behind(runs: Path) -> Run:
    """After one pass the validation is far behind, for batch norm's averages are; it catches up in the
    second.
    """
    return record(runs, resnet(3), optimizer=sgd(0.05), steps=60, batch=32, validate=True)


class Clamped(nn.Module):
    """A ReLU that is not called so."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).clamp(min=0)
        return self.head(x)


@case("mlp", "dead_relu")
def dead_units_of_a_nameless_function(runs: Path) -> Run:
    torch.manual_seed(0)
    return record(runs, with_bias(Clamped(), -10))


# ---------------------------------------------------------------- right at first sight


@case("transformer", "healthy")
def healthy_transformer(runs: Path) -> Run:
    return record(runs, transformer(), most_frequent_token(), optimizer=adam(2e-3), steps=100)


@case("transformer", "lr_too_high")
def high_transformer(runs: Path) -> Run:
    return record(runs, transformer(), most_frequent_token(), optimizer=adam(0.3))


@case("transformer", "not_updating")
def transformer_without_steps(runs: Path) -> Run:
    return record(runs, transformer(), most_frequent_token(), update=False, steps=40)


@case("cnn", "healthy")
def healthy_on_a_frozen_backbone(runs: Path) -> Run:
    model = cnn()
    for layer in (model.conv1, model.conv2):
        layer.requires_grad_(False)
    return record(runs, model, optimizer=adam(3e-3), steps=100)


@case("cnn", "lr_too_high")
def units_killed_by_one_large_step(runs: Path) -> Run:
    steps = count()

    def jump(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 100.0 if next(steps) == 10 else 0.01

    return record(runs, cnn(), optimizer=sgd(0.01, momentum=0.0), per_step=jump)


@case("deep mlp", "init_too_small")
def small_yes_or_no(runs: Path) -> Run:
    return record(
        runs,
        mlp([8] + [32] * 12 + [1], gain=0.3),
        yes_or_no(),
        optimizer=sgd(0.1),
        loss_fn=F.binary_cross_entropy_with_logits,
    )


@case("mlp", "dead_relu")
def one_dead_layer_in_the_middle(runs: Path) -> Run:
    return record(runs, with_bias(mlp((64, 128, 128, 128, 10)), -20, slice(1, 2)))


@case("mlp", "input_scale")
def one_feature_in_thousands(runs: Path) -> Run:
    x, y, val_x, val_y = clusters()
    factor = torch.ones(20).index_fill(0, torch.tensor([0]), 1000.0)
    return record(runs, mlp((20, 64, 64, 10)), (x * factor, y, val_x * factor, val_y), optimizer=sgd(0.01))
