"""AlexNet (Krizhevsky, Sutskever and Hinton 2012), in the one-column form of Krizhevsky 2014
(https://arxiv.org/abs/1404.5997) that torchvision has: no local response normalisation, 64 to 384 maps.

A plain ``nn.Sequential``: ``conv1`` ... ``conv5``, ``fc6`` ... ``fc8``.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from initscope.config.shapes import SMALL_IMAGE, scaled

CHANNELS = (64, 192, 384, 256, 256)
"""Maps of conv1 ... conv5 at width 1."""
HIDDEN = 4096
"""Units of fc6 and fc7 at width 1."""


def alexnet(
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 224,
    width: float = 1.0,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """AlexNet from images ``(N, in_channels, image_size, image_size)`` to logits ``(N, num_classes)``.

    At 224 pixels it is torchvision's: 61,100,840 parameters with three channels and 1,000 classes. Below
    ``SMALL_IMAGE`` pixels the first convolution, 11x11 with stride 4, would leave nothing of the image: it is
    5x5 with stride 1 there, as in the authors' own CIFAR-10 networks (section 3.3), and everything above
    stays. fc6 reads conv5's pooled maps as they are (6x6 at 224). ``batch_norm`` follows every convolution;
    ``dropout`` comes before fc6 and fc7, as in the paper. ``image_size`` at least 32.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    stem = (
        {"kernel_size": 5, "padding": 2}
        if image_size < SMALL_IMAGE
        else {"kernel_size": 11, "stride": 4, "padding": 2}
    )
    size = image_size if image_size < SMALL_IMAGE else (image_size - 7) // 4 + 1
    channels = in_channels
    for i, (base, options) in enumerate(
        zip(
            CHANNELS,
            (stem, {"kernel_size": 5, "padding": 2}, *[{"kernel_size": 3, "padding": 1}] * 3),
            strict=True,
        ),
        start=1,
    ):
        out = scaled(base, width)
        layers[f"conv{i}"] = nn.Conv2d(channels, out, **options)
        if batch_norm:
            layers[f"bn{i}"] = nn.BatchNorm2d(out)
        layers[f"relu{i}"] = nn.ReLU()
        channels = out
        if i in (1, 2, 5):
            layers[f"pool{i}"] = nn.MaxPool2d(kernel_size=3, stride=2)
            size = (size - 3) // 2 + 1
    layers["flatten"] = nn.Flatten()
    units, hidden = channels * size**2, scaled(HIDDEN, width)
    for i in (6, 7):
        if dropout:
            layers[f"drop{i}"] = nn.Dropout(dropout)
        layers[f"fc{i}"] = nn.Linear(units, hidden)
        layers[f"relu{i}"] = nn.ReLU()
        units = hidden
    layers["fc8"] = nn.Linear(units, num_classes)
    return nn.Sequential(layers)
