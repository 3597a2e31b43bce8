"""Faults of updates, units, data and loss."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from initscope.store import Run
from tests.faults.kit import (
    adam,
    clusters,
    cnn,
    digits,
    mlp,
    record,
    resnet,
    sgd,
    small_vgg,
    trained,
    waves,
    with_bias,
)
from tests.faults.registry import case, first, relabelled, times

# ---------------------------------------------------------------- learning rate and updates


@case("mlp", "lr_too_high")
def high_adam(runs: Path) -> Run:
    return record(runs, mlp(), optimizer=adam(1.0))


@case("cnn", "lr_too_high", finds=("loss_nonfinite",))
def high_sgd(runs: Path) -> Run:
    return record(runs, cnn(), optimizer=sgd(10))


@case("vgg", "lr_too_high")
def high_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal", learning_rate=0.1, max_steps=60)


@case("resnet", "lr_too_high")
def high_resnet(runs: Path) -> Run:
    return record(runs, resnet(), optimizer=sgd(300), steps=50)


@case("mlp", "lr_too_high")
def high_regression(runs: Path) -> Run:
    return record(runs, mlp((8, 64, 64, 1)), waves(), loss_fn=F.mse_loss, optimizer=adam(1.0))


@case("mlp", "lr_too_high", finds=("loss_oscillates",))
def jumping_without_hidden_layers(runs: Path) -> Run:
    return record(runs, mlp((20, 10)), clusters(spread=2.0), sgd(30, momentum=0.0))


@case("mlp", "lr_too_high")
def restless_but_no_louder_than_guessing(runs: Path) -> Run:
    return record(runs, mlp((20, 10)), clusters(spread=2.0), sgd(3, momentum=0.0))


@case("vgg", "lr_too_low")
def low_vgg_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal", learning_rate=1e-7)


@case("mlp", "lr_too_low")
def low_adam(runs: Path) -> Run:
    return record(runs, mlp(), optimizer=adam(1e-6))


@case("cnn", "lr_too_low")
def low_sgd(runs: Path) -> Run:
    return record(runs, cnn(), optimizer=sgd(1e-6))


@case("resnet", "lr_too_low")
def low_resnet(runs: Path) -> Run:
    return record(runs, resnet(), optimizer=sgd(1e-5), steps=50)


@case("mlp", "not_updating", finds=("weights_frozen",))
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


@case("cnn", "not_updating")
def optimizer_of_the_last_layer(runs: Path) -> Run:
    model = cnn()
    return record(runs, model, optimizer=torch.optim.Adam(model.fc2.parameters()))


# ---------------------------------------------------------------- units


@case("mlp", "dead_relu", finds=("dead_units",))
def dead_mlp(runs: Path) -> Run:
    return record(runs, with_bias(mlp(), -10))


@case("cnn", "dead_relu")
def dead_cnn(runs: Path) -> Run:
    return record(runs, with_bias(cnn(), -5), optimizer=sgd(0.05))


@case("vgg", "dead_relu")
def dead_vgg(runs: Path) -> Run:
    return record(runs, with_bias(small_vgg(), -4), digits(32), steps=50, batch=32)


@case("cnn", "saturated_activation")
def saturated_tanh_cnn(runs: Path) -> Run:
    return record(runs, cnn(gain=8, activation=torch.tanh), optimizer=sgd(0.01))


@case("tanh mlp", "saturated_activation", finds=("saturated_units",))
def saturated_tanh(runs: Path) -> Run:
    return record(runs, mlp([64] + [64] * 6 + [10], nn.Tanh, "xavier_normal", gain=10), optimizer=sgd(0.02))


@case("sigmoid mlp", "saturated_activation")
def saturated_sigmoid(runs: Path) -> Run:
    return record(
        runs, mlp([64] + [64] * 5 + [10], nn.Sigmoid, "xavier_normal", gain=40), optimizer=sgd(0.02)
    )


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


@case("vgg", "input_scale")
def pixels_to_255_vgg(runs: Path) -> Run:
    x, y, val_x, val_y = digits(32)
    return record(
        runs, small_vgg(), (x * 255, y, val_x * 255, val_y), optimizer=sgd(0.01), steps=50, batch=32
    )


@case("cnn", "input_scale")
def inputs_with_nan(runs: Path) -> Run:
    x, y, val_x, val_y = digits()
    return record(runs, cnn(), (torch.where(x > 0.95, torch.nan, x), y, val_x, val_y), steps=20)


@case("cnn", "labels_unrelated")
def shuffled_labels(runs: Path) -> Run:
    return record(runs, cnn(), relabelled(digits()), validate=True)


@case("mlp", "labels_unrelated")
def shuffled_clusters(runs: Path) -> Run:
    return record(
        runs, mlp((20, 64, 64, 10)), relabelled(clusters(samples=4000)), optimizer=sgd(0.05), validate=True
    )


@case("resnet", "labels_unrelated")
def memorised_noise(runs: Path) -> Run:
    return record(
        runs,
        resnet(2, 32),
        first(128, relabelled(digits())),
        optimizer=adam(3e-3),
        steps=120,
        batch=32,
        validate=True,
    )


@case("cnn", "loss_misuse")
def softmax_before_cross_entropy(runs: Path) -> Run:
    return record(runs, nn.Sequential(cnn(), nn.Softmax(1)), optimizer=sgd(0.05))


@case("mlp", "loss_misuse")
def softmax_outside_the_model(runs: Path) -> Run:
    return record(runs, mlp(), loss_fn=lambda outputs, y: F.cross_entropy(F.softmax(outputs, 1), y))


@case("resnet", "loss_misuse")
def softmax_seen_by_numbers_alone(runs: Path) -> Run:
    return record(runs, nn.Sequential(resnet(), nn.Softmax(1)), optimizer=sgd(0.05), steps=60, floats=True)


@case("mlp", "loss_misuse")
def targets_of_another_shape(runs: Path) -> Run:
    x, y, val_x, val_y = waves()
    return record(runs, mlp((8, 64, 64, 1)), (x, y.squeeze(1), val_x, val_y.squeeze(1)), loss_fn=F.mse_loss)


@case("mlp", "loss_misuse")
def nll_of_logits(runs: Path) -> Run:
    return record(runs, mlp(), loss_fn=F.nll_loss)


@case("mlp", "overfitting")
def forty_samples(runs: Path) -> Run:
    return record(runs, mlp((64, 256, 256, 10)), first(40), steps=120, batch=20, validate=True)


@case("vgg", "overfitting")
def few_images_trained(runs: Path) -> Run:
    return trained(runs, init="kaiming_normal", train_samples=80, batch_size=16, epochs=24)
