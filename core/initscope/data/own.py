"""A data set of one's own, from ``path/to/file.py:factory``: read once into tensors, like every other data
set.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from initscope.config.factory import Factory
from initscope.config.factory_code import arguments, blamed, load
from initscope.config.run_config import RunConfig
from initscope.data.datasets import RawData, Split
from initscope.errors import ConfigError, one_line

_EXPECTED = "expected two data sets, (training, validation)"
TELL_SECONDS = 1.0


def read(config: RunConfig, progress: Callable[[str], None] = lambda text: None) -> RawData:
    """Both data sets that the factory of ``config.data`` returns, as tensors.

    The factory may ask by name for image_size, in_channels and num_classes. A sample is (input, label): the
    input a PIL image, a tensor or an array, the label a whole number from 0. PIL images become uint8
    (channels, height, width), resized to the config's image size where they differ; arrays (height, width, 1,
    3 or 4) are turned; other inputs stay as they are. Each sample is read once, with fixed seeds, so that two
    runs see the same data: a random transform is drawn once. Raises ConfigError, or FactoryFailed with the
    line of the file.
    """
    factory, make = load(config.data, config.data_sha256)
    asked = arguments(
        factory,
        make,
        {
            "image_size": config.image_size,
            "in_channels": config.in_channels,
            "num_classes": config.num_classes,
        },
    )
    with _fixed_seeds():
        with blamed(factory):
            returned = make(**asked)
        sets = _two(factory, returned)
        names = [f"the {which} set of {factory.title}" for which in ("training", "validation")]
        read_in = [_gathered(factory, where, part, progress) for where, part in zip(names, sets, strict=True)]
    pictures = [image for inputs, _ in read_in for image in inputs if isinstance(image, Image.Image)]
    form = _Form.of(pictures, config.image_size)
    splits = [
        _split(where, inputs, labels, form) for where, (inputs, labels) in zip(names, read_in, strict=True)
    ]
    train, validation = splits
    if train.images.shape[1:] != validation.images.shape[1:]:
        shapes = " and ".join(str(tuple(part.images.shape[1:])) for part in splits)
        raise ConfigError(
            f"{factory.title}: training and validation samples differ in shape: {shapes}; all must have one"
        )
    named = [
        len(given) for part in sets if isinstance(given := getattr(part, "classes", None), (list, tuple))
    ]
    classes = max([2, *named, *(int(part.labels.max()) + 1 for part in splits)])
    return RawData(
        train, validation, classes=classes, white=255.0 if train.images.dtype == torch.uint8 else 1.0
    )


@contextlib.contextmanager
def _fixed_seeds() -> Iterator[None]:
    """The three global random states set to 0 for the block, and put back."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _two(factory: Factory, returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        count = f" of {len(returned)}" if isinstance(returned, (tuple, list)) else ""
        raise ConfigError(f"{factory.title} returned {type(returned).__name__}{count}; {_EXPECTED}")
    for part in returned:
        if isinstance(part, DataLoader):
            raise ConfigError(
                f"{factory.title} returned a DataLoader; {_EXPECTED}: batches are made here, return "
                "loader.dataset"
            )
        if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
            raise ConfigError(
                f"{factory.title} returned {type(part).__name__}, which has no length and no items; "
                f"{_EXPECTED}"
            )
    return returned[0], returned[1]


def _gathered(
    factory: Factory, where: str, samples: Any, progress: Callable[[str], None]
) -> tuple[Any, Tensor]:
    """Inputs (a tensor, or a list of what the data set gives) and labels (N,), one sample after the other."""
    with blamed(factory):
        count = len(samples)
    if not count:
        raise ConfigError(f"{where} is empty; expected samples of every class")
    if isinstance(samples, TensorDataset) and len(samples.tensors) == 2 and samples.tensors[1].dim() == 1:
        _label(where, 0, samples.tensors[1][0])
        return samples.tensors[0].detach().cpu(), samples.tensors[1].detach().cpu()
    inputs: list[Any] = []
    labels: list[int] = []
    told = time.monotonic()
    for i in range(count):
        with blamed(factory):
            sample = samples[i]
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise ConfigError(f"sample {i} of {where} is {one_line(sample, 60)}; expected (input, label)")
        inputs.append(sample[0])
        labels.append(_label(where, i, sample[1]))
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            progress(f"reading sample {i + 1:,} of {count:,}")
    return inputs, torch.tensor(labels)


def _split(where: str, inputs: Any, labels: Tensor, form: _Form) -> Split:
    if not isinstance(inputs, Tensor):
        tensors = [
            form.tensor(x) if isinstance(x, Image.Image) else _tensor(where, i, x)
            for i, x in enumerate(inputs)
        ]
        for i, x in enumerate(tensors):
            if x.shape != tensors[0].shape:
                shapes = f"the shape {tuple(x.shape)}, sample 0 {tuple(tensors[0].shape)}"
                raise ConfigError(f"sample {i} of {where} has {shapes}; samples must have one shape")
        inputs = torch.stack(tensors)
    if inputs.dtype != torch.uint8 and (inputs.is_floating_point() or inputs.dim() == 4):
        inputs = inputs.float()
        if not torch.isfinite(inputs).all():
            raise ConfigError(f"{where} holds NaN or infinite values; expected finite numbers")
    if labels.min() < 0:
        raise ConfigError(f"{where} has the label {int(labels.min())}; labels are whole numbers from 0")
    return Split(inputs, labels.long())


def _label(where: str, i: int, label: Any) -> int:
    if isinstance(label, (Tensor, np.ndarray)) and np.prod(label.shape) == 1:
        label = label.item()
    if not isinstance(label, Integral):
        raise ConfigError(
            f"sample {i} of {where} has the label {one_line(label, 60)}; expected a whole number from 0, "
            "its class"
        )
    return int(label)


@dataclass(frozen=True)
class _Form:
    """What all pictures of both data sets become: grey if all are, else colour; of one size."""

    mode: str
    size: tuple[int, int] | None

    @classmethod
    def of(cls, pictures: list[Image.Image], image_size: int) -> _Form:
        mode = "L" if all(image.mode in ("1", "L") for image in pictures) else "RGB"
        return cls(mode, (image_size, image_size) if len({image.size for image in pictures}) > 1 else None)

    def tensor(self, image: Image.Image) -> Tensor:
        """uint8 (channels, height, width)."""
        converted = image.convert(self.mode)
        array = torch.from_numpy(np.array(converted.resize(self.size) if self.size else converted))
        return array.unsqueeze(0) if self.mode == "L" else array.permute(2, 0, 1)


def _tensor(where: str, i: int, value: Any) -> Tensor:
    if (
        isinstance(value, np.ndarray)
        and value.ndim == 3
        and value.shape[-1] in (1, 3, 4)
        and value.shape[0] not in (1, 3, 4)
    ):
        value = value.transpose(2, 0, 1)
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(
            f"sample {i} of {where} is {type(value).__name__}; expected a PIL image, a tensor or an array"
        ) from None
