"""torchinfo's table of a configuration's network: ``python -m initscope.networks.summary '{"model": "vgg16"}'``.

A program of its own, because the dashboard's process never imports torch.
"""

from __future__ import annotations

import re
import sys

import torch
import torchinfo

from initscope import networks
from initscope.config import catalog
from initscope.config.run_config import RunConfig
from initscope.errors import InitScopeError

COLUMNS = ("input_size", "output_size", "kernel_size", "num_params", "mult_adds")


def shape_of(config: RunConfig) -> tuple[int, int]:
    """(input channels, classes): the config's, else the data set's, else one channel and ten classes."""
    data = catalog.DATA.get(config.data)
    channels = config.in_channels or (data.channels if data else None) or 1
    classes = config.num_classes or (data.classes if data else None) or 10
    return channels, classes


def summary(config: RunConfig) -> str:
    """The table for one image: shapes, kernels, parameters and multiply-adds of every layer."""
    channels, classes = shape_of(config)
    with torch.device("meta"):  # shapes without numbers: any size, in no memory
        model = networks.build(config.replace(init="default"), in_channels=channels, num_classes=classes)
    size = (1, channels, config.image_size, config.image_size)
    table = torchinfo.summary(model, input_size=size, col_names=COLUMNS, row_settings=("var_names",), device="meta", verbose=0)
    # torchinfo prints its enum's name where the unit belongs: "Total mult-adds (Units.GIGABYTES)".
    return re.sub(r"Units\.(\w)\w*", r"\1", str(table))


if __name__ == "__main__":
    try:
        print(summary(RunConfig.from_json(sys.argv[1] if len(sys.argv) > 1 else "{}")))
    except InitScopeError as error:
        sys.exit(str(error))
