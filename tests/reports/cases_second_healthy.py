"""Second round: runs that are sound and look odd, written down before the diagnosis had seen one."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import (
    accuracy,
    class_skill,
    clusters,
    digits,
    fit_skill,
    mlp,
    predict,
    sentences,
    supervised,
    table,
)
from tests.reports.registry import HEALTHY, Loop, report


@report(
    HEALTHY, "https://github.com/lululxvi/deepxde/issues/2073"
)  # the loss is of derivatives, and the residual's part is tiny beside the boundary's
def residual_of_a_differential_equation(fixed: bool) -> Loop:
    model = mlp(1, 32, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(i: int) -> Tensor:  # u'' = -u, u(0) = 0, u'(0) = 1: a sine
        t = (torch.rand(64, 1) * 3).requires_grad_()
        u = model(t)
        (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
        zero = torch.zeros(1, 1, requires_grad=True)
        start = model(zero)
        (slope,) = torch.autograd.grad(start.sum(), zero, create_graph=True)
        loss = (ddu + u).square().mean() + start.square().sum() + (slope - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:
        t = torch.linspace(0, 3, 100).unsqueeze(1)
        return fit_skill(predict(model, t), t.sin())

    return Loop(model, optimizer, step, score, steps=500)


@report(
    HEALTHY, "https://github.com/pytorch/pytorch/issues/130342"
)  # labels are smoothed: the loss ends at 0.9 of 2.3 and cannot fall further
def smoothed_labels_have_a_floor(fixed: bool) -> Loop:
    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=0.3)

    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return supervised(model, optimizer, digits(), loss_fn, metric=accuracy, steps=250)


@report(
    HEALTHY, "https://github.com/wandb/senpai/pull/968"
)  # every gradient is clipped to norm one, and Adam takes no notice
def clipped_at_every_step(fixed: bool) -> Loop:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(30, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(32, 2)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.body(self.embed(words)).mean(1))

    model = Encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    return supervised(model, optimizer, sentences(), metric=accuracy, steps=200, after_backward=clip)


@report(
    HEALTHY, "https://github.com/davda54/sam/issues/8"
)  # two backward passes a step: up the hill, and then down from there
def two_passes_a_step(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(i: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        outputs = model(x[rows])
        first = F.cross_entropy(outputs, y[rows])
        first.backward()
        with torch.no_grad():
            size = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            up = [0.05 * p.grad / size for p in model.parameters()]
            for parameter, away in zip(model.parameters(), up, strict=True):
                parameter.add_(away)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        with torch.no_grad():
            for parameter, away in zip(model.parameters(), up, strict=True):
                parameter.sub_(away)
        optimizer.step()
        return first, accuracy(outputs, y[rows])

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=200)


@report(
    HEALTHY, "https://github.com/roggirg/AutoBots/issues/7"
)  # a Gaussian likelihood with its own variance falls below zero
def likelihood_below_zero(fixed: bool) -> Loop:
    x, y, held_x, held_y = table(samples=2000, noise=0.05)
    model = mlp(10, 64, 64, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_variance = outputs.chunk(2, 1)
        return F.gaussian_nll_loss(mean, targets, log_variance.exp())

    def score(outputs: Tensor, targets: Tensor) -> float:
        return fit_skill(outputs[:, :1], targets)

    return supervised(model, optimizer, (x, y, held_x, held_y), loss_fn, steps=400, score=score)


@report(
    HEALTHY, "https://github.com/lhoyer/DAFormer/issues/59"
)  # half of the model is a slow copy that no optimizer holds and no gradient reaches
def teacher_that_is_an_average(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    student = mlp(64, 64, 10)
    model = nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)})
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)

    def step(i: int) -> tuple[Tensor, Tensor]:
        rows, more = torch.randint(len(x), (32,)), torch.randint(len(x), (32,))
        outputs = student(x[rows])
        noisy = x[more] + 0.1 * torch.randn(32, 1, 8, 8)
        agreed = F.mse_loss(student(noisy).softmax(1), model["teacher"](x[more]).softmax(1))
        loss = F.cross_entropy(outputs, y[rows]) + agreed
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(model["teacher"].parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        return loss, accuracy(outputs, y[rows])

    def score() -> float:
        return class_skill(predict(model["teacher"], held_x), held_y)

    return Loop(model, optimizer, step, score, steps=250)


@report(
    HEALTHY, "https://github.com/yaringal/multi-task-learning-example/issues/6"
)  # two tasks weighted by learned uncertainties: the sum falls below zero
def learned_weights_of_two_tasks(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(4, spread=0.6)
    direction = torch.randn(16, 1, generator=torch.Generator().manual_seed(221)) / 4

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kind, self.size = mlp(16, 48, 48), nn.Linear(48, 4), nn.Linear(48, 1)
            self.log_variances = nn.Parameter(torch.zeros(2))

        def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(self.body(rows))
            return self.kind(h), self.size(h)

    model = Two()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (64,))
        kinds, sizes = model(x[rows])
        losses = torch.stack([F.cross_entropy(kinds, y[rows]), F.mse_loss(sizes, x[rows] @ direction)])
        loss = (losses * torch.exp(-model.log_variances) + model.log_variances).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:
        return class_skill(predict(model, held_x)[0], held_y)

    return Loop(model, optimizer, step, score, steps=400)


@report(
    HEALTHY, "https://github.com/pytorch/pytorch/issues/18404"
)  # sentences of all lengths in batches of all sizes, embeddings with an optimizer of their own
def batches_of_all_sizes(fixed: bool) -> Loop:
    x, y, held_x, held_y = sentences(samples=2500)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(30, 24, padding_idx=0, sparse=True)
            self.rnn, self.head = nn.GRU(24, 32, batch_first=True), nn.Linear(32, 2)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.rnn(self.embed(words))[0].max(1).values)

    model = Reader()
    rest = [*model.rnn.parameters(), *model.head.parameters()]
    optimizers = (
        torch.optim.SparseAdam(list(model.embed.parameters()), lr=2e-2),
        torch.optim.Adam(rest, lr=5e-3),
    )

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (8 + 7 * (i % 9),))
        words = F.pad(x[rows], (0, i % 5))
        loss = F.cross_entropy(model(words), y[rows])
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    return Loop(model, optimizers, step, lambda: class_skill(predict(model, held_x), held_y), steps=250)
