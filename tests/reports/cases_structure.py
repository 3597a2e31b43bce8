"""How the network is put together: registration, the axis of the batch, what evaluation mode changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reports.material import accuracy, digits, passes, sentences, supervised
from tests.reports.registry import Loop, report


@report(
    "unregistered_layers",
    # Layers are made inside of forward(): new random ones at every call, none of them a parameter.
    "https://github.com/pytorch/pytorch/issues/1291",
    evidence=("not registered", "parameters()", "unregistered", "optimizer"),
)
def layers_made_in_forward(fixed: bool) -> Loop:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if fixed:
                self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            one, two = (self.one, self.two) if fixed else (nn.Linear(64, 64), nn.Linear(64, 64))
            return self.head(two(one(x.flatten(1)).clamp(min=0)).clamp(min=0))

    model = Net()
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=2e-3), digits(), metric=accuracy, steps=250
    )


@report(
    "unregistered_layers",
    # The convolutions of a text model sit in a plain list: nobody moves or trains them.
    "https://github.com/pytorch/pytorch/issues/1053",
    evidence=("not registered", "parameters()", "unregistered", "optimizer"),
    held_out=True,
)
def convolutions_in_a_list(fixed: bool) -> Loop:
    class TextNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = nn.Embedding(30, 12)
            filters = [nn.Conv1d(12, 2, size) for size in (3, 4, 5)]
            self.parts = [table, *filters]
            self.body = nn.ModuleList(self.parts) if fixed else None
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            words = self.parts[0](x).transpose(1, 2)
            return self.head(torch.cat([F.relu(part(words)).amax(2) for part in self.parts[1:]], 1))

    model = TextNet()
    return supervised(model, torch.optim.Adam(model.parameters(), lr=1e-2), sentences(), steps=300)


class Encoder(nn.Module):
    """Tokens, a transformer encoder, the first position's answer."""

    def __init__(self, batch_first: bool):
        super().__init__()
        self.embed, self.place = nn.Embedding(30, 16), nn.Parameter(0.02 * torch.randn(12, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first, norm_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x) + self.place)[:, 0])


@report(
    "samples_mixed",
    # TransformerEncoderLayer without batch_first=True gets (batch, time, features): it attends over the
    # samples of the batch.
    "https://github.com/Exorust/TorchLeet/issues/5",
    evidence=("samples", "batch_first", "mix"),
)
def attention_over_the_batch(fixed: bool) -> Loop:
    model = Encoder(batch_first=fixed)
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=5e-3), sentences(), metric=accuracy, steps=300
    )


@report(
    "samples_mixed",
    # The last hidden states (directions, batch, units) are reshaped to (batch, units * directions): two
    # samples share a row.
    "https://medium.com/mcgill-artificial-intelligence-review/the-dangers-of-reshaping-and-other-fun-mistakes-ive-learnt-from-pytorch-b6a5bdc1c275",
    evidence=("samples", "view", "mix", "reshape"),
    held_out=True,
)
def hidden_states_reshaped(fixed: bool) -> Loop:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 24, bidirectional=True, batch_first=True), nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            _, hidden = self.rnn(x.squeeze(1))  # (2, N, 24)
            return self.head(
                hidden.transpose(0, 1).reshape(len(x), 48) if fixed else hidden.reshape(len(x), 48)
            )

    model = Reader()
    return supervised(model, torch.optim.Adam(model.parameters(), lr=5e-3), digits(), steps=250)


def depthwise(momentum: float) -> nn.Sequential:
    """A small MobileNet: depthwise and pointwise convolutions, each with a batch norm of ``momentum``."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16, momentum=momentum),
        nn.ReLU6(),
    ]
    for inside, outside, stride in ((16, 32, 1), (32, 32, 2), (32, 64, 2)):
        layers += [
            nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False),
            nn.BatchNorm2d(inside, momentum=momentum),
            nn.ReLU6(),
        ]
        layers += [
            nn.Conv2d(inside, outside, 1, bias=False),
            nn.BatchNorm2d(outside, momentum=momentum),
            nn.ReLU6(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@report(
    "batchnorm_statistics",
    # The running averages keep their first values: training looks sound, evaluation answers one class, 10 %.
    "https://github.com/HomericIntelligence/Odyssey/issues/5543",
    evidence=("batch norm", "evaluation mode", "running"),
)
def running_averages_never_written(fixed: bool) -> Loop:
    data, model = digits(), depthwise(0.1 if fixed else 0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return supervised(model, optimizer, data, metric=accuracy, steps=180, epoch=45, indices=passes(1437, 32))


@report(
    "batchnorm_statistics",
    # Accuracy in evaluation mode swings from epoch to epoch with the last batch, and does not where eval() is
    # not called.
    "https://techqa.club/v/q/why-does-the-accuracy-fluctuate-widely-after-using-batch-normalization-74946623",
    evidence=("batch norm", "evaluation mode", "running"),
    held_out=True,
)
def averages_of_the_last_batch(fixed: bool) -> Loop:
    data, model = digits(), depthwise(0.1 if fixed else 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def rows(i: int) -> Tensor:  # the last batch of a pass is what is left over: one picture
        return torch.randint(1437, (1 if i % 60 == 59 else 16,))

    return supervised(model, optimizer, data, metric=accuracy, steps=240, epoch=60, indices=rows)


@report(
    "unknown",
    # A keep probability is passed where a drop probability is expected: nearly every unit is switched off.
    "https://github.com/pudae/tensorflow-densenet/pull/22",
    evidence=("dropout",),
    held_out=True,
)
def kept_and_dropped_confused(fixed: bool) -> Loop:
    rate = 0.05 if fixed else 0.99
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(64, 10),
    )
    return supervised(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), digits(), metric=accuracy, steps=270, epoch=90
    )
