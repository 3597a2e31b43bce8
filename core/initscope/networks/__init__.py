"""The registry: from a configuration to a network on the CPU, with its weights initialized."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from initscope.config.run_config import RunConfig
from initscope.config.shapes import VGG_BLOCKS
from initscope.errors import ConfigError
from initscope.networks import inits
from initscope.networks import own as own
from initscope.networks.alexnet import alexnet
from initscope.networks.lenet import lenet
from initscope.networks.vgg import vgg

__all__ = ["alexnet", "build", "lenet", "vgg"]


def build(
    config: RunConfig, *, in_channels: int, num_classes: int, sample: torch.Tensor | None = None
) -> nn.Module:
    """The model of ``config``, initialized from ``config.init_seed`` alone.

    ``in_channels`` and ``num_classes`` are the resolved ones (the config's, else the data's). The global
    random state is left as it was. ``sample`` is a batch of inputs for the one scheme that measures (lsuv),
    and for a look at what a network of somebody's own answers. Raises ConfigError, and FactoryFailed where
    such a network's own code fails.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.init_seed)
        if own.is_own(config):
            model = own.build(config, in_channels=in_channels, num_classes=num_classes, sample=sample)
        else:
            if sample is not None and sample.dim() != 4:
                raise ConfigError(
                    f"{config.model} takes images (channels, height, width); {config.data} has samples "
                    f"{tuple(sample.shape[1:])}; choose data of images, or a network of your own"
                )
            model = _FACTORIES[config.model](config, in_channels, num_classes)
        inits.initialize(model, config.init, gain=config.gain, seed=config.init_seed, sample=sample)
    return model


def _options(config: RunConfig, in_channels: int, num_classes: int) -> dict[str, Any]:
    """What every network of the family takes."""
    return {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "image_size": config.image_size,
        "width": config.width,
        "batch_norm": config.batch_norm,
    }


def _vgg(config: RunConfig, in_channels: int, num_classes: int) -> nn.Module:
    return vgg(config.model, dropout=config.dropout, **_options(config, in_channels, num_classes))


def _lenet(config: RunConfig, in_channels: int, num_classes: int) -> nn.Module:
    return lenet(dropout=config.dropout, **_options(config, in_channels, num_classes))


def _alexnet(config: RunConfig, in_channels: int, num_classes: int) -> nn.Module:
    return alexnet(dropout=config.dropout, **_options(config, in_channels, num_classes))


def _googlenet(config: RunConfig, in_channels: int, num_classes: int) -> nn.Module:
    from initscope.networks.googlenet import (
        GoogLeNet,
    )  # torchvision takes a second to load, and a VGG needs none of it

    return GoogLeNet(dropout=config.dropout, **_options(config, in_channels, num_classes))


def _resnet(config: RunConfig, in_channels: int, num_classes: int) -> nn.Module:
    from initscope.networks.resnet import ResNet

    return ResNet(config.model, **_options(config, in_channels, num_classes))


_FACTORIES = {
    "lenet": _lenet,
    "alexnet": _alexnet,
    **dict.fromkeys(VGG_BLOCKS, _vgg),
    "googlenet": _googlenet,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "plain34"), _resnet),
}
