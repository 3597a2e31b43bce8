"""The loss and the outputs do not fit together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import (
    accuracy,
    class_skill,
    clusters,
    convnet,
    digits,
    fit_skill,
    mlp,
    predict,
    supervised,
    table,
)
from tests.reports.registry import Loop, report


@report(
    "loss_misuse",
    # The model ends in a softmax and the loss takes another: cross-entropy stays at 2.30 for epochs.
    "https://discuss.pytorch.org/t/cross-entropy-loss-is-not-decreasing/43814",
    evidence=("softmax", "outputs_are_probabilities"),
)
def softmax_in_the_model(fixed: bool) -> Loop:
    net = convnet()
    model = net if fixed else nn.Sequential(*net, nn.Softmax(dim=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if fixed else 0.01, momentum=0.9)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=250)


@report(
    "loss_misuse",
    # LogSoftmax(dim=0) normalizes over the samples of the batch instead of the classes.
    "https://github.com/MicrosoftDocs/pytorchfundamentals/pull/21",
    evidence=("batch instead of the classes", "softmax_across_batch"),
)
def log_softmax_over_the_batch(fixed: bool) -> Loop:
    model = nn.Sequential(*mlp(64, 128, 10), nn.LogSoftmax(dim=1 if fixed else 0))
    loop = supervised(model, torch.optim.Adam(model.parameters(), lr=1e-3), digits(), F.nll_loss)
    _, _, held_x, held_y = digits()
    # One picture at a time, as it is used: alone in its batch, every class has probability one.
    loop.score = lambda: class_skill(torch.cat([predict(model, image) for image in held_x.split(1)]), held_y)
    return loop


@report(
    "loss_misuse",
    # F.nll_loss on the outputs of a linear layer: the loss is negative and keeps falling.
    "https://codestudyblog.com/8ten8/80409021901.html",
    evidence=("nllloss", "below zero", "raw outputs"),
    held_out=True,
)
def nll_of_raw_outputs(fixed: bool) -> Loop:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)

    def loss_fn(outputs: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(outputs, dim=1) if fixed else outputs, y.squeeze())

    return supervised(model, optimizer, digits(), loss_fn, steps=300, batch=64)


@report(
    "loss_misuse",
    # Binary cross-entropy of images outside of [0, 1] has no floor: the autoencoder's loss runs to minus
    # millions.
    "https://github.com/Lasagne/Recipes/issues/54",
    evidence=("below zero", "outside", "negative"),
)
def binary_cross_entropy_of_standardized_images(fixed: bool) -> Loop:
    x, _, held, _ = digits()
    if not fixed:
        x, held = (x - x.mean()) / x.std(), (held - x.mean()) / x.std()
    x, held = x.flatten(1), held.flatten(1)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))

    def score(outputs: Tensor, y: Tensor) -> float:
        return fit_skill(torch.sigmoid(outputs), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return supervised(
        model, optimizer, (x, x, held, held), F.binary_cross_entropy_with_logits, steps=300, score=score
    )


@report(
    "loss_misuse",
    # Outputs (N, 1) against targets (N,): every output is compared with every target, the model answers the
    # mean.
    "https://github.com/timeseriesAI/tsai/issues/22",
    evidence=("shape", "broadcast"),
    held_out=True,
)
def forecast_against_flat_targets(fixed: bool) -> Loop:
    x, y, held_x, held_y = table(features=16)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 16)),
        nn.Conv1d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 1),
    )
    data = (x, y if fixed else y.squeeze(1), held_x, held_y)
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        data,
        F.mse_loss,
        steps=300,
        batch=16,
        score=fit_skill,
    )


@report(
    "loss_misuse",
    # Probabilities go into a loss that takes another sigmoid: no score is ever below 0.5, so every answer is
    # yes.
    "https://github.com/itakurah/focal-loss-pytorch/pull/5",
    evidence=("sigmoid",),
)
def sigmoid_twice(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(2, spread=1.5, shares=(0.8, 0.2))
    net = mlp(16, 64, 64, 1)
    model = net if fixed else nn.Sequential(*net, nn.Sigmoid())
    data = (x, y.float().unsqueeze(1), held_x, held_y.float().unsqueeze(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return supervised(model, optimizer, data, F.binary_cross_entropy_with_logits, steps=300)


@report(
    "loss_misuse",
    # A ReLU behind the last layer: accuracy stops at about 65 % with classes that nobody predicts.
    "https://github.com/martinwicke/tf-dev-summit-tensorboard-tutorial/issues/3",
    also=("dead_relu",),
    evidence=("relu stands", "outputs_rectified"),
    held_out=True,
)
def relu_on_the_logits(fixed: bool) -> Loop:
    net = mlp(64, 64, 10)
    model = net if fixed else nn.Sequential(*net, nn.ReLU())
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=5e-3), digits(), metric=accuracy, steps=300
    )


@report(
    "loss_misuse",
    # The last ReLU of a regression hides every answer below zero; with unlucky weights it answers 0 for all.
    "https://github.com/ProteomicsML/ProteomicsML/pull/203",
    also=("dead_relu",),
    evidence=("relu", "rectified"),
    held_out=True,
)
def relu_on_a_regression(fixed: bool) -> Loop:
    x, y, held_x, held_y = table()
    net = mlp(10, 64, 64, 1)
    with torch.no_grad():
        net[-1].bias.fill_(-0.5)  # the unlucky weights: most answers begin below zero
    model = net if fixed else nn.Sequential(*net, nn.ReLU())
    data = (
        x,
        y - 1.0,
        held_x,
        held_y - 1.0,
    )  # a retention index on a scale whose zero lies in the upper part of the data
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), data, F.mse_loss, steps=300, score=fit_skill
    )
