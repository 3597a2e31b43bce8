"""What is fed in: order, scale, labels, shares of the classes, too few samples."""

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
    passes,
    predict,
    supervised,
    table,
)
from tests.reports.registry import Loop, report


def by_label(y: Tensor, batch: int, fixed: bool):
    """Batches in the order of the labels, over and over; shuffled where ``fixed``."""
    if fixed:
        return passes(len(y), batch)
    order = y.argsort(stable=True).split(batch)
    return lambda i: order[i % len(order)]


@report(
    "data_order",
    # The data loader does not shuffle ImageNet's folders, so the network sees one class for many steps and
    # forgets the others.
    "https://github.com/Deci-AI/super-gradients/issues/416",
    evidence=("order", "one class", "sorted", "shuffle"),
)
def folders_in_order(fixed: bool) -> Loop:
    data, model = digits(), convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return supervised(
        model, optimizer, data, metric=accuracy, steps=300, indices=by_label(data[1], 32, fixed)
    )


@report(
    "data_order",
    # The files are sorted by label; whoever forgets to shuffle gets batches of one class.
    "https://github.com/zalandoresearch/fashion-mnist/pull/5",
    evidence=("order", "one class", "sorted", "shuffle"),
    held_out=True,
)
def files_sorted_by_label(fixed: bool) -> Loop:
    data = digits()
    model = mlp(64, 128, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return supervised(
        model, optimizer, data, metric=accuracy, steps=270, epoch=90, indices=by_label(data[1], 16, fixed)
    )


@report(
    "input_scale",
    # Images of 0 to 255 reach the policy network as they are, where the rest of the library divides by 255.
    "https://github.com/hill-a/stable-baselines/issues/328",
    evidence=("input",),
)
def pixels_up_to_255(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    factor = 1.0 if fixed else 255.0
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return supervised(model, optimizer, (x * factor, y, held_x * factor, held_y), steps=250)


@report(
    "input_scale",
    # The batch is divided by 255 twice before the network sees it.
    "https://github.com/pkmital/pycadl/pull/5",
    evidence=("input",),
    held_out=True,
)
def divided_by_255_twice(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    factor = 1.0 if fixed else 1 / 255
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return supervised(model, optimizer, (x * factor, y, held_x * factor, held_y), metric=accuracy, steps=250)


@report(
    "input_scale",
    # One column of a table is in the hundred thousands, the others are near 1: a linear fit swings by
    # hundreds of thousands.
    "https://discuss.pytorch.org/t/why-the-model-fail-to-converge-without-a-manul-weight-initialization/50431",
    also=("lr_too_high",),
    evidence=("input",),
    held_out=True,
)
def one_column_in_thousands(fixed: bool) -> Loop:
    x, y, held_x, held_y = table()
    scale, shift = torch.ones(10), torch.zeros(10)
    if not fixed:
        scale[3], shift[3] = 20000.0, 60000.0
    model = mlp(10, 32, 1)
    data = (x * scale + shift, y, held_x * scale + shift, held_y)
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), data, F.mse_loss, steps=300, score=fit_skill
    )


@report(
    "target_scale",
    # Targets around -2700 and tanh layers of five units: every answer is the mean; scaled targets train.
    "https://discuss.pytorch.org/t/scaling-target-variables/41046",
    evidence=("target", "far"),
)
def targets_around_minus_2700(fixed: bool) -> Loop:
    x, y, held_x, held_y = table()
    x, held_x = (x / 3).clamp(-1, 1), (held_x / 3).clamp(-1, 1)
    model = mlp(10, 5, 5, 1, activation=nn.Tanh)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
    data = (x, y, held_x, held_y) if fixed else (x, y * 8 - 2700, held_x, held_y * 8 - 2700)
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=1e-2), data, F.mse_loss, steps=400, score=fit_skill
    )


@report(
    "target_scale",
    # House prices of 250,000: after 2,000 epochs Adam is still on its way up from zero.
    "https://stats.stackexchange.com/questions/409000/should-we-normalize-target-data-as-well-as-input-data",
    evidence=("target", "far"),
    held_out=True,
)
def prices_in_dollars(fixed: bool) -> Loop:
    x, y, held_x, held_y = table(features=8)
    model = mlp(8, 32, 32, 1)
    data = (x, y, held_x, held_y) if fixed else (x, y * 80_000 + 250_000, held_x, held_y * 80_000 + 250_000)
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        data,
        F.mse_loss,
        steps=400,
        epoch=100,
        score=fit_skill,
    )


@report(
    "class_collapse",
    # Five classes of unequal shares: accuracy stays at exactly the share of the largest, which is always the
    # answer.
    "https://datascience.stackexchange.com/questions/16840/multi-class-neural-net-always-predicting-1-class-after-optimization/16847",
    evidence=("class", "majority", "imbalance"),
)
def always_the_largest_of_five(fixed: bool) -> Loop:
    data = clusters(5, features=24, spread=3.0, shares=(0.04, 0.8, 0.04, 0.06, 0.06))
    model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 5))
    weight = 1 / torch.bincount(data[1]).float()
    weight = weight / weight.mean() if fixed else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return supervised(
        model,
        optimizer,
        data,
        lambda outputs, y: F.cross_entropy(outputs, y, weight),
        metric=accuracy,
        steps=300,
    )


@report(
    "class_collapse",
    # Few links are negative, and the classifier calls every link positive.
    "https://github.com/benedekrozemberczki/SGCN/pull/7",
    evidence=("class", "majority", "imbalance"),
    held_out=True,
)
def no_negative_link_is_found(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(2, features=12, spread=2.5, shares=(0.06, 0.94))
    model = mlp(12, 32, 1)
    weight = torch.tensor(0.06) if fixed else None
    data = (x, y.float().unsqueeze(1), held_x, held_y.float().unsqueeze(1))

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return supervised(model, optimizer, data, loss_fn, steps=250)


@report(
    "labels_unrelated",
    # The list of pictures comes from the file system in any order, the list of labels from a table: they do
    # not belong together.
    "https://github.com/NoahVl/Explaining-In-Style-Reproducibility-Study/issues/9",
    evidence=("label",),
)
def files_in_any_order(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    listed = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    listed_held = torch.randperm(len(held_x), generator=torch.Generator().manual_seed(2))
    data = (x, y, held_x, held_y) if fixed else (x[listed], y, held_x[listed_held], held_y)
    model = convnet()
    loop = supervised(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), data, metric=accuracy, steps=270, epoch=45
    )
    loop.score = lambda: class_skill(predict(model, held_x), held_y)
    return loop


@report(
    "labels_unrelated",
    # Class numbers are taken from an unsorted list of folders, anew for every file: the labels are scrambled.
    "https://github.com/xyanchen/WiFi-CSI-Sensing-Benchmark/issues/7",
    evidence=("label",),
    held_out=True,
)
def scrambled_class_numbers(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(6, features=30, spread=0.8)
    scrambled = torch.randint(6, (len(y),), generator=torch.Generator().manual_seed(8))
    model = mlp(30, 64, 6)
    data = (x, y if fixed else scrambled, held_x, held_y)
    return supervised(model, torch.optim.SGD(model.parameters(), lr=0.05), data, steps=300)


@report(
    "overfitting",
    # 15 pictures a class and a large network: 100 % in training, far less in validation.
    "https://github.com/davidsandberg/facenet/issues/956",
    evidence=("train_validation_gap", "validation"),
)
def fifteen_pictures_a_class(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    noise = torch.Generator().manual_seed(4)
    x, held_x = (
        (x + 0.6 * torch.randn(x.shape, generator=noise)),
        (held_x + 0.6 * torch.randn(held_x.shape, generator=noise)),
    )
    few = len(x) if fixed else 60
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if fixed else 3e-3)
    data = (x[:few], y[:few], held_x, held_y)
    return supervised(
        model,
        optimizer,
        data,
        metric=accuracy,
        steps=180,
        epoch=30,
        indices=passes(few, 20) if not fixed else None,
    )


@report(
    "overfitting",
    # Training loss falls and the validation loss falls first and then rises.
    "https://github.com/keras-team/keras/issues/161",
    evidence=("train_validation_gap", "validation"),
    held_out=True,
)
def validation_loss_turns(fixed: bool) -> Loop:
    x, y, held_x, held_y = table(features=20, noise=0.4)
    few = len(x) if fixed else 100
    model = mlp(20, 32, 1) if fixed else mlp(20, 256, 256, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3 if fixed else 3e-3)
    loop = supervised(
        model, optimizer, (x[:few], y[:few], held_x, held_y), F.mse_loss, steps=300, epoch=30, score=fit_skill
    )
    return loop
