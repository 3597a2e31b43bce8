"""torchinfo's table of a configuration's network: ``python -m initscope.networks.summary '{"model":
"vgg16"}'``.

A program of its own, because the dashboard's process never imports torch.
"""

from __future__ import annotations

import re
import sys

import torch
import torchinfo

from initscope import networks
from initscope.config.run_config import RunConfig
from initscope.config.shapes import inputs_and_classes
from initscope.errors import InitScopeError

COLUMNS = ("input_size", "output_size", "kernel_size", "num_params", "mult_adds")


def summary(config: RunConfig) -> str:
    """The table for one image: shapes, kernels, parameters and multiply-adds of every layer."""
    channels, classes = inputs_and_classes(config)
    with torch.device("meta"):  # shapes without numbers: any size, in no memory
        model = networks.build(config.replace(init="default"), in_channels=channels, num_classes=classes)
    size = (1, channels, config.image_size, config.image_size)
    table = torchinfo.summary(
        model, input_size=size, col_names=COLUMNS, row_settings=("var_names",), device="meta", verbose=0
    )
    # torchinfo prints its enum's name where the unit belongs: "Total mult-adds (Units.GIGABYTES)".
    return re.sub(r"Units\.(\w)\w*", r"\1", str(table))


if __name__ == "__main__":
    try:
        print(summary(RunConfig.from_json(sys.argv[1] if len(sys.argv) > 1 else "{}")))
    except InitScopeError as error:
        sys.exit(str(error))
