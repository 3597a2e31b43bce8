"""The VGG family (Simonyan and Zisserman, 2014, https://arxiv.org/abs/1409.1556), without batch norm or
dropout by default.

A plain ``nn.Sequential``: layers carry the paper's names (``conv1_1`` ... ``conv5_3``, ``fc1`` ... ``fc3``),
so hooks, heatmaps and state dicts all speak the same language.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from initscope.config.shapes import VGG_BLOCKS, VGG_CHANNELS, VGG_HIDDEN, scaled


def vgg(
    name: str = "vgg16",
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 224,
    width: float = 1.0,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A VGG network from images ``(N, in_channels, image_size, image_size)`` to logits ``(N, num_classes)``.

    Convolutions are 3x3, stride 1, padding 1; each block ends in a 2x2 max pool of stride 2, so
    ``image_size`` must be a multiple of 32. At the defaults the maps shrink 224, 112, 56, 28, 14, 7 and there
    are 134,300,362 parameters. ``width`` multiplies channels and hidden units. Raises ValueError for an
    unknown name or image size.
    """
    if name not in VGG_BLOCKS:
        raise ValueError(f"unknown VGG {name!r}; available: {', '.join(VGG_BLOCKS)}")
    if image_size % 32:
        raise ValueError(f"image_size must be a multiple of 32 (five 2x2 poolings), not {image_size}")

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for block, (depth, base) in enumerate(zip(VGG_BLOCKS[name], VGG_CHANNELS, strict=True), start=1):
        out = scaled(base, width)
        for i in range(1, depth + 1):
            layers[f"conv{block}_{i}"] = nn.Conv2d(channels, out, kernel_size=3, padding=1)
            if batch_norm:
                layers[f"bn{block}_{i}"] = nn.BatchNorm2d(out)
            layers[f"relu{block}_{i}"] = nn.ReLU()
            channels = out
        layers[f"pool{block}"] = nn.MaxPool2d(kernel_size=2, stride=2)

    layers["flatten"] = nn.Flatten()
    units = channels * (image_size // 32) ** 2
    hidden = scaled(VGG_HIDDEN, width)
    for i in (1, 2):
        layers[f"fc{i}"] = nn.Linear(units, hidden)
        layers[f"relu_fc{i}"] = nn.ReLU()
        if dropout:
            layers[f"drop{i}"] = nn.Dropout(dropout)
        units = hidden
    layers["fc3"] = nn.Linear(units, num_classes)
    return nn.Sequential(layers)
