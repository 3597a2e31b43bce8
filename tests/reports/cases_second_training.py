"""Second round: reports about optimizers and structure, written down before the diagnosis had seen one."""

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
    imitation_skill,
    mlp,
    predict,
    sentences,
    supervised,
    table,
)
from tests.reports.registry import Loop, report


class Pooled(nn.Module):
    """Words, weighted by learned scores; with ``over`` = -1 the softmax runs over the one score of a word."""

    def __init__(self, over: int) -> None:
        super().__init__()
        self.embed, self.score, self.head = nn.Embedding(40, 24), nn.Linear(24, 1), nn.Linear(24, 2)
        self.over = over

    def forward(self, words: Tensor) -> Tensor:
        h = self.embed(words)
        return self.head((self.score(h).softmax(self.over) * h).sum(1))


@report(
    "unknown",
    # The softmax of the attention runs over the one score of each word: every weight is one.
    "https://github.com/localminimum/R-net/issues/8",
    also=("loss_misuse", "not_updating"),
    evidence=("gradient", "softmax"),
)
def attention_over_a_single_score(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(211)
    x = torch.randint(4, 40, (2000, 60), generator=generator)
    y = torch.randint(2, (2000,), generator=generator)
    x[torch.arange(2000), torch.randint(60, (2000,), generator=generator)] = 2 + y  # one word decides
    model = Pooled(1 if fixed else -1)
    with torch.no_grad():
        model.embed.weight.mul_(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return supervised(model, optimizer, (x[:1600], y[:1600], x[1600:], y[1600:]), metric=accuracy, steps=60)


@report(
    "lr_too_high",
    # The loss is scaled by 1024 for half precision and the gradients are never unscaled: SGD goes that far.
    "https://github.com/nerfstudio-project/nerfacc/issues/307",
    also=("loss_misuse",),
    evidence=("update", "rate"),
)
def scaled_and_never_unscaled(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(i: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (32,))
        outputs = model(x[rows])
        loss = F.cross_entropy(outputs, y[rows])
        optimizer.zero_grad()
        (loss * 1024).backward()
        if fixed:
            for parameter in model.parameters():
                parameter.grad /= 1024
        optimizer.step()
        return loss, accuracy(outputs, y[rows])

    return Loop(model, optimizer, step, lambda: class_skill(predict(model, held_x), held_y), steps=250)


@report(
    "unknown",
    # Sentences are padded to the longest; the last state has read a hundred pads since the last word.
    "https://github.com/bentrevett/pytorch-sentiment-analysis/issues/86",
    also=("init_too_small",),
    evidence=("signal", "depend", "guess"),
)
def last_state_has_read_only_pads(fixed: bool) -> Loop:
    x, y, held_x, held_y = sentences()
    x, held_x = (F.pad(part, (0, 80)) for part in (x, held_x))

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(30, 16, padding_idx=0)
            self.rnn, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 2)

        def forward(self, words: Tensor) -> Tensor:
            states, (last, _) = self.rnn(self.embed(words))
            return self.head(states[:, 11] if fixed else last[-1])

    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy, steps=120)


@report(
    "lr_too_high",
    # A recurrence of ReLUs over long sequences: gradients of thousands throw the weights away unless clipped.
    "https://github.com/AlexanderVNikitin/tsgm/issues/59",
    also=("init_too_large",),
    evidence=("explod", "gradient", "large"),
)
def recurrence_of_rectifiers(fixed: bool) -> Loop:
    generator = torch.Generator().manual_seed(213)
    x = torch.randn(800, 60, 2, generator=generator)
    y = x[:, :, :1].mean(1) * 7

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(2, 48, nonlinearity="relu", batch_first=True)
            self.head = nn.Linear(48, 1)
            if not fixed:  # as a forum advises for ReLUs, and four steps in ten too much for a loop
                nn.init.normal_(self.rnn.weight_hh_l0, std=(2.6 / 48) ** 0.5)

        def forward(self, steps: Tensor) -> Tensor:
            return self.head(self.rnn(steps)[0][:, -1])

    model = Sum()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    return supervised(
        model,
        optimizer,
        (x[:600], y[:600], x[600:], y[600:]),
        F.mse_loss,
        steps=250,
        score=fit_skill,
        after_backward=clip if fixed else lambda: None,
    )


@report(
    "lr_too_low",
    # Adam's epsilon at 0.1, far above its gradients: the step is the gradient times a hundredth, no more.
    "https://github.com/mlpnlp/mlpnlp-nmt/pull/4",
    also=("not_updating",),
    evidence=("update", "epsilon", "rate"),
)
def epsilon_of_a_tenth(fixed: bool) -> Loop:
    model = mlp(64, 48, 48, 48, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8 if fixed else 0.1)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=200)


@report(
    "lr_too_high",
    # A momentum of 0.999 adds up a thousand steps: the rate is that many times what it says.
    "https://github.com/distillpub/post--momentum/issues/90",
    evidence=("update", "rate", "momentum"),
)
def momentum_of_almost_one(fixed: bool) -> Loop:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9 if fixed else 0.999)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=250)


@report(
    "unknown",
    # log(1 - D) has no slope where the discriminator is sure, and it soon is: the generator stands still.
    "https://github.com/carpedm20/DCGAN-tensorflow/issues/33",
    also=("not_updating",),
    evidence=("another network", "gradient", "discriminator"),
)
def generator_of_the_saturating_loss(fixed: bool) -> Loop:
    real = torch.randn(2000, 2, generator=torch.Generator().manual_seed(6)) * 0.3 + torch.tensor([6.0, 5.0])
    generator, critic = mlp(4, 32, 2), mlp(2, 64, 64, 1)
    make = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.9))
    judge = torch.optim.Adam(critic.parameters(), 3e-3, betas=(0.5, 0.9))

    def step(i: int) -> Tensor:
        for _ in range(5):
            rows = torch.randint(len(real), (64,))
            made = generator(torch.randn(64, 4)).detach()
            judge.zero_grad()
            (F.softplus(-critic(real[rows])).mean() + F.softplus(critic(made)).mean()).backward()
            judge.step()
        make.zero_grad()
        verdicts = critic(generator(torch.randn(64, 4)))
        loss = F.softplus(-verdicts).mean() if fixed else torch.log(1 - torch.sigmoid(verdicts) + 1e-8).mean()
        loss.backward()
        make.step()
        return loss

    return Loop(generator, make, step, lambda: imitation_skill(generator, real), steps=200)


@report(
    "not_updating",
    # The averaged weights are copied into the network that is trained: each step is undone but for 0.1 %.
    "https://github.com/aqlaboratory/openfold/pull/90",
    also=("lr_too_low",),
    evidence=("update", "never move", "average", "undone", "put back"),
)
def averages_copied_back(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    averages = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def average(i: int) -> None:
        for mean, parameter in zip(averages, model.parameters(), strict=True):
            mean.lerp_(parameter, 0.001)
            if not fixed:
                parameter.copy_(mean)

    return supervised(
        model, optimizer, (x, y, held_x, held_y), metric=accuracy, steps=250, after_step=average
    )


@report(
    "not_updating",
    # Weights are frozen as for fine-tuning, and the pretrained ones were never loaded.
    "https://github.com/hushell/sib_meta_learn/issues/3",
    also=("unregistered_layers",),
    evidence=("never move", "requires_grad", "frozen"),
)
def frozen_without_pretraining(fixed: bool) -> Loop:
    body = mlp(64, 12, 12, 12, 12, 12, activation=nn.Tanh)
    body.requires_grad_(fixed)
    model = nn.Sequential(body, nn.Tanh(), nn.Linear(12, 10))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=300)


@report(
    "unknown",
    # LayerNorm over a last dimension of size one: its output is its bias, whatever comes in.
    "https://github.com/pytorch/pytorch/issues/108956",
    also=("not_updating",),
    evidence=("signal", "depend", "gradient", "same"),
)
def layer_norm_of_a_single_feature(fixed: bool) -> Loop:
    x, y, held_x, held_y = clusters(3, features=12, spread=0.8)

    class Series(nn.Module):
        """Twelve readings of one sensor, (batch, 12, 1), normalized for each reading or over all twelve."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm((12, 1) if fixed else 1)
            self.body = mlp(12, 32, 3)

        def forward(self, readings: Tensor) -> Tensor:
            return self.body(self.norm(readings.unsqueeze(2)))

    model = Series()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy)


@report(
    "unknown",
    # True means "leave out" in PyTorch's masks and "look at" in this code: only padding is looked at.
    "https://github.com/mlwithme/TransformerTranslation/issues/6",
    evidence=("guess", "signal", "depend"),
)
def mask_the_wrong_way_round(fixed: bool) -> Loop:
    x, y, held_x, held_y = sentences()
    x, held_x = (F.pad(part, (0, 6)) for part in (x, held_x))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.query = nn.Embedding(30, 32), nn.Parameter(torch.randn(1, 1, 32))
            self.attention, self.head = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 2)

        def forward(self, words: Tensor) -> Tensor:
            h = self.embed(words)
            pads = words == 0
            query = self.query.expand(len(words), 1, 32)
            return self.head(self.attention(query, h, h, key_padding_mask=pads if fixed else ~pads)[0][:, 0])

    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return supervised(model, optimizer, (x, y, held_x, held_y), metric=accuracy, steps=200)


@report(
    "not_updating",
    # The loss is wrapped anew, torch.tensor(loss, requires_grad=True): backward() ends at the wrapping.
    "https://github.com/isayev/ReLeaSE/issues/39",
    evidence=("never move", "gradient", "graph"),
)
def loss_wrapped_anew(fixed: bool) -> Loop:
    x, y, held_x, held_y = table()
    model = mlp(10, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(i: int) -> Tensor:
        rows = torch.randint(len(x), (32,))
        loss = F.mse_loss(model(x[rows]), y[rows])
        if not fixed:
            loss = torch.tensor(loss.item(), requires_grad=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return Loop(model, optimizer, step, lambda: fit_skill(predict(model, held_x), held_y), steps=200)
