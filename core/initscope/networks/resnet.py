"""ResNet-18, 34 and 50 (He et al. 2016, "Deep residual learning for image recognition",
https://arxiv.org/abs/1512.03385), and that paper's own control: the plain network of 34 layers without
shortcuts.

Built from torchvision's blocks under torchvision's names, so that weights go over as they are. torchvision's
class has a fixed width and the ImageNet stem, and fills its weights itself (``fan_out``, here ``--init
tutorial``); this one leaves that to ``initscope.networks.inits``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from initscope.config.shapes import RESNET_BLOCKS, RESNET_CHANNELS, SMALL_IMAGE, scaled


class Projection(nn.Sequential):
    """A shortcut's 1x1 convolution and norm (option B of the paper's section 3.3), on every ``stride``-th
    pixel.

    A convolution with that stride computes the same, but its backward pass in torch 2.14's CPU library writes
    beyond its memory for fewer than eight channels in channels-last order: the process ends with "double free
    or corruption".
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: type[nn.Module]):
        super().__init__(conv1x1(inputs, outputs), norm(outputs))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, :: self.stride, :: self.stride])


class PlainBlock(BasicBlock):
    """A basic block without its shortcut (the paper's figure 3, middle)."""

    shortcut = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, RESNET_BLOCKS["resnet18"]),
    "resnet34": (BasicBlock, RESNET_BLOCKS["resnet34"]),
    "resnet50": (Bottleneck, RESNET_BLOCKS["resnet50"]),
    "plain34": (PlainBlock, RESNET_BLOCKS["plain34"]),
}
"""Block and number of blocks in each of the four layers (the paper's table 1)."""


class ResNet(nn.Module):
    """A residual (or plain) network from images ``(N, in_channels, image_size, image_size)`` to logits ``(N,
    num_classes)``.

    Below ``SMALL_IMAGE`` pixels the first convolution is 3x3 with stride 1 and the first pooling is left out,
    as in the paper's CIFAR-10 networks (section 4.2). ``width`` multiplies every channel count. Without
    ``batch_norm`` nothing takes its place: the convolutions have no bias, as they have none beside it.
    ``image_size`` at least 32. Raises ValueError for an unknown name.
    """

    def __init__(
        self,
        name: str = "resnet18",
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 224,
        width: float = 1.0,
        batch_norm: bool = True,
    ):
        super().__init__()
        if name not in NETWORKS:
            raise ValueError(f"unknown ResNet {name!r}; available: {', '.join(NETWORKS)}")
        block, counts = NETWORKS[name]
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        small = image_size < SMALL_IMAGE
        channels = scaled(64, width)
        stem = {"kernel_size": 3, "padding": 1} if small else {"kernel_size": 7, "stride": 2, "padding": 3}
        self.conv1 = nn.Conv2d(in_channels, channels, bias=False, **stem)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for layer, (base, count) in enumerate(zip(RESNET_CHANNELS, counts, strict=True), start=1):
            planes, blocks = scaled(base, width), []
            for i in range(count):
                stride, out = (2 if i == 0 and layer > 1 else 1), planes * block.expansion
                downsample = None
                if getattr(block, "shortcut", True) and (stride > 1 or channels != out):
                    downsample = Projection(channels, out, stride, norm)
                blocks.append(block(channels, planes, stride, downsample, norm_layer=norm))
                channels = out
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # what a hook has seen of a layer's output stays what it was

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
