"""Second round: reports about data, targets and losses, written down before the diagnosis had seen one.

At first sight, with ``cases_second_training`` and ``cases_second_healthy``: of 21 broken ones 14 right, 2
fair, 1 unhelpful and 4 misleading; no alarm over 21 mended and 8 healthy ones.
"""

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
    sentences,
    supervised,
)
from tests.reports.registry import Loop, report


@report(
    "loss_misuse",
    # KLDivLoss takes logarithms of probabilities and is given probabilities.
    "https://github.com/sebastian-hofstaetter/matchmaker/issues/18",
    evidence=("log-probabilities", "below zero", "negative"),
)
def divergence_of_plain_probabilities(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    soft = F.one_hot(y, 10) * 0.5 + 0.05
    held_soft = F.one_hot(held_y, 10) * 0.5 + 0.05

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        given = F.log_softmax(outputs, 1) if fixed else F.softmax(outputs, 1)
        return F.kl_div(given, targets, reduction="batchmean")

    def score(outputs: Tensor, targets: Tensor) -> float:
        # a teacher's soft labels: how near the student's probabilities come, against one tenth each
        far = (F.softmax(outputs, 1) - targets).abs().sum(1).mean()
        return 1 - float(far / (targets - 0.1).abs().sum(1).mean())

    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return supervised(model, optimizer, (x, soft, held_x, held_soft), loss_fn, score=score)


@report(
    "labels_unrelated",
    # (time, batch, features) is viewed as (batch, time, features): a "sample" is made of pieces of others.
    "https://github.com/vitrioil/Speech-Separation/issues/4",
    also=("samples_mixed",),
    evidence=("guess", "label"),
)
def time_first_viewed_as_batch_first(fixed: bool) -> Loop:
    x, y, held_x, held_y = _walks()

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 32, batch_first=True), nn.Linear(32, 3)

        def forward(self, steps: Tensor) -> Tensor:
            return self.head(self.rnn(steps)[0].mean(1))

    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(i: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (32,))
        by_time = x[rows].transpose(0, 1).contiguous()  # as the files come
        batch = by_time.transpose(0, 1) if fixed else by_time.view(32, 16, 4)
        optimizer.zero_grad()
        outputs = model(batch)
        loss = F.cross_entropy(outputs, y[rows])
        loss.backward()
        optimizer.step()
        return loss, accuracy(outputs, y[rows])

    def score() -> float:  # the files are read in the same way
        read = held_x if fixed else held_x.transpose(0, 1).reshape(held_x.shape)
        return class_skill(predict(model, read), held_y)

    return Loop(model, optimizer, step, score, steps=200)


def _walks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequences of 16 steps and 4 features whose drift is their class's."""
    generator = torch.Generator().manual_seed(201)
    drift = torch.randn(3, 4, generator=generator)
    y = torch.randint(3, (1500,), generator=generator)
    x = drift[y].unsqueeze(1) * 0.8 + torch.randn(1500, 16, 4, generator=generator)
    return x[:1200], y[:1200], x[1200:], y[1200:]


@report(
    "class_collapse",
    # Classes are weighted with their frequency where its inverse was meant: the rare one is given up.
    "https://github.com/lightgbm-org/LightGBM/issues/3426",
    also=("loss_misuse",),
    evidence=("class", "majority", "imbalance"),
)
def class_weights_the_wrong_way_round(fixed: bool) -> Loop:
    shares = (0.8, 0.15, 0.05)
    x, y, held_x, held_y = clusters(3, spread=2.2, samples=3000, shares=shares)
    share = torch.tensor(shares)
    weights = 1 / share if fixed else share**2
    weights = weights / weights.mean()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=weights)

    model = mlp(16, 32, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), loss_fn, metric=accuracy, steps=250)


@report(
    "unknown",
    # The words are cased otherwise than the vocabulary: every word is <unk>.
    "https://github.com/suriyadeepan/practical_seq2seq/issues/43",
    also=("input_scale",),
    evidence=("guess", "same", "signal"),
)
def every_word_is_unknown(fixed: bool) -> Loop:
    x, y, held_x, held_y = sentences()
    if not fixed:
        x, held_x = torch.zeros_like(x), torch.zeros_like(held_x)

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(30, 24), mlp(24, 32, 2)

        def forward(self, words: Tensor) -> Tensor:
            return self.body(self.embed(words).mean(1))

    model = Bag()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy, steps=250)


@report(
    "input_scale",
    # Bytes are divided by 255 as integers: pictures of nothing but zeros, and a one here and there.
    "https://github.com/aadeshnpn/OSDN/issues/19",
    evidence=("input",),
)
def bytes_divided_as_integers(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    if not fixed:
        x, held_x = (((part * 254).byte() // 255).float() for part in (x, held_x))
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy)


@report(
    "unknown",
    # Similarities of unit vectors are multiplied by the temperature of 0.07: the softmax stays all but flat.
    "https://github.com/lightonai/pylate/pull/115",
    also=("loss_misuse", "lr_too_low"),
    evidence=("guess", "temperature", "softmax"),
)
def multiplied_by_the_temperature(fixed: bool) -> Loop:
    x, _, held_x, _ = digits()
    model = mlp(64, 64, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (64,))
        views = (x[rows] + 0.1 * torch.randn(64, 1, 8, 8), x[rows] + 0.1 * torch.randn(64, 1, 8, 8))
        a, b = (F.normalize(model(view), dim=1) for view in views)
        likeness = a @ b.T
        loss = F.cross_entropy(likeness / 0.07 if fixed else likeness * 0.07, torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:  # does a noisy copy find its own picture among 64?
        pictures = held_x[:64]
        a = F.normalize(predict(model, pictures + 0.3 * torch.randn_like(pictures)), dim=1)
        b = F.normalize(predict(model, pictures), dim=1)
        return float(((a @ b.T).argmax(1) == torch.arange(64)).float().mean())

    return Loop(model, optimizer, step, score, steps=200)


@report(
    "input_scale",
    # The step of the diffusion, 0 to 999, stands beside standardized columns.
    "https://github.com/facebookresearch/actionmesh/issues/10",
    evidence=("input", "large", "loud"),
)
def steps_up_to_999(fixed: bool) -> Loop:
    angle = torch.rand(3000, generator=torch.Generator().manual_seed(203)) * 6.2832
    points = torch.stack([angle.cos(), angle.sin()], 1)
    model = mlp(3, 64, 64, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    kept = torch.cos(torch.linspace(0, 1.5, 1000)) ** 2

    def noised(rows: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.randint(1000, (len(rows),))
        noise = torch.randn(len(rows), 2)
        share = kept[at].unsqueeze(1)
        x = share.sqrt() * points[rows] + (1 - share).sqrt() * noise
        when = at.float().unsqueeze(1)
        return torch.cat([x, when / 500 - 1 if fixed else when], 1), noise

    def step(i: int) -> Tensor:
        x, noise = noised(torch.randint(len(points), (64,)))
        loss = F.mse_loss(model(x), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def score() -> float:  # the noise of one number can be told to about a half
        x, noise = noised(torch.arange(3000))
        return 2 * fit_skill(predict(model, x), noise)

    return Loop(model, optimizer, step, score, steps=250)


@report(
    "labels_unrelated",
    # Labels between 0 and 1 are cast to integers for the loss: all are class 0.
    "https://github.com/s9xie/hed/issues/45",
    also=("class_collapse",),
    evidence=("label", "class"),
)
def soft_labels_cut_to_integers(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(2, spread=1.2)
    soft = y * 0.98 + 0.01
    labels = (soft.round() if fixed else soft).long()
    model = mlp(16, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return supervised(model, optimizer, (x, labels, held_x, held_y), metric=accuracy)


@report(
    "numeric_fault",
    # A batch in which every label is to be ignored: the mean over none is 0 / 0.
    "https://github.com/pytorch/pytorch/issues/70348",
    evidence=("loss", "outputs are finite"),
)
def nothing_but_ignored_labels(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(4, spread=0.9)

    model = mlp(16, 32, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (8,))
        labels = y[rows].clone()
        labels[torch.rand(8) < (1.0 if i == 70 else 0.4)] = -100  # pixels that nobody has labelled
        known = labels != -100
        each = F.cross_entropy(model(x[rows]), labels, reduction="none")
        loss = (each * known).sum() / (known.sum().clamp(min=1) if fixed else known.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=200)
