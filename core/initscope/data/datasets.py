"""Data sets as they are read: digits from scikit-learn, three of torchvision's, a folder of images; as
tensors, split once.

Files of the downloadable sets live in ``INITSCOPE_DATA``, by default ``~/.cache/initscope/data``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initscope.config import catalog
from initscope.data import idx
from initscope.errors import DataUnavailable, one_line

VALIDATION_SHARE = 0.2
"""Share of the samples that become the validation split, for sets that come in one piece."""
_SPLIT_SEED = 0
DOWNLOAD_TIMEOUT_SECONDS = 20
"""A server that is silent for so long is given up on; behind some firewalls it would stay silent for ever."""


@dataclass(frozen=True)
class Split:
    """``images``: (N, C, H, W) uint8 or float32, as read, or samples (N, ...) that are no images; ``labels``:
    (N,) int64 in 0..classes-1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class RawData:
    """A data set as read. ``white`` is the value of a white pixel; ``classes`` the number of classes."""

    train: Split
    validation: Split
    classes: int
    white: float


def read(name: str, image_size: int, progress: Callable[[str], None] = lambda text: None) -> RawData:
    """The raw data set of that name. Raises DataUnavailable."""
    if name.startswith(catalog.IMAGE_FOLDER):
        progress("reading images")
        return _image_folder(Path(name.removeprefix(catalog.IMAGE_FOLDER)).expanduser(), image_size)
    if name == "digits":
        return _digits()
    progress(f"loading {catalog.data_title(name)}")
    return _downloadable(name)


def data_root() -> Path:
    """``INITSCOPE_DATA``, else ``~/.cache/initscope/data``."""
    return Path(os.environ.get("INITSCOPE_DATA") or Path.home() / ".cache" / "initscope" / "data")


def _digits() -> RawData:
    """The 1,797 digits that come inside scikit-learn (``load_digits``): 8x8, values 0 to 16."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataUnavailable(
            "the data set digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        )
    # The file that sklearn.datasets.load_digits reads; importing sklearn for it would cost 1.4 s of every
    # run's start.
    table = np.loadtxt(
        Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz",
        delimiter=",",
        dtype=np.float32,
    )
    images = torch.from_numpy(table[:, :-1].copy()).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return RawData(*stratified_split(images, labels), classes=10, white=16.0)


PACKAGES = {"fashion_mnist": ("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))}
"""Debian's package of a data set, and the folder into which it puts the files."""
_FOLDERS = {"fashion_mnist": "FashionMNIST", "mnist": "MNIST"}


def _downloadable(name: str) -> RawData:
    """FashionMNIST, MNIST or CIFAR-10: from files on disk, packed or not, else downloaded by torchvision."""
    if name in _FOLDERS and (files := idx.find(_idx_folders(name))):
        return _read_idx(name, files)
    return _torchvision(name)


def _idx_folders(name: str) -> list[Path]:
    """Where the files of an IDX data set may lie, the person's own folder first."""
    own = data_root() / _FOLDERS[name]
    return [own / "raw", own, *([PACKAGES[name][1]] if name in PACKAGES else [])]


def _read_idx(name: str, files: dict[str, Path]) -> RawData:
    try:
        arrays = {key: torch.from_numpy(idx.read(path).copy()) for key, path in files.items()}
    except (OSError, EOFError, ValueError) as error:
        folder = next(iter(files.values())).parent
        raise DataUnavailable(
            f"{catalog.data_title(name)} in {folder} cannot be read: {one_line(str(error), 120)}; "
            f"remove the damaged file so that another copy is used, or {catalog.USE_EMBEDDED}"
        ) from None
    train, validation = (
        Split(arrays[f"{split}-{idx.TABLES[0]}"].unsqueeze(1), arrays[f"{split}-{idx.TABLES[1]}"].long())
        for split in idx.SPLITS
    )
    return RawData(train, validation, classes=10, white=255.0)


def _torchvision(name: str) -> RawData:
    """The same through torchvision; downloaded with a progress bar if not on disk yet."""
    import torchvision.datasets as tv

    kind, folder = {
        "fashion_mnist": (tv.FashionMNIST, "FashionMNIST/raw"),
        "mnist": (tv.MNIST, "MNIST/raw"),
        "cifar10": (tv.CIFAR10, "."),
    }[name]
    root = data_root()
    try:
        try:
            parts = [kind(root, train=train, download=False) for train in (True, False)]
        except RuntimeError:  # torchvision's word for "not found or corrupted"
            with _network_timeout(DOWNLOAD_TIMEOUT_SECONDS):
                parts = [kind(root, train=train, download=True) for train in (True, False)]
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        AssertionError,
    ) as error:  # AssertionError: not an IDX file
        files = " and ".join(_files_of(kind)[:2]) + " …"
        package = f"install Debian's package {PACKAGES[name][0]}, or " if name in PACKAGES else ""
        packed = ", .gz or unpacked" if name in _FOLDERS else ""
        raise DataUnavailable(
            f"{catalog.data_title(name)} is not in {(root / folder).resolve()} and could not be downloaded "
            f"({one_line(str(error), 80)}); {package}put its files ({files}{packed}) there by hand, or "
            f"{catalog.USE_EMBEDDED}"
        ) from None
    train, validation = (Split(_as_images(part.data), torch.as_tensor(part.targets)) for part in parts)
    return RawData(train, validation, classes=10, white=255.0)


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads take no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _files_of(kind: Any) -> list[str]:
    if hasattr(kind, "resources"):
        return [Path(name).stem for name, _ in kind.resources]
    return [f"{kind.base_folder}/{name}" for name, _ in kind.train_list]


def _as_images(data: Tensor | np.ndarray) -> Tensor:
    """(N, H, W) or (N, H, W, C) to (N, C, H, W) uint8."""
    images = torch.as_tensor(data)
    return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _image_folder(folder: Path, image_size: int) -> RawData:
    """One sub-folder of images a class (torchvision's ImageFolder), resized on reading; a fixed stratified
    split.
    """
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise DataUnavailable(
            f"no folder {folder}; image_folder:DIR needs one sub-folder of images for each class"
        )
    try:
        listing = ImageFolder(str(folder))
        images = [_read_image(listing.loader, path, image_size) for path, _ in listing.samples]
    except (
        OSError,
        ValueError,
        SyntaxError,
    ) as error:  # FileNotFoundError: no class folders, or one without images
        raise DataUnavailable(
            f"{folder} cannot be read as an image folder: {one_line(str(error), 200)}; it needs one "
            "sub-folder of images for each class"
        ) from None
    if len(listing.classes) < 2:
        raise DataUnavailable(f"{folder} has {len(listing.classes)} class folder; at least two are needed")
    labels = torch.tensor(listing.targets)
    return RawData(*stratified_split(torch.stack(images), labels), classes=len(listing.classes), white=255.0)


def _read_image(loader: Callable, path: str, image_size: int) -> Tensor:
    image = loader(path).convert("RGB").resize((image_size, image_size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def stratified_split(images: Tensor, labels: Tensor, share: float = VALIDATION_SHARE) -> tuple[Split, Split]:
    """A fixed split in which each class gives the same share (at least one sample) to validation; both parts
    shuffled.
    """
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        held_out[members[: max(1, round(share * len(members)))]] = True
    train, validation = order[~held_out[order]], order[held_out[order]]
    if not len(train):
        raise DataUnavailable("every class needs at least two samples: one to train on and one to validate")
    return Split(images[train], labels[train]), Split(images[validation], labels[validation])
