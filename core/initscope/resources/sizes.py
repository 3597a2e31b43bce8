"""What every registered network costs, told from its configuration alone: weights, and what the backward pass
keeps of a sample. No torch.

The geometry is that of ``initscope.networks``; `tests/safety/test_limits.py` holds both against torch's own
accounting.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from initscope.config import shapes
from initscope.config.run_config import RunConfig

NUMBER = 4
POSITION = 8
"""Bytes of a number, and of the place of a pooling's maximum."""


class Size:
    """Adds layers up as they come. ``channels`` and ``side`` are of the newest map; ``parameters`` is a
    count, ``kept`` bytes a sample (outputs of activations and poolings, inputs of batch norms), ``largest``
    the numbers of the largest map.
    """

    def __init__(self, config: RunConfig, channels: int):
        self.channels, self.side = channels, config.image_size
        self.small = config.image_size < shapes.SMALL_IMAGE
        self.parameters = self.kept = self.largest = 0
        self._width, self._norm = config.width, bool(config.batch_norm)

    @property
    def numbers(self) -> int:
        """Of the newest map."""
        return self.channels * self.side**2

    def scaled(self, units: int) -> int:
        return shapes.scaled(units, self._width)

    def conv(
        self,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        *,
        bias: bool = True,
        activation: bool = True,
    ) -> None:
        """A convolution, the batch norm if there is any, an activation; without ``padding`` the side stays as
        it is for stride 1.
        """
        around = kernel // 2 if padding is None else padding
        self.parameters += (self.channels * kernel**2 + bias) * outputs
        self.channels, self.side = outputs, (self.side + 2 * around - kernel) // stride + 1
        self.largest = max(self.largest, self.numbers)
        self._normed()
        self.keep(activation)

    def _normed(self) -> None:
        if self._norm:
            self.parameters += 2 * self.channels
            self.keep()

    def keep(self, times: float = 1) -> None:
        """The newest map is kept for the backward pass."""
        self.kept += int(times * NUMBER) * self.numbers

    def pool(self, kernel: int, stride: int, padding: int = 0, *, up: bool = False) -> None:
        """Maxima; ``up``: the last window may reach beyond the map."""
        steps = (self.side + 2 * padding - kernel) / stride
        self.side = (math.ceil(steps) if up else math.floor(steps)) + 1
        self.kept += (NUMBER + POSITION) * self.numbers

    def linear(self, outputs: int, *, activation: bool = True) -> None:
        self.parameters += (self.numbers + 1) * outputs
        self.channels, self.side = outputs, 1
        self.keep(activation)


def size_of(config: RunConfig, channels: int, classes: int) -> Size | None:
    """The size of ``config``'s network; None for one of somebody's own, which is known only once it is
    built.
    """
    build = _NETWORKS.get(config.model)
    if build is None:
        return None
    size = Size(config, channels)
    build(size, config, classes)
    return size


def _vgg(size: Size, config: RunConfig, classes: int) -> None:
    network = list(shapes.vgg_shapes(config, size.channels, classes))
    for layer in network:
        if layer.kind == "conv":
            size.conv(layer.outputs, 3)
        elif layer.kind == "pool":
            size.pool(2, 2)
        else:
            size.linear(layer.outputs, activation=layer is not network[-1])


def _lenet(size: Size, config: RunConfig, classes: int) -> None:
    for base in (6, 16, 120):
        size.conv(size.scaled(base), 5, padding=0)
        if base != 120:  # means keep no positions
            size.side //= 2
            size.keep()
    size.linear(size.scaled(84))
    size.linear(classes, activation=False)


def _alexnet(size: Size, config: RunConfig, classes: int) -> None:
    for i, base in enumerate((64, 192, 384, 256, 256)):
        if i == 0 and not size.small:
            size.conv(size.scaled(base), 11, 4, 2)
        else:
            size.conv(size.scaled(base), 5 if i < 2 else 3)
        if i in (0, 1, 4):
            size.pool(3, 2)
    for _ in range(2):
        size.linear(size.scaled(4096))
    size.linear(classes, activation=False)


def _resnet(size: Size, config: RunConfig, classes: int) -> None:
    deep, plain = config.model == "resnet50", config.model == "plain34"
    size.conv(size.scaled(64), *((3,) if size.small else (7, 2)), bias=False)
    if not size.small:
        size.pool(3, 2, 1)
    for layer, (base, count) in enumerate(
        zip(shapes.RESNET_CHANNELS, shapes.RESNET_BLOCKS[config.model], strict=True)
    ):
        planes = size.scaled(base)
        for i in range(count):
            stride, inputs = 2 if i == 0 and layer else 1, size.channels
            if deep:
                size.conv(planes, 1, bias=False)
                size.conv(planes, 3, stride, bias=False)
                size.conv(4 * planes, 1, bias=False, activation=False)
            else:
                size.conv(planes, 3, stride, bias=False)
                size.conv(planes, 3, bias=False, activation=plain)
            if plain:
                continue
            if stride > 1 or inputs != size.channels:  # the shortcut's own 1x1 convolution
                size.parameters += inputs * size.channels
                size._normed()
            size.keep()  # the sum's ReLU
    size.side = 1  # the mean of each map
    size.linear(classes, activation=False)


def _googlenet(size: Size, config: RunConfig, classes: int) -> None:
    bias = not config.batch_norm
    size.conv(size.scaled(64), *((3,) if size.small else (7, 2)), bias=bias)
    if not size.small:
        size.pool(3, 2, up=True)
    size.conv(size.scaled(64), 1, bias=bias)
    size.conv(size.scaled(192), 3, bias=bias)
    for name, counts in shapes.INCEPTIONS.items():
        if name.endswith("a"):
            size.pool(*((2, 2) if name == "5a" else (3, 2)), up=True)
        _inception(size, [size.scaled(count) for count in counts], bias)
        if name in ("4a", "4d"):
            _auxiliary(size, classes, bias)
    size.side = 1
    size.linear(classes, activation=False)


def _inception(size: Size, counts: list[int], bias: bool) -> None:
    """Four branches from the same map, laid one behind the other."""
    inputs, joined = size.channels, 0
    for branch in (
        (counts[0], 1),
        (counts[1], 1, counts[2], 3),
        (counts[3], 1, counts[4], 3),
        (0, 0, counts[5], 1),
    ):
        size.channels = inputs
        for outputs, kernel in zip(branch[::2], branch[1::2], strict=True):
            size.conv(outputs, kernel, bias=bias) if kernel else size.pool(3, 1, 1)
        joined += size.channels
    size.channels = joined
    size.keep()


def _auxiliary(size: Size, classes: int, bias: bool) -> None:
    """A classifier in the middle, beside the main path."""
    place = size.channels, size.side
    size.side = 4
    size.conv(size.scaled(128), 1, bias=bias)
    size.linear(size.scaled(1024))
    size.linear(classes, activation=False)
    size.channels, size.side = place


_NETWORKS: dict[str, Callable[[Size, RunConfig, int], None]] = {
    **dict.fromkeys(shapes.VGG_BLOCKS, _vgg),
    **dict.fromkeys(shapes.RESNET_BLOCKS, _resnet),
    "lenet": _lenet,
    "alexnet": _alexnet,
    "googlenet": _googlenet,
}
