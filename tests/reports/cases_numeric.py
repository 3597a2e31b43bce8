"""NaN that comes from a function at the edge of its domain or from a number type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import accuracy, digits, fit_skill, mlp, sentences, supervised, table
from tests.reports.registry import Loop, report


@report(
    "numeric_fault",
    # Adam on float16 weights: its epsilon of 1e-8 is zero there, and what has no gradient yet becomes 0 / 0
    # at the first step.
    "https://github.com/afiaka87/glide-finetune/pull/6",
    evidence=("float16", "half", "epsilon", "gradient is not finite", "update"),
)
def adam_in_half_precision(fixed: bool) -> Loop:
    x, y, held_x, held_y = digits()
    model = mlp(64, 64, 10).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4 if fixed else 1e-8)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets)

    return supervised(model, optimizer, (x.half(), y, held_x.half(), held_y), loss_fn, steps=200)


@report(
    "numeric_fault",
    # The logarithm of a sigmoid that has become exactly 0: inf, then NaN, some epochs into a sound training.
    "https://github.com/hwalsuklee/tensorflow-mnist-VAE/issues/4",
    evidence=("log", "gradient", "not finite though", "domain"),
    held_out=True,
)
def logarithm_of_a_sigmoid(fixed: bool) -> Loop:
    x, _, held, _ = digits()
    ink, held_ink = (x.flatten(1) > 0.4).float(), (held.flatten(1) > 0.4).float()
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 64))

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        if fixed:
            return F.binary_cross_entropy_with_logits(outputs, targets)
        chance = torch.sigmoid(outputs)
        return -(targets * chance.log() + (1 - targets) * (1 - chance).log()).mean()

    def score(outputs: Tensor, targets: Tensor) -> float:
        return fit_skill(torch.sigmoid(outputs), targets)

    optimizer = torch.optim.Adam(model.parameters(), lr=6e-2)
    return supervised(model, optimizer, (ink, ink, held_ink, held_ink), loss_fn, steps=250, score=score)


@report(
    "numeric_fault",
    # torch.where picks the finite branch, but the gradient of the other, exp of a large number, is inf times
    # zero.
    "https://github.com/pytorch/pytorch/issues/68425",
    evidence=("exp", "where", "gradient"),
)
def where_hides_an_overflow(fixed: bool) -> Loop:
    x, y, held_x, held_y = table()
    counts, held_counts = (y * 25 + 70).clamp(min=0), (held_y * 25 + 70).clamp(min=0)

    class Rate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(10, 32, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            raw = 20 * self.body(inputs)
            return F.softplus(raw) if fixed else torch.where(raw > 20, raw, torch.log1p(torch.exp(raw)))

    model = Rate()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return supervised(
        model, optimizer, (x, counts, held_x, held_counts), F.mse_loss, steps=300, score=fit_skill
    )


@report(
    "numeric_fault",
    # Patches that are all masked: a softmax over nothing but -inf is NaN.
    "https://github.com/lucidrains/vit-pytorch/issues/26",
    evidence=("softmax", "mask", "not finite"),
    held_out=True,
)
def nothing_left_to_attend_to(fixed: bool) -> Loop:
    x, y, held_x, held_y = sentences()
    x = x.clone()
    x[700] = 0  # one sample is nothing but padding

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.query, self.head = nn.Embedding(30, 16), nn.Linear(16, 1), nn.Linear(16, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            words = self.embed(tokens)
            masked = self.query(words).squeeze(2).masked_fill(tokens == 0, -1e4 if fixed else float("-inf"))
            return self.head((masked.softmax(1).unsqueeze(2) * words).sum(1))

    model = Attention()
    return supervised(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        (x, y, held_x, held_y),
        metric=accuracy,
        steps=300,
    )
