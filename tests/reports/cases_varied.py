"""Reports of all kinds, written down with their causes before the diagnosis had seen one of them.

What it said of them then was 10 right and 9 misleading of 20, one refused, no alarm; those that it got wrong
have been looked at since and are not held out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import (
    accuracy,
    bandit,
    class_skill,
    clusters,
    convnet,
    digits,
    fit_skill,
    imitation_skill,
    mlp,
    passes,
    predict,
    supervised,
    table,
)
from tests.reports.registry import HEALTHY, Loop, report

# ---------------------------------------------------------------- broken


def neighbour_skill(model: nn.Module) -> float:
    """How often the nearest training image has the class of a held-out one, 0 at guessing."""
    x, y, held_x, held_y = digits()
    known, asked = predict(model, x), predict(model, held_x)
    return (float((y[torch.cdist(asked, known).argmin(1)] == held_y).float().mean()) - 0.1) / 0.9


def hardest_triplets(codes: Tensor, y: Tensor, margin: float) -> Tensor:
    """Per anchor the farthest of its class and the nearest of another, hinged at ``margin``; (N,)."""
    squared = (codes.unsqueeze(1) - codes.unsqueeze(0)).pow(2).sum(2)
    apart, same = (squared + 1e-12).sqrt(), y.unsqueeze(1) == y
    far = apart.masked_fill(~same, 0.0).amax(1)
    near = apart.masked_fill(same, math.inf).amin(1)
    return F.relu(far - near + margin)


@report(
    "lr_too_high",
    # The triplet loss equals its margin all the time: all embeddings have fallen into one point; the advice
    # is a smaller rate.
    "https://github.com/xiaolonw/caffe-video_triplet/issues/8",
    evidence=("same output", "same answer", "constant", "do not depend", "depend on the input"),
    held_out=True,
)
def triplet_loss_is_its_margin(fixed: bool) -> Loop:
    x, y, _, _ = digits()
    model = mlp(64, 64, 64, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if fixed else 0.1)

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (64,))
        loss = hardest_triplets(model(x[rows]), y[rows], 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Loop(model, optimizer, step, lambda: neighbour_skill(model), steps=250)


class Vae(nn.Module):
    """Digits through eight normal latent numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decode(code), mean, log_variance


@report(
    "unknown",
    # The reconstruction is averaged over pixels and the KL divergence summed: it wins, and every image is
    # answered by the mean image.
    "https://github.com/AppliedDataSciencePartners/WorldModels/issues/12",
    evidence=("same output", "same answer", "constant", "do not depend", "depend on the input"),
)
def reconstruction_averaged_kl_summed(fixed: bool) -> Loop:
    x, _, held, _ = digits()
    x, held = x.flatten(1), held.flatten(1)
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(i: int) -> Tensor:
        images = x[torch.randint(len(x), (64,))]
        made, mean, log_variance = model(images)
        error = (made - images).pow(2)
        kl = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(1).mean()
        loss = (10 * error.sum(1).mean() if fixed else error.mean()) + kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:
        with torch.no_grad():
            error = F.mse_loss(model(held)[0], held)
        return 1 - float(error / F.mse_loss(x.mean(0).expand_as(held), held))

    return Loop(model, optimizer, step, score, steps=400)


@report(
    "not_updating",
    # The head rebuilds its inputs by torch.tensor(features): the graph ends there, and the backbone never
    # gets a gradient.
    "https://github.com/open-mmlab/mmpose/issues/2788",
    also=("unregistered_layers",),
    evidence=("never move", "no gradient", "frozen"),
    held_out=True,
)
def features_copied_out_of_the_graph(fixed: bool) -> Loop:
    class Pose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*mlp(64, 48, 48, 3), nn.Tanh())
            self.head = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            features = self.body(x)
            return self.head(features if fixed else torch.tensor(features.detach().numpy()))

    model = Pose()
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=3e-3), digits(), metric=accuracy, steps=300
    )


@report(
    "not_updating",
    # Speeding up a pruned network puts smaller layers in the place of the old ones; the optimizer still holds
    # the old ones.
    "https://github.com/microsoft/nni/issues/4521",
    also=("unregistered_layers",),
    evidence=("never move", "optimizer"),
    held_out=True,
)
def optimizer_from_before_pruning(fixed: bool) -> Loop:
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model[0], model[3] = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
    model[7], model[9] = nn.Linear(32, 24), nn.Linear(24, 10)
    if fixed:
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=300)


@report(
    "class_collapse",
    # A Dice loss averaged over all classes, where the background fills the picture: its Dice is 1, the others
    # stay at 0.
    "https://github.com/jakeret/tf_unet/issues/64",
    evidence=("class", "imbalance", "majority"),
)
def dice_of_three_classes(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(12)
    x = torch.randn(400, 1, 12, 12, generator=generator)
    marks = torch.rand(400, 12, 12, generator=generator)
    y = torch.where(marks < 0.01, 1, torch.where(marks < 0.02, 2, 0))
    x = x + 2.0 * (y == 1).unsqueeze(1) - 2.0 * (y == 2).unsqueeze(1)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def dice(outputs: Tensor, targets: Tensor) -> Tensor:
        if fixed:
            return F.cross_entropy(outputs, targets, torch.tensor([0.02, 1.0, 1.0]))
        shares, truth = outputs.softmax(1), F.one_hot(targets, 3).permute(0, 3, 1, 2).float()
        both, sizes = (shares * truth).sum((0, 2, 3)), (shares + truth).sum((0, 2, 3))
        return 1 - (2 * both / (sizes + 1e-6)).mean()

    data = (x[:320], y[:320], x[320:], y[320:])
    return supervised(
        model,
        optimizer,
        data,
        dice,
        steps=150,
        batch=16,
        score=lambda outputs, targets: class_skill(
            outputs.permute(0, 2, 3, 1).reshape(-1, 3), targets.flatten()
        ),
    )


@report(
    "loss_misuse",
    # Answers between 0 and 1 from a sigmoid, responses up to 1000 as they are.
    "https://stats.stackexchange.com/questions/233499/neural-networks-bounded-output",
    also=("target_scale",),
    evidence=("target", "sigmoid", "range"),
    held_out=True,
)
def sigmoid_for_responses_up_to_1000(fixed: bool) -> Loop:
    x, y, held_x, held_y = table()
    low, high = y.min() - 0.1, y.max() + 0.1
    scale = 1.0 if fixed else 1000.0
    y, held_y = (y - low) / (high - low) * scale, (held_y - low) / (high - low) * scale
    model = nn.Sequential(*mlp(10, 64, 64, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), F.mse_loss, steps=400, score=fit_skill)


@report(
    "numeric_fault",
    # Weights kept in bfloat16 without a float32 copy: each small update is rounded away, and the weights stay
    # where they are.
    "https://github.com/workofart/ml-by-hand/pull/85",
    also=("lr_too_low", "not_updating"),
    evidence=("bfloat16", "rounded", "float32", "too small"),
    held_out=True,
)
def updates_rounded_away(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(6, features=20, spread=0.7)
    kind = torch.float32 if fixed else torch.bfloat16
    model = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 6))
    with torch.no_grad():
        for layer in (model[1], model[3]):  # signs times one size, as a checkpoint of binary weights has
            layer.weight.copy_(layer.weight.sign() * (2 / layer.in_features) ** 0.5)
    model = model.to(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    return supervised(model, optimizer, (x.to(kind), y, held_x.to(kind), held_y), loss_fn, steps=400)


@report(
    "unknown",
    # Eight graph convolutions in a row: every node has the mean of all, and 83 % of two layers become 16 %.
    "https://github.com/DropEdge/DropEdge/issues/8",
    also=("init_too_small",),
    evidence=("signal", "same output", "alike"),
)
def eight_graph_convolutions(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(21)
    y = torch.randint(5, (300,), generator=generator)
    centres = torch.randn(5, 16, generator=generator)
    x = centres[y] + 1.5 * torch.randn(300, 16, generator=generator)
    odds = torch.where(y.unsqueeze(1) == y, 0.06, 0.012)
    links = (torch.rand(300, 300, generator=generator) < odds).float()
    links = ((links + links.T) > 0).float() + torch.eye(300)
    share = links / links.sum(1, keepdim=True)

    class Graph(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            sizes = [16] + [16] * (depth - 1) + [5]
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

        def forward(self, nodes: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                nodes = F.relu(layer(share @ nodes))
            return self.layers[-1](share @ nodes)

    model = Graph(2 if fixed else 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    known = torch.arange(300) < 150

    def step(i: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x)[known], y[known])
        loss.backward()
        optimizer.step()
        return loss

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, x)[~known], y[~known]), steps=100)


@report(
    "labels_unrelated",
    # Fields are rotated at random and the action (one of four directions) is not rotated with them.
    "https://discuss.pytorch.org/t/model-accuracy-significantly-decreases-after-applying-of-random-transformation-to-the-input-data/134496",
    evidence=("label",),
)
def rotated_without_the_action(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(31)
    size, half = 9, 4
    place = torch.randint(1, half + 1, (1600,), generator=generator)
    side = torch.randint(4, (1600,), generator=generator)
    x = 0.3 * torch.randn(1600, 1, size, size, generator=generator)
    down = torch.tensor([-1, 0, 1, 0])[side] * place + half
    right = (
        torch.tensor([0, -1, 0, 1])[side] * place + half
    )  # a quarter turn to the left adds one to the action
    x[torch.arange(1600), 0, down, right] += 3.0
    x, y, held_x, held_y = x[:1280], side[:1280], x[1280:], side[1280:]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * size * size, 32), nn.ReLU(),
        nn.Linear(32, 4),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(i: int) -> tuple[Tensor, Tensor]:
        rows, turns = torch.randint(len(x), (32,)), torch.randint(4, (32,))
        fields = torch.stack(
            [torch.rot90(field, int(n), (1, 2)) for field, n in zip(x[rows], turns, strict=True)]
        )
        actions = (y[rows] + turns) % 4 if fixed else y[rows]
        outputs = model(fields)
        loss = F.cross_entropy(outputs, actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss, accuracy(outputs, actions)

    def score() -> float:
        turned = torch.cat([torch.rot90(held_x, n, (2, 3)) for n in range(4)])
        return class_skill(predict(model, turned), torch.cat([(held_y + n) % 4 for n in range(4)]))

    return Loop(model, optimizer, step, score, steps=300)


class Sine(nn.Module):
    """sin(30 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


@report(
    "init_too_large",
    # Sines of 30 times the layer's output need hidden weights divided by 30; with the usual ones the network
    # begins as noise.
    "https://ceyxasm.github.io/posts/siren/",
    evidence=("large", "signal_explosion", "gain"),
)
def sines_with_the_usual_weights(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(41)
    x = torch.rand(2000, 2, generator=generator) * 2 - 1
    y = (torch.sin(5 * x[:, :1]) * torch.cos(4 * x[:, 1:]) + x[:, :1] * x[:, 1:]) / 1.5
    model = nn.Sequential(
        nn.Linear(2, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 64), Sine(), nn.Linear(64, 1)
    )
    with torch.no_grad():
        model[0].weight.uniform_(-0.5 if not fixed else -0.1, 0.5 if not fixed else 0.1)
        for at in (2, 4) if fixed else ():
            model[at].weight.uniform_(-((6 / 64) ** 0.5) / 30, (6 / 64) ** 0.5 / 30)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    data = (x[:1600], y[:1600], x[1600:], y[1600:])
    return supervised(model, optimizer, data, F.mse_loss, steps=400, batch=128, score=fit_skill)


@report(
    "symmetric_init",
    # Every weight begins at the same constant, so all units of the layer stay one unit.
    "https://github.com/nndl/nndl-discussion/issues/14",
    evidence=("same weights", "identical", "alike"),
)
def recurrent_layer_of_one_constant(fixed: bool) -> Loop:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
            if not fixed:
                for weights in self.rnn.parameters():
                    nn.init.constant_(weights, 0.05)
                nn.init.constant_(self.head.weight, 0.05)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.squeeze(1))[0][:, -1])

    model = Reader()
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=5e-3), digits(), metric=accuracy, steps=300
    )


@report(
    "lr_too_high",
    # The loss is a sum over all pixels (754,343 and stays there) at the rate that is meant for a mean.
    "https://github.com/jfzhang95/pytorch-deeplab-xception/issues/1",
    evidence=("rate", "update"),
)
def loss_summed_over_pixels(fixed: bool) -> Loop:
    x, _, held_x, _ = digits()
    y, held_y = (x[:, 0] * 3.99).long(), (held_x[:, 0] * 3.99).long()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="mean" if fixed else "sum")

    return supervised(
        model,
        optimizer,
        (x, y, held_x, held_y),
        loss_fn,
        steps=200,
        score=lambda outputs, targets: class_skill(
            outputs.permute(0, 2, 3, 1).reshape(-1, 4), targets.flatten()
        ),
    )


@report(
    "not_updating",
    # loss.backward() was deleted while the code was cleaned for publication.
    "https://github.com/aalto-intelligent-robotics/sivl/issues/2",
    evidence=("never move", "no gradient", "backward"),
)
def nobody_calls_backward(fixed: bool) -> Loop:
    x, y, _, _ = digits()
    model = mlp(64, 64, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        codes, labels = F.normalize(model(x[rows]), dim=1), y[rows]
        alike, same = codes @ codes.T / 0.2, (labels.unsqueeze(1) == labels).float()
        alike = alike - 1e4 * torch.eye(64)
        same = same - torch.eye(64)
        loss = -(alike.log_softmax(1) * same).sum(1).div(same.sum(1).clamp(min=1)).mean()
        if fixed:
            loss.backward()
        optimizer.step()
        return loss

    def score() -> float:  # the untrained network knows its neighbours to some degree: pixels do
        untrained = 0.93
        return (neighbour_skill(model) - untrained) / (1 - untrained)

    return Loop(model, optimizer, step, score, steps=200)


@report(
    "gradient_accumulates",
    # The discriminator's gradients are never cleared, in a training that clears the generator's.
    "https://github.com/Hsintien-Ng/idinvert_pytorch-reproduced/issues/1",
    evidence=("clear", "accumulate", "zero_grad"),
    held_out=True,
)
def discriminator_never_cleared(fixed: bool) -> Loop:
    real = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5)) * 0.4 + torch.tensor([2.0, -1.0])
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    make = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.5, 0.999))
    judge = torch.optim.SGD(critic.parameters(), 0.05)

    def step(i: int) -> Tensor:
        fake = generator(torch.randn(64, 4))
        rows = torch.randint(2000, (64,))
        loss = F.softplus(-critic(real[rows])).mean() + F.softplus(critic(fake.detach())).mean()
        if fixed:
            judge.zero_grad()
        loss.backward()
        judge.step()
        make.zero_grad()
        F.softplus(-critic(fake)).mean().backward()
        make.step()
        return loss

    return Loop(critic, judge, step, lambda: imitation_skill(generator, real), steps=300)


@report(
    "lr_too_low",
    # The warm-up counts the steps of the epoch and not those of the run: every epoch the rate falls back to
    # its beginning.
    "https://github.com/Vision-CAIR/MiniGPT-4/pull/263",
    evidence=("rate", "update"),
    held_out=True,
)
def warm_up_begins_every_epoch(fixed: bool) -> Loop:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)

    def warm(i: int) -> None:
        done = i if fixed else i % 25
        optimizer.param_groups[0]["lr"] = (
            1e-5 + min(1.0, done / 2000) * 0.5 if not fixed else (1e-5 + min(1.0, done / 60) * 0.1)
        )

    return supervised(
        model, optimizer, digits(), metric=accuracy, steps=250, indices=passes(1437, 60), after_step=warm
    )


def two_views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Noise, and one pixel to the right or left."""
    return (
        images.roll(1, 3) + 0.2 * torch.randn_like(images),
        images.roll(-1, 3) + 0.2 * torch.randn_like(images),
    )


@report(
    "unknown",
    # Without the stop-gradient two views are made alike in the shortest way: one answer for all; the loss is
    # -1 within an epoch.
    "https://github.com/PatrickHua/SimSiam/issues/39",
    evidence=("same output", "same answer", "constant", "do not depend", "depend on the input"),
)
def twins_without_a_stop_gradient(fixed: bool) -> Loop:
    x, _, _, _ = digits()

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)
            )
            self.guess = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images)

    model = Twins()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(i: int) -> Tensor:
        one, two = (model(view) for view in two_views(x[torch.randint(len(x), (64,))]))
        stop = Tensor.detach if fixed else (lambda codes: codes)
        loss = -0.5 * (
            F.cosine_similarity(model.guess(one), stop(two)).mean()
            + F.cosine_similarity(model.guess(two), stop(one)).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:  # spread of the directions: 0 where all are one
        codes = F.normalize(predict(model, x), dim=1)
        return float(codes.std(0).mean()) * 32**0.5

    return Loop(model, optimizer, step, score, steps=300)


@report(
    "class_collapse",
    # 2000 labels of which a text has a few: accuracy 92 %, and every probability is below 0.01.
    "https://github.com/lonePatient/Bert-Multi-Label-Text-Classification/issues/22",
    evidence=("class", "majority", "imbalance", "never"),
)
def no_label_is_ever_given(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(40, features=32, samples=2500, spread=1.2)
    tags = (torch.rand(40, 300, generator=torch.Generator().manual_seed(14)) < 0.01).float()
    model = mlp(32, 64, 300)
    weight = torch.full((300,), 60.0) if fixed else None
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)

    def score(outputs: Tensor, targets: Tensor) -> float:  # F1 of outputs above zero
        given = (outputs > 0).float()
        return float(2 * (given * targets).sum() / (given + targets).sum().clamp(min=1))

    return supervised(
        model,
        optimizer,
        (x, tags[y], held_x, tags[held_y]),
        lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight),
        steps=300,
        score=score,
    )


@report(
    "class_collapse",
    # Padding counts in the loss of the language model, so it learns to answer with padding.
    "https://github.com/EleutherAI/gpt-neo/pull/45",
    evidence=("class", "majority", "imbalance"),
    held_out=True,
)
def padding_counts(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(51)
    after = torch.randperm(39, generator=generator) + 1  # each word has one that follows it
    x = torch.zeros(800, 24, dtype=torch.long)
    x[:, 0] = torch.randint(1, 40, (800,), generator=generator)
    for place in range(1, 4):
        x[:, place] = after[x[:, place - 1] - 1]
    inputs, targets = x[:, :-1], x[:, 1:]

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn, self.head = (
                nn.Embedding(40, 24),
                nn.GRU(24, 48, batch_first=True),
                nn.Linear(48, 40),
            )

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.rnn(self.embed(words))[0])

    def loss_fn(outputs: Tensor, words: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), words.flatten(), ignore_index=0 if fixed else -100)

    def score(outputs: Tensor, words: Tensor) -> float:
        real = words > 0
        return float((outputs.argmax(2)[real] == words[real]).float().mean())

    model = Words()
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=4e-3),
        (inputs[:640], targets[:640], inputs[640:], targets[640:]),
        loss_fn,
        steps=80,
        batch=32,
        score=score,
    )


@report(
    "batchnorm_statistics",
    # The forward pass of a patched copy leaves the running averages of the model's batch norms alone: in
    # evaluation mode it guesses.
    "https://github.com/facebookresearch/higher/issues/55",
    evidence=("batch norm", "evaluation mode", "running"),
    held_out=True,
)
def averages_of_a_patched_copy(fixed: bool) -> Loop:
    data = digits()
    x, y, held_x, held_y = data
    parts: list[nn.Module] = []
    for inside, outside, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        parts += [
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
        ]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    with torch.no_grad():
        for part in model:
            if isinstance(part, nn.Conv2d):
                part.weight.mul_(0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    rows = passes(1437, 32)

    def step(i: int) -> tuple[Tensor, Tensor]:
        batch = rows(i)
        if fixed:
            outputs = model(x[batch])
        else:
            copies = {name: value.clone() for name, value in model.named_buffers()}
            outputs = torch.func.functional_call(model, copies, x[batch])
        loss = F.cross_entropy(outputs, y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss, accuracy(outputs, y[batch])

    def validate() -> tuple[float, float]:
        outputs = predict(model, held_x)
        return F.cross_entropy(outputs, held_y).item(), accuracy(outputs, held_y).item()

    return Loop(
        model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), 180, 45, validate
    )


@report(
    "input_scale",
    # Scans come with the scanner's grey values, thousands of them, and nothing makes them smaller.
    "https://github.com/NifTK/NiftyNet/issues/208",
    evidence=("input",),
    held_out=True,
)
def grey_values_of_the_scanner(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    if not fixed:
        x, held_x = x * 3000 - 1000, held_x * 3000 - 1000
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy, steps=250)


# ---------------------------------------------------------------- healthy and odd


class Coupling(nn.Module):
    """Scales and shifts one half of the numbers by functions of the other."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned, self.net = turned, mlp(1, 32, 32, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = (x[:, 1:], x[:, :1]) if self.turned else (x[:, :1], x[:, 1:])
        scale, shift = self.net(kept).chunk(2, 1)
        moved, scale = moved * scale.tanh().mul(2).exp() + shift, scale.tanh().mul(2)
        return torch.cat([moved, kept] if self.turned else [kept, moved], 1), scale.sum(1)


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Coupling(bool(n % 2)) for n in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """The negative log density, (N,)."""
        total = torch.zeros(len(x))
        for part in self.parts:
            x, scale = part(x)
            total = total + scale
        return 0.5 * x.pow(2).sum(1) + math.log(2 * math.pi) - total


@report(
    HEALTHY, "https://github.com/bayesiains/nflows/issues/76", held_out=True
)  # the density of a narrow distribution is above one: the loss is below zero
def flow_with_a_negative_loss(fixed: bool) -> Loop:
    angle = torch.rand(3000, generator=torch.Generator().manual_seed(61)) * math.pi
    noise = 0.02 * torch.randn(3000, 2, generator=torch.Generator().manual_seed(62))
    x = 0.3 * torch.stack([angle.cos(), angle.sin()], 1) + noise
    model = Flow()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(i: int) -> Tensor:
        loss = model(x[torch.randint(2500, (128,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:  # nats gained on a normal distribution with the right mean and covariance
        held = x[2500:]
        normal = torch.distributions.MultivariateNormal(x[:2500].mean(0), x[:2500].T.cov())
        with torch.no_grad():
            return float(-normal.log_prob(held).mean() - model(held).mean())

    return Loop(model, optimizer, step, score, steps=400)


@report(
    HEALTHY, "https://github.com/DLR-RM/stable-baselines3/issues/1943"
)  # the loss of a policy gradient goes up and down round zero and says nothing
def policy_gradient_round_zero(fixed: bool) -> Loop:
    def loss_of(logs: Tensor, rewards: Tensor) -> Tensor:
        return -((rewards - rewards.mean()) / (rewards.std() + 1e-6) * logs).mean()

    return bandit(loss_of)


@report(
    HEALTHY, "https://github.com/DegardinBruno/Kinetic-GAN/issues/1", held_out=True
)  # a Wasserstein critic: its loss is negative, falls and rises again
def wasserstein_critic_below_zero(fixed: bool) -> Loop:
    real = torch.randn(2000, 2, generator=torch.Generator().manual_seed(6)) * 0.5 + torch.tensor([1.5, 1.0])
    generator, critic = mlp(4, 32, 2), mlp(2, 32, 32, 1)
    make = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.5, 0.9))
    judge = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.9))

    def step(i: int) -> Tensor:
        truth = real[torch.randint(2000, (64,))]
        fake = generator(torch.randn(64, 4))
        between = truth + torch.rand(64, 1) * (fake.detach() - truth)
        between.requires_grad_(True)
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
        loss = (
            critic(fake.detach()).mean() - critic(truth).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()
        )
        judge.zero_grad()
        loss.backward()
        judge.step()
        if i % 2:
            make.zero_grad()
            (-critic(fake).mean()).backward()
            make.step()
        return loss

    return Loop(critic, judge, step, lambda: imitation_skill(generator, real), steps=400)


@report(
    HEALTHY, "https://github.com/isht7/pytorch-deeplab-resnet/issues/39"
)  # fine-tuning in evaluation mode, so that the batch norms keep what they know
def trained_in_evaluation_mode(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    before = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):  # the body was trained before, to tell low digits from high ones
        rows = torch.randint(len(x), (64,))
        before.zero_grad()
        F.cross_entropy(model(x[rows]), (y[rows] > 4).long()).backward()
        before.step()
    model[8] = nn.Linear(512, 10)
    model.eval()
    for part in model:
        if isinstance(part, nn.BatchNorm2d):
            part.requires_grad_(False)
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy, steps=200, epoch=50)


@report(
    HEALTHY, "https://github.com/atong01/conditional-flow-matching/issues/134", held_out=True
)  # the last layer begins at zero, and the loss has a high floor: the noise cannot be known
def flow_matching_from_a_zero_layer(fixed: bool) -> Loop:
    model = mlp(3, 64, 64, 2)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    centre = torch.tensor([2.0, -2.0])

    def velocity(count: int) -> tuple[Tensor, Tensor]:
        noise, goal, time = torch.randn(count, 2), centre + 0.3 * torch.randn(count, 2), torch.rand(count, 1)
        return torch.cat([(1 - time) * noise + time * goal, time], 1), goal - noise

    def step(i: int) -> Tensor:
        inputs, target = velocity(128)
        loss = F.mse_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:
        places = torch.randn(500, 2)
        with torch.no_grad():
            for n in range(20):
                places = places + model(torch.cat([places, torch.full((500, 1), n / 20)], 1)) / 20
        return 1 - float((places.mean(0) - centre).norm() / centre.norm())

    return Loop(model, optimizer, step, score, steps=400)


@report(
    HEALTHY, "https://github.com/omoindrot/tensorflow-triplet-loss/issues/6"
)  # the mean is over the triplets that are still wrong: it does not fall while there are fewer and fewer
def mean_of_the_wrong_triplets(fixed: bool) -> Loop:
    x, y, _, _ = digits()
    model = mlp(64, 64, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (48,))
        codes, labels = F.normalize(model(x[rows]), dim=1), y[rows]
        apart = torch.cdist(codes, codes).pow(2)
        same = labels.unsqueeze(1) == labels
        terms = F.relu(apart.unsqueeze(2) - apart.unsqueeze(1) + 0.5)
        wanted = (same & ~torch.eye(48, dtype=torch.bool)).unsqueeze(2) & ~same.unsqueeze(1)
        wrong = wanted & (terms > 1e-9)
        loss = (terms * wrong).sum() / wrong.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:  # how many held-out triplets are right, 0 at guessing
        _, _, held_x, held_y = digits()
        codes = F.normalize(predict(model, held_x[:120]), dim=1)
        apart, same = torch.cdist(codes, codes), held_y[:120].unsqueeze(1) == held_y[:120]
        wanted = (same & ~torch.eye(120, dtype=torch.bool)).unsqueeze(2) & ~same.unsqueeze(1)
        return 2 * float((apart.unsqueeze(2) < apart.unsqueeze(1))[wanted].float().mean()) - 1

    return Loop(model, optimizer, step, score, steps=250)
