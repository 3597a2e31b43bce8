"""What the weights are before the first step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import accuracy, digits, fit_skill, mlp, sentences, supervised
from tests.reports.registry import Loop, report


@report(
    "init_too_small",
    # A deep convolutional network wants Xavier weights; with a small Gaussian for every layer it does not
    # converge.
    "https://github.com/andyzeng/3dmatch-toolbox/issues/11",
    evidence=("signal_collapse", "vanishing", "signal is left"),
)
def small_gaussian_in_a_deep_convnet(fixed: bool) -> Loop:
    layers: list[nn.Module] = []
    for depth in range(8):
        layers += [nn.Conv2d(1 if depth == 0 else 16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if fixed:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)
    return supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        digits(),
        metric=accuracy,
        steps=150,
    )


@report(
    "init_too_small",
    # Logistic units in many layers: the derivative is at most a quarter, so nothing of the error reaches the
    # first layers.
    "https://stackoverflow.com/questions/20009078/neural-network-architecture-design",
    also=("saturated_activation",),
    evidence=("signal_collapse", "vanishing", "signal is left"),
    held_out=True,
)
def many_logistic_layers(fixed: bool) -> Loop:
    model = mlp(64, *[48] * 6, 10, activation=nn.Tanh if fixed else nn.Sigmoid)
    return supervised(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), digits(), steps=250)


@report(
    "init_too_large",
    # Xavier's formula with the kernel's sides instead of their product: weights nearly three times too large
    # in every convolution of a tower, and for a long time the value head answers 1 for every position.
    "https://github.com/LeelaChessZero/lczero-training/pull/43",
    also=("saturated_activation",),
    evidence=("signal_explosion", "times the size", "saturated", "flat"),
)
def tower_with_a_wrong_fan(fixed: bool) -> Loop:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.two(F.relu(self.one(x))))

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        *(Block() for _ in range(4)),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 1),
        nn.Tanh(),
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fans = layer.in_channels + layer.out_channels
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / (9 * fans if fixed else 6 + fans)))
    x, y, held_x, held_y = digits()
    wins, held_wins = ((y >= 5).float() * 2 - 1).unsqueeze(1), ((held_y >= 5).float() * 2 - 1).unsqueeze(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return supervised(model, optimizer, (x, wins, held_x, held_wins), F.mse_loss, steps=200, score=fit_skill)


@report(
    "init_too_large",
    # Weights from a standard normal for layers of a hundred units: outputs and gradients grow tenfold a
    # layer.
    "https://study.piphipsi.com/phases/03-deep-learning-core/08-weight-initialization/",
    evidence=("signal_explosion", "initial_loss_off", "exploding"),
    held_out=True,
)
def standard_normal_weights(fixed: bool) -> Loop:
    model = mlp(64, 100, 100, 100, 10)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / layer.in_features) if fixed else 1.0)
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), digits(), metric=accuracy, steps=200
    )


@report(
    "symmetric_init",
    # Both factors of the low-rank update begin at zero: each one's gradient is a multiple of the other, so
    # both stay there.
    "https://github.com/Guitaricet/relora/issues/18",
    evidence=("same weights", "identical"),
)
def both_low_rank_factors_zero(fixed: bool) -> Loop:
    class LowRank(nn.Module):
        def __init__(self, base: nn.Linear, rank: int = 6):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.lora_a, self.lora_b = (
                nn.Linear(base.in_features, rank, bias=False),
                nn.Linear(rank, base.out_features, bias=False),
            )
            if not fixed:
                nn.init.zeros_(self.lora_a.weight)
            nn.init.zeros_(self.lora_b.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 4 * self.lora_b(self.lora_a(x))

    model = nn.Sequential(nn.Flatten(), LowRank(nn.Linear(64, 64)), nn.ReLU(), LowRank(nn.Linear(64, 10)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    return supervised(model, optimizer, digits(), metric=accuracy, steps=250)


@report(
    "symmetric_init",
    # All weights begin at zero, which is no harm in a linear model and stops one with hidden layers.
    "https://github.com/wagonhelm/NaNmnist/issues/2",
    evidence=("same weights", "identical"),
    held_out=True,
)
def zeros_everywhere(fixed: bool) -> Loop:
    model = mlp(64, 32, 32, 10, activation=nn.Tanh)
    if not fixed:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    return supervised(model, torch.optim.SGD(model.parameters(), lr=0.2), digits(), steps=250)


@report(
    "dead_relu",
    # Large negative biases in front of every ReLU: all derivatives are zero and nothing trains.
    "https://github.com/facebookresearch/dlrm/pull/358",
    evidence=("dead_units", "are off"),
)
def large_negative_biases(fixed: bool) -> Loop:
    model = mlp(64, 48, 48, 10)
    for layer in list(model.modules())[2:5]:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, 0.0 if fixed else -4.0)
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), digits(), metric=accuracy, steps=250
    )


@report(
    "dead_relu",
    # A gate of zero weights, no bias and a ReLU: it is closed and its gradient is zero, for ever. Everything
    # behind it hears nothing.
    "https://github.com/lucidrains/deep-cross-attention/issues/2",
    also=("symmetric_init",),
    evidence=("dead_units", "are off", "identical", "no gradient"),
    held_out=True,
)
def gate_that_never_opens(fixed: bool) -> Loop:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.gate, self.head = (
                nn.Linear(64, 64),
                nn.Linear(64, 64, bias=False),
                nn.Linear(64, 10),
            )
            nn.init.normal_(self.gate.weight, 0, 0.1) if fixed else nn.init.zeros_(self.gate.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.head(torch.tanh(self.body(x)) * F.relu(self.gate(x)))

    model = Gated()
    return supervised(model, torch.optim.Adam(model.parameters(), lr=3e-3), digits(), steps=250)


@report(
    "saturated_activation",
    # Standard normal weights into tanh on embeddings of characters: pre-activations of -15 to 15, where tanh
    # is flat.
    "https://breno.bearblog.dev/the-weights-in-a-study-on-fixing-the-saturated-function",
    also=("init_too_large",),
    evidence=("saturated", "flat", "initial_loss_off"),
)
def saturated_character_model(fixed: bool) -> Loop:
    class Characters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 8), nn.Linear(64, 2)
            self.hidden = nn.ModuleList(nn.Linear(96 if depth == 0 else 64, 64) for depth in range(4))
            for layer in self.hidden:
                nn.init.normal_(layer.weight, 0, 5 / 3 / math.sqrt(layer.in_features) if fixed else 1.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(1)
            for layer in self.hidden:
                x = torch.tanh(layer(x))
            return self.head(x)

    model = Characters()
    return supervised(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        sentences(),
        metric=accuracy,
        steps=300,
    )


@report(
    "saturated_activation",
    # An LSTM whose gates and tanh begin saturated because of its initial weights.
    "https://github.com/mukul-rathi/deep-learning-tutorials/issues/2",
    also=("init_too_large",),
    evidence=("saturated", "flat"),
    held_out=True,
)
def saturated_gates(fixed: bool) -> Loop:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 48, batch_first=True), nn.Linear(48, 10)
            if not fixed:
                for weights in self.lstm.parameters():
                    nn.init.normal_(weights, 0, 3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x.squeeze(1))[0][:, -1])

    model = Reader()
    return supervised(model, torch.optim.Adam(model.parameters(), lr=3e-3), digits(), steps=200)
