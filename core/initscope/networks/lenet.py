"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition",
section II.B).

A plain ``nn.Sequential`` whose layers carry the paper's names: C1, S2, C3, S4, C5, F6, OUTPUT. Three things
are as everybody has built it since: C3 reads every map of S2 (the paper's table I leaves some out),
sub-sampling is a plain mean, and the output is linear.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from initscope.config.shapes import scaled

CHANNELS = (6, 16, 120)
"""Maps of C1, C3 and C5 at width 1."""
HIDDEN = 84
"""Units of F6 at width 1."""


def lenet(
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 32,
    width: float = 1.0,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """LeNet-5 from images ``(N, in_channels, image_size, image_size)`` to logits ``(N, num_classes)``; 61,706
    parameters at the defaults.

    5x5 convolutions without padding, tanh, 2x2 means. At 32 pixels C5 is 1x1, as in the paper; on larger
    images its maps are larger, and F6 reads all of them. ``batch_norm`` follows every convolution,
    ``dropout`` follows F6. ``image_size`` at least 32.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, size = in_channels, image_size
    for name, pool, base in (("c1", "s2", CHANNELS[0]), ("c3", "s4", CHANNELS[1]), ("c5", "", CHANNELS[2])):
        out = scaled(base, width)
        layers[name] = nn.Conv2d(channels, out, kernel_size=5)
        if batch_norm:
            layers[f"bn_{name}"] = nn.BatchNorm2d(out)
        layers[f"tanh_{name}"] = nn.Tanh()
        channels, size = out, size - 4
        if pool:
            layers[pool] = nn.AvgPool2d(kernel_size=2)
            size //= 2
    layers["flatten"] = nn.Flatten()
    hidden = scaled(HIDDEN, width)
    layers["f6"] = nn.Linear(channels * size**2, hidden)
    layers["tanh_f6"] = nn.Tanh()
    if dropout:
        layers["drop"] = nn.Dropout(dropout)
    layers["output"] = nn.Linear(hidden, num_classes)
    return nn.Sequential(layers)
