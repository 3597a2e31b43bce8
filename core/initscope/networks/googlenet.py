"""GoogLeNet (Szegedy et al. 2015, "Going deeper with convolutions", https://arxiv.org/abs/1409.4842), without
batch norm by default.

The graph, the names and the sizes are torchvision's (its 5x5 branch has 3x3 kernels: pytorch/vision#906), so
that weights go over as they are. torchvision's class cannot leave batch norm out or change the width; its
Inception block can, and is used here.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.googlenet import GoogLeNetOutputs, Inception

from initscope.config.shapes import INCEPTIONS, SMALL_IMAGE, scaled


class ConvBlock(nn.Sequential):
    """A convolution, batch norm (where asked for; the convolution then has no bias) and a ReLU."""

    def __init__(self, inputs: int, outputs: int, batch_norm: bool, **options: int):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(inputs, outputs, bias=not batch_norm, **options)
        )
        if batch_norm:
            layers["bn"] = nn.BatchNorm2d(outputs, eps=0.001)
        layers["relu"] = nn.ReLU()
        super().__init__(layers)


class Auxiliary(nn.Module):
    """One of the two classifiers that look at the middle of the network, in training only (the paper's
    section 5).
    """

    def __init__(self, inputs: int, num_classes: int, width: float, batch_norm: bool, dropout: float):
        super().__init__()
        maps, hidden = scaled(128, width), scaled(1024, width)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.conv = ConvBlock(inputs, maps, batch_norm, kernel_size=1)
        self.fc1 = nn.Linear(maps * 16, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(self.pool(x)), 1)
        return self.fc2(self.dropout(self.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """GoogLeNet from images ``(N, in_channels, image_size, image_size)`` to logits ``(N, num_classes)``.

    In training mode it returns torchvision's ``GoogLeNetOutputs(logits, aux_logits2, aux_logits1)``;
    ``initscope.networks.outputs`` makes the paper's loss of them. Below ``SMALL_IMAGE`` pixels the first
    convolution is 3x3 with stride 1 and the first pooling is left out, so that the maps are as large as at
    128 pixels or more. ``width`` multiplies every channel and hidden-unit count; ``dropout`` is that before
    all classifiers' last layers (the paper's: 0.4, and 0.7 in the auxiliary ones). ``image_size`` at least
    32.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 224,
        width: float = 1.0,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        block = partial(ConvBlock, batch_norm=batch_norm)
        small = image_size < SMALL_IMAGE
        first, third = scaled(64, width), scaled(192, width)
        stem = {"kernel_size": 3, "padding": 1} if small else {"kernel_size": 7, "stride": 2, "padding": 3}
        self.conv1 = block(in_channels, first, **stem)
        self.maxpool1 = nn.Identity() if small else nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = block(first, first, kernel_size=1)
        self.conv3 = block(first, third, kernel_size=3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        channels, widths = third, {}
        for name, counts in INCEPTIONS.items():
            counts = [scaled(count, width) for count in counts]
            setattr(self, f"inception{name}", Inception(channels, *counts, conv_block=block))
            widths[name] = channels = counts[0] + counts[2] + counts[4] + counts[5]
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.aux1 = Auxiliary(widths["4a"], num_classes, width, batch_norm, dropout)
        self.aux2 = Auxiliary(widths["4d"], num_classes, width, batch_norm, dropout)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(x))))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        x = self.inception4a(self.maxpool3(x))
        first = self.aux1(x) if self.training else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        second = self.aux2(x) if self.training else None
        x = self.inception5b(self.inception5a(self.maxpool4(self.inception4e(x))))
        logits = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return GoogLeNetOutputs(logits, second, first) if self.training else logits
