"""What the registered networks are made of, as numbers: one description for models, sizes, theory and the
drawing. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from initscope.config import catalog
from initscope.config.run_config import RunConfig

VGG_BLOCKS: dict[str, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Convolutions in each of the five blocks (Simonyan and Zisserman 2014, table 1, configurations A, B, D,
E).
"""
VGG_CHANNELS = (64, 128, 256, 512, 512)
"""Output channels of each block at width 1."""
VGG_HIDDEN = 4096
"""Units of fc1 and fc2 at width 1."""
RESNET_BLOCKS: dict[str, tuple[int, ...]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "plain34": (3, 4, 6, 3),
}
"""Blocks in each of the four stages (He et al. 2016, table 1)."""
RESNET_CHANNELS = (64, 128, 256, 512)
INCEPTIONS: dict[str, tuple[int, ...]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Szegedy et al. 2015, table 1, at width 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj."""
SMALL_IMAGE = 64
"""Images below this side get the small first convolution of AlexNet, GoogLeNet and the ResNets."""


class LayerShape(NamedTuple):
    """A layer of a VGG: ``kind`` conv (3x3), pool (2x2) or linear; ``size`` is the side of its input map, 1
    for linear.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    size: int


def scaled(units: int, width: float) -> int:
    """``units * width``, rounded, at least 1."""
    return max(1, round(units * width))


def inputs_and_classes(config: RunConfig) -> tuple[int, int]:
    """(input channels, classes): the config's, else the data set's, else what is usual: 3 channels for a
    folder of images (they are read in colour), 1 for data of one's own; 10 classes.
    """
    entry = catalog.DATA.get(config.data)
    usual = 3 if config.data.startswith(catalog.IMAGE_FOLDER) else 1
    channels = config.in_channels or (entry.channels if entry else None) or usual
    return channels, config.num_classes or (entry.classes if entry else None) or 10


def vgg_shapes(config: RunConfig, channels: int, classes: int) -> Iterator[LayerShape]:
    """Every layer with weights, and the poolings, of ``config``'s VGG from input to output."""
    size = config.image_size
    for block, (depth, base) in enumerate(zip(VGG_BLOCKS[config.model], VGG_CHANNELS, strict=True), start=1):
        outputs = scaled(base, config.width)
        for i in range(1, depth + 1):
            yield LayerShape(f"conv{block}_{i}", "conv", channels, outputs, size)
            channels = outputs
        yield LayerShape(f"pool{block}", "pool", channels, channels, size)
        size //= 2
    units, hidden = channels * size**2, scaled(VGG_HIDDEN, config.width)
    for name, outputs in (("fc1", hidden), ("fc2", hidden), ("fc3", classes)):
        yield LayerShape(name, "linear", units, outputs, 1)
        units = outputs
