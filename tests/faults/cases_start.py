"""Healthy runs, and faults of the initialization."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import nn

from initscope.store import Run
from tests.faults.kit import (
    adam,
    cnn,
    digits,
    mlp,
    record,
    resnet,
    sgd,
    small_vgg,
    trained,
    waves,
    with_weights,
)
from tests.faults.registry import case, one_class_of_ten

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


@case("mlp", "healthy")
def healthy_rare_class(runs: Path) -> Run:
    return record(runs, mlp((64, 64, 64, 2)), one_class_of_ten(), steps=100)


@case("cnn", "healthy")
def healthy_accumulated_loss(runs: Path) -> Run:
    return record(
        runs,
        cnn("default", activation=F.gelu),
        loss_fn=lambda outputs, y: F.cross_entropy(outputs, y) / 4,
        steps=100,
    )


@case("mlp", "healthy")
def healthy_log_softmax_twice(runs: Path) -> Run:
    return record(runs, nn.Sequential(mlp(), nn.LogSoftmax(1)), loss_fn=F.cross_entropy)


# ---------------------------------------------------------------- initialization


@case("vgg", "init_too_small", finds=("signal_collapse", "vanishing_gradient", "loss_plateau_at_chance"))
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


@case("mlp", "init_too_large", finds=("exploding_gradient",))
def large_mlp(runs: Path) -> Run:
    return record(runs, mlp([64] + [128] * 6 + [10], gain=3))


@case("cnn", "init_too_large")
def large_cnn_sgd(runs: Path) -> Run:
    return record(runs, cnn(gain=5), optimizer=sgd(0.01))


@case("vgg", "init_too_large")
def large_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal", gain=4.0, max_steps=50)


@case("mlp", "symmetric_init", finds=("identical_units",))
def zeros_mlp(runs: Path) -> Run:
    return record(runs, mlp(init="zeros"))


@case("cnn", "symmetric_init")
def constant_cnn(runs: Path) -> Run:
    return record(runs, with_weights(cnn(), 0.05))


@case("vgg", "symmetric_init")
def zeros_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="zeros", max_steps=50)


@case("deep mlp", "init_too_small")
def small_regression(runs: Path) -> Run:
    return record(runs, mlp([8] + [64] * 8 + [1], gain=0.2), waves(), loss_fn=F.mse_loss, optimizer=sgd(0.02))


@case("mlp", "init_too_large")
def large_regression(runs: Path) -> Run:
    return record(runs, mlp([8] + [64] * 5 + [1], gain=4), waves(), loss_fn=F.mse_loss)
