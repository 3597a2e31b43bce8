"""The bench of planted faults: each case trains a small network with one thing wrong (or nothing), and names the cause.

A case lists more than one cause only where physics allows more than one name. Every case is first of all a recipe that
trains when the fault is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from core.store import Run
from tests.faults.kit import (
    adam,
    clusters,
    cnn,
    digits,
    mlp,
    record,
    resnet,
    sgd,
    shuffled,
    small_vgg,
    trained,
    waves,
    with_bias,
    with_weights,
)


@dataclass(frozen=True)
class Case:
    """One planted fault: where, what it is called, and how to make its run."""

    name: str
    architecture: str
    causes: frozenset[str]
    make: Callable[[Path], Run]


CASES: dict[str, Case] = {}


def case(architecture: str, *causes: str) -> Callable[[Callable[[Path], Run]], Callable[[Path], Run]]:
    """Register a function of the runs folder as a case on ``architecture`` that is called by one of ``causes``."""

    def register(make: Callable[[Path], Run]) -> Callable[[Path], Run]:
        CASES[make.__name__] = Case(make.__name__, architecture, frozenset(causes), make)
        return make

    return register


def times(factor: float, offset: float = 0.0) -> tuple:
    """The digits with every pixel scaled and shifted."""
    x, y, val_x, val_y = digits()
    return x * factor + offset, y, val_x * factor + offset, val_y


def relabelled(samples: tuple, share: float = 1.0) -> tuple:
    """The samples with a share of all labels permuted, validation too."""
    x, y, val_x, val_y = samples
    return x, shuffled(y, share), val_x, shuffled(val_y, share)


def first(count: int, samples: tuple | None = None) -> tuple:
    """Only the first ``count`` training samples."""
    x, y, val_x, val_y = samples or digits()
    return x[:count], y[:count], val_x, val_y


# ---------------------------------------------------------------- healthy


@case("mlp", "healthy")
def healthy_mlp(runs: Path) -> Run:
    return record(runs, mlp())


@case("cnn", "healthy")
def healthy_cnn_default_sgd(runs: Path) -> Run:
    return record(runs, cnn("default"), optimizer=sgd(0.1), steps=120, batch=32)


@case("resnet", "healthy")
def healthy_resnet(runs: Path) -> Run:
    return record(runs, resnet(), steps=50, validate=True)


@case("vgg", "healthy")
def healthy_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal")


@case("vgg", "healthy")
def healthy_vgg_batch_norm_default(runs: Path) -> Run:
    return record(runs, small_vgg("vgg11", "default", batch_norm=True), digits(32), steps=50, batch=32)


@case("mlp", "healthy")
def healthy_wide(runs: Path) -> Run:
    return record(runs, mlp((64, 1024, 10), init="default"), optimizer=adam(5e-4), steps=60)


@case("mlp", "healthy")
def healthy_small_learning_rate(runs: Path) -> Run:
    return record(runs, mlp(), optimizer=adam(1e-4), steps=120)


@case("mlp", "healthy")
def healthy_shallow_default_slow_sgd(runs: Path) -> Run:
    return record(runs, mlp((64, 64, 10), init="default"), optimizer=sgd(0.02), steps=120)


@case("mlp", "healthy")
def healthy_dropout(runs: Path) -> Run:
    return record(runs, mlp((64, 256, 256, 10), dropout=0.5), steps=100)


@case("tanh mlp", "healthy")
def healthy_tanh(runs: Path) -> Run:
    return record(runs, mlp((64, 64, 64, 64, 10), nn.Tanh, "xavier_normal"), optimizer=sgd(0.05))


@case("sigmoid mlp", "healthy")
def healthy_sigmoid(runs: Path) -> Run:
    return record(runs, mlp((64, 64, 10), nn.Sigmoid, "xavier_normal"), optimizer=adam(1e-2))


@case("mlp", "healthy")
def healthy_five_layers_xavier(runs: Path) -> Run:
    return record(runs, mlp((64, 96, 96, 96, 96, 10), init="xavier_normal"), validate=True)


@case("cnn", "healthy")
def healthy_but_short(runs: Path) -> Run:
    return record(runs, cnn(), steps=20)


@case("mlp", "healthy")
def healthy_regression(runs: Path) -> Run:
    return record(runs, mlp((8, 64, 64, 1)), waves(), loss_fn=F.mse_loss, steps=100)


# ---------------------------------------------------------------- initialization


@case("vgg", "init_too_small")
def default_vgg(runs: Path) -> Run:
    return trained(runs, model="vgg16", init="default", epochs=3)


@case("deep mlp", "init_too_small")
def default_deep_mlp(runs: Path) -> Run:
    return record(runs, mlp([64] + [64] * 14 + [10], init="default"), optimizer=sgd(0.02))


@case("deep mlp", "init_too_small")
def normal_001_sgd(runs: Path) -> Run:
    return record(runs, mlp([64] + [96] * 7 + [10], init="normal_0.01"), optimizer=sgd(0.05))


@case("cnn", "init_too_small")
def tenth_of_the_gain(runs: Path) -> Run:
    return record(runs, cnn(gain=0.1), optimizer=sgd(0.05))


@case("tanh mlp", "init_too_small")
def small_tanh(runs: Path) -> Run:
    return record(runs, mlp([64] + [64] * 9 + [10], nn.Tanh, "xavier_normal", gain=0.3), optimizer=sgd(0.1))


@case("mlp", "init_too_large")
def large_mlp(runs: Path) -> Run:
    return record(runs, mlp([64] + [128] * 6 + [10], gain=3))


@case("cnn", "init_too_large")
def large_cnn_sgd(runs: Path) -> Run:
    return record(runs, cnn(gain=5), optimizer=sgd(0.01))


@case("vgg", "init_too_large")
def large_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal", gain=4.0, max_steps=50)


@case("mlp", "symmetric_init")
def zeros_mlp(runs: Path) -> Run:
    return record(runs, mlp(init="zeros"))


@case("cnn", "symmetric_init")
def constant_cnn(runs: Path) -> Run:
    return record(runs, with_weights(cnn(), 0.05))


@case("vgg", "symmetric_init")
def zeros_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="zeros", max_steps=50)


# ---------------------------------------------------------------- learning rate and updates


@case("mlp", "lr_too_high")
def high_adam(runs: Path) -> Run:
    return record(runs, mlp(), optimizer=adam(1.0))


@case("cnn", "lr_too_high")
def high_sgd(runs: Path) -> Run:
    return record(runs, cnn(), optimizer=sgd(10))


@case("vgg", "lr_too_high")
def high_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal", learning_rate=0.1, max_steps=60)


@case("resnet", "lr_too_high")
def high_resnet(runs: Path) -> Run:
    return record(runs, resnet(), optimizer=sgd(300), steps=50)


@case("mlp", "lr_too_low")
def low_adam(runs: Path) -> Run:
    return record(runs, mlp(), optimizer=adam(1e-6))


@case("cnn", "lr_too_low")
def low_sgd(runs: Path) -> Run:
    return record(runs, cnn(), optimizer=sgd(1e-6))


@case("resnet", "lr_too_low")
def low_resnet(runs: Path) -> Run:
    return record(runs, resnet(), optimizer=sgd(1e-5), steps=50)


@case("mlp", "not_updating")
def no_step(runs: Path) -> Run:
    return record(runs, mlp(), update=False)


@case("cnn", "not_updating")
def gradients_cleared_before_the_step(runs: Path) -> Run:
    return record(runs, cnn(), per_step=lambda model, optimizer: optimizer.zero_grad())


@case("resnet", "not_updating")
def optimizer_of_a_copy(runs: Path) -> Run:
    model = resnet()
    return record(runs, model, optimizer=torch.optim.Adam(copy.deepcopy(model).parameters()), steps=50)


@case("vgg", "not_updating")
def frozen_but_the_head(runs: Path) -> Run:
    model = small_vgg()
    for parameter in [*model.parameters()][:-2]:
        parameter.requires_grad_(False)
    return record(runs, model, digits(32), steps=50, batch=32)


# ---------------------------------------------------------------- units


@case("mlp", "dead_relu")
def dead_mlp(runs: Path) -> Run:
    return record(runs, with_bias(mlp(), -10))


@case("cnn", "dead_relu")
def dead_cnn(runs: Path) -> Run:
    return record(runs, with_bias(cnn(), -5), optimizer=sgd(0.05))


@case("vgg", "dead_relu")
def dead_vgg(runs: Path) -> Run:
    return record(runs, with_bias(small_vgg(), -4), digits(32), steps=50, batch=32)


@case("tanh mlp", "saturated_activation")
def saturated_tanh(runs: Path) -> Run:
    return record(runs, mlp([64] + [64] * 6 + [10], nn.Tanh, "xavier_normal", gain=10), optimizer=sgd(0.02))


@case("sigmoid mlp", "saturated_activation")
def saturated_sigmoid(runs: Path) -> Run:
    return record(runs, mlp([64] + [64] * 5 + [10], nn.Sigmoid, "xavier_normal", gain=40), optimizer=sgd(0.02))


# ---------------------------------------------------------------- data and loss


@case("mlp", "input_scale")
def pixels_to_255(runs: Path) -> Run:
    return record(runs, mlp(), times(255), optimizer=sgd(0.05))


@case("cnn", "input_scale")
def offset_inputs(runs: Path) -> Run:
    return record(runs, cnn(), times(1, 100), optimizer=sgd(0.02))


@case("mlp", "input_scale")
def tiny_inputs(runs: Path) -> Run:
    return record(runs, mlp(init="default"), times(1e-3), optimizer=sgd(0.05))


@case("cnn", "labels_unrelated")
def shuffled_labels(runs: Path) -> Run:
    return record(runs, cnn(), relabelled(digits()))


@case("mlp", "labels_unrelated")
def shuffled_clusters(runs: Path) -> Run:
    return record(runs, mlp((20, 64, 64, 10)), relabelled(clusters(samples=4000)), optimizer=sgd(0.05))


@case("resnet", "labels_unrelated")
def memorised_noise(runs: Path) -> Run:
    return record(runs, resnet(2, 32), first(128, relabelled(digits())), optimizer=adam(3e-3), steps=120, batch=32, validate=True)


@case("cnn", "loss_misuse")
def softmax_before_cross_entropy(runs: Path) -> Run:
    return record(runs, nn.Sequential(cnn(), nn.Softmax(1)), optimizer=sgd(0.05))


@case("mlp", "loss_misuse")
def softmax_outside_the_model(runs: Path) -> Run:
    return record(runs, mlp(), loss_fn=lambda outputs, y: F.cross_entropy(F.softmax(outputs, 1), y))


@case("mlp", "loss_misuse")
def nll_of_logits(runs: Path) -> Run:
    return record(runs, mlp(), loss_fn=F.nll_loss)


@case("mlp", "overfitting")
def forty_samples(runs: Path) -> Run:
    return record(runs, mlp((64, 256, 256, 10)), first(40), steps=120, batch=20, validate=True)


@case("vgg", "overfitting")
def few_images_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal", train_samples=80, batch_size=16, epochs=24)
