"""IDX files, packed or not: the format of MNIST and FashionMNIST (LeCun's page on MNIST, "the IDX file
format").
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

SPLITS = ("train", "t10k")
TABLES = ("images-idx3-ubyte", "labels-idx1-ubyte")
NAMES = tuple(f"{split}-{table}" for split in SPLITS for table in TABLES)
"""The four files of a data set; each may end in ``.gz``."""


def find(folders: list[Path]) -> dict[str, Path] | None:
    """The four files of the first folder that has them all, by name; None if no folder has."""
    for folder in folders:
        found = {
            name: path for name in NAMES for path in (folder / name, folder / f"{name}.gz") if path.is_file()
        }
        if len(found) == len(NAMES):
            return found
    return None


def read(path: Path) -> np.ndarray:
    """The array of an IDX file of unsigned bytes. Raises ValueError if it is none or is cut off, OSError,
    EOFError.
    """
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">u4").astype(int)
    if len(content) != start + int(shape.prod()):
        raise ValueError(
            f"{path.name} is cut off: {len(content):,} bytes, expected {start + int(shape.prod()):,}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
