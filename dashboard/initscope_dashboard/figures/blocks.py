"""Which layers belong together, read from their names alone: any network's, not one family's."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_PARTS = re.compile(r"\.|_(?=\d+$)|(?<=[A-Za-z])(?=\d+$)")
"""A module path is parted at its dots, and before a number at its end: 'layer1.0.conv2', 'conv3_2', 'fc1'."""
NEARLY_ALL = 0.8


def blocks(layers: Sequence[str]) -> list[str]:
    """The block of each layer: the prefix of its module path, as long as gives about the square root of their
    number of blocks ('conv3' of VGG's conv3_2, 'layer1' of ResNet's layer1.0.conv2, 'h.7' of the eighth block
    of a transformer). A layer alone in its block is called by its own name; where nearly every layer is, or
    all are together, each is its own.
    """
    paths = [_PARTS.split(name) for name in layers]
    best, distance = list(layers), math.inf
    for level in range(1, max(map(len, paths), default=1)):
        found = [
            name if len(path) <= level else _prefix(name, path, level)
            for name, path in zip(layers, paths, strict=True)
        ]
        count = len(set(found))
        off = abs(math.log(count / math.sqrt(len(layers))))
        if count > 1 and 2 * (count - 1) <= len(layers) and off < distance:
            best, distance = found, off
    size = Counter(best)
    return [name if size[block] == 1 else block for name, block in zip(layers, best, strict=True)]


def _prefix(name: str, path: Sequence[str], level: int) -> str:
    """The first ``level`` parts of ``name`` with whatever stood between them."""
    end = 0
    for part in path[:level]:
        end = name.index(part, end) + len(part)
    return name[:end]


def groups(layers: Sequence[str]) -> list[str]:
    """``blocks``; for layers without blocks (a plain Sequential) runs of neighbours: '0 … 38'."""
    found = blocks(layers)
    if len(set(found)) < len(layers) or len(layers) < 10:
        return found
    size = next(
        size
        for size in (5, 10, 20, 25, 50, 100, 200, 500, len(layers))
        if size >= math.sqrt(len(layers)) - 1e-9
    )
    starts = range(0, len(layers), size)
    names = {start: f"{layers[start]} … {layers[min(start + size, len(layers)) - 1]}" for start in starts}
    return [names[i - i % size] for i in range(len(layers))]


def short(names: Sequence[str], limit: int = 24) -> list[str]:
    """Names for an axis: without the path that nearly all share, and no longer than ``limit``: what stands
    in parentheses is left out, then the middle.
    """
    shared = ""
    while len(names) > 1:
        heads = Counter(
            name[: name.index(".", len(shared)) + 1]
            for name in names
            if name.startswith(shared) and "." in name[len(shared) :]
        )
        head, count = heads.most_common(1)[0] if heads else ("", 0)
        if count < NEARLY_ALL * len(names):
            break
        shared = head
    bare = [name.removeprefix(shared) for name in names]
    bare = [name if len(name) <= limit else name.partition(" (")[0] for name in bare]
    return [
        name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-(limit // 2) :]}" for name in bare
    ]


def runs(groups: Sequence[str]) -> list[tuple[str, int, int]]:
    """(group, first, last) of neighbours in the same group."""
    found: list[tuple[str, int, int]] = []
    for i, group in enumerate(groups):
        if found and found[-1][0] == group:
            found[-1] = (group, found[-1][1], i)
        else:
            found.append((group, i, i))
    return found
