"""What a network is trained on: the data set of a configuration, resized to the model's image size, in
batches on its device.

``load(config)`` gives training and validation splits. Where the resized set is small it is held resized;
where it is not (60,000 images at 224x224 are 12 GB) it is held as it was read and resized on the device,
batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from initscope.config import factory
from initscope.config.run_config import RunConfig
from initscope.data import datasets
from initscope.data import own as own
from initscope.data.datasets import RawData, Split
from initscope.errors import ConfigError

HOLD_RESIZED_BYTES = 1 << 30
"""A split whose resized float32 images fit in this is held resized."""


class Data:
    """Training and validation batches for one configuration, on one device.

    ``channels`` and ``classes`` are what the model must take and give. Batches are (images float32 (N,
    channels, image_size, image_size), labels int64 (N,)). Samples of a data set of one's own that are no
    images (vectors, sequences, tokens) stay as they are; their last dimension counts as channels.
    """

    def __init__(self, raw: RawData, config: RunConfig, device: torch.device | str = "cpu"):
        train, validation = raw.train, raw.validation
        if config.train_samples is not None:
            train = Split(train.images[: config.train_samples], train.labels[: config.train_samples])
        self.are_images = train.images.dim() == 4
        if config.in_channels and not self.are_images:
            raise ConfigError(
                f"in_channels {config.in_channels} is for images; samples of {config.data} are "
                f"{tuple(train.images.shape[1:])}; leave it out",
                "in_channels",
            )
        self.channels = config.in_channels or train.images.shape[1 if self.are_images else -1]
        self.classes = config.num_classes or raw.classes
        if self.classes < raw.classes:
            raise ConfigError(
                f"num_classes {self.classes} is too small: {config.data} has {raw.classes} classes; leave "
                "it out, or ask for at least as many",
                "num_classes",
            )
        self.device = torch.device(device)
        self.image_size = config.image_size
        self.batch_size = config.batch_size
        self.data_seed = config.data_seed
        # Batch norm cannot take the statistics of one sample at 1x1 maps, in no process's share.
        self._least = 2 * config.processes if config.batch_norm else 1
        if self.are_images:
            self._offset, self._scale = _normalization(train, raw.white, self.channels, config.normalize)
        self.train, self.train_ready = self._hold(train)
        self.validation, self.validation_ready = self._hold(validation)
        self.chance = (
            float(torch.bincount(validation.labels).max()) / max(1, len(validation))
            if len(validation)
            else 1 / self.classes
        )
        self.chance = max(self.chance, 1 / self.classes)

    def _hold(self, split: Split) -> tuple[Split, bool]:
        if not self.are_images:
            return Split(split.images.to(self.device), split.labels.to(self.device)), True
        needed = len(split) * self.channels * self.image_size**2 * 4
        ready = needed <= HOLD_RESIZED_BYTES
        images = (
            torch.cat([self.prepare(part) for part in split.images.split(1024)]) if ready else split.images
        )
        return Split(images.to(self.device), split.labels.to(self.device)), ready

    def prepare(self, images: Tensor) -> Tensor:
        """Raw images as the model takes them: scaled, channels adapted, resized (bilinear, antialiased)."""
        x = adapt_channels(images.float(), self.channels)
        x = (x - self._offset.to(x.device)) * self._scale.to(x.device)
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        return x

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch; the last may be smaller."""
        return len(self._starts(len(self.train)))

    def _starts(self, samples: int) -> range:
        rest = samples % self.batch_size
        if samples > self.batch_size and rest < self._least:
            samples -= rest
        return range(0, samples, self.batch_size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch from ``first_batch`` on; their order depends on data_seed and
        epoch alone.
        """
        generator = torch.Generator().manual_seed(self.data_seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train), generator=generator).to(self.device)
        for start in self._starts(len(order))[first_batch:]:
            yield self._batch(self.train, self.train_ready, order[start : start + self.batch_size])

    def sample(self, count: int = 64) -> Tensor:
        """The first ``count`` training images as the model takes them, whatever the data's order."""
        images = self.train.images[:count]
        return images if self.train_ready else self.prepare(images)

    def validate(self, batch_size: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation batches, in order."""
        size = batch_size or max(self.batch_size, 64)
        for start in range(0, len(self.validation), size):
            yield self._batch(self.validation, self.validation_ready, slice(start, start + size))

    def _batch(self, split: Split, ready: bool, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        images = split.images[index]
        return (images if ready else self.prepare(images)), split.labels[index]


def load(
    config: RunConfig, device: torch.device | str = "cpu", progress: Callable[[str], None] = lambda text: None
) -> Data:
    """The data of a configuration. ``progress`` is told in words what takes time.

    Raises DataUnavailable naming the folder for the files, ConfigError where config and data do not fit.
    """
    return Data(raw(config, progress), config, device)


def raw(config: RunConfig, progress: Callable[[str], None] = lambda text: None) -> RawData:
    """The raw data set of a configuration, somebody's own too. Raises DataUnavailable, ConfigError or
    FactoryFailed.
    """
    if factory.parse(config.data):
        progress(f"reading {factory.title(config.data)}")
        return own.read(config, progress)
    return datasets.read(config.data, config.image_size, progress)


def adapt_channels(x: Tensor, channels: int) -> Tensor:
    """(N, C, H, W) to (N, channels, H, W): colour to grey by luminance (ITU-R BT.601), grey repeated. Raises
    ConfigError.
    """
    have = x.shape[1]
    if have == channels:
        return x
    if have == 3 and channels == 1:
        return (x * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)).sum(
            1, keepdim=True
        )
    if have == 1:
        return x.expand(-1, channels, -1, -1)
    raise ConfigError(
        f"in_channels {channels} does not fit data of {have} channels; use {have} or 1", "in_channels"
    )


def _normalization(train: Split, white: float, channels: int, how: str) -> tuple[Tensor, Tensor]:
    """(offset, scale), each (1, channels, 1, 1): the model sees (pixel - offset) * scale."""
    if how == "unit":
        return torch.zeros(1, channels, 1, 1), torch.full((1, channels, 1, 1), 1 / white)
    total, squares, count = (
        torch.zeros(channels, dtype=torch.float64),
        torch.zeros(channels, dtype=torch.float64),
        0,
    )
    for part in train.images.split(1024):
        x = adapt_channels(part.float(), channels).double()
        total += x.sum((0, 2, 3))
        squares += x.square().sum((0, 2, 3))
        count += x.numel() // channels
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return mean.float().view(1, -1, 1, 1), std.reciprocal().float().view(1, -1, 1, 1)
