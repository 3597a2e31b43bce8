"""What each dimension of a tensor runs over: samples, positions or channels.

A dimension is a tuple of atoms, because views merge and split dimensions: ``(B, C, H, W)`` flattened to ``(B,
C*H*W)`` keeps the three atoms of its last dimension, and a window partition splits rows into windows and rows
of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SAMPLE, POSITION, CHANNEL = "S", "P", "C"
RINGS = 11
"""Covariances are kept for distances 0, 1, 2-3, 4-7, ..., 512 and more positions."""


class Atom(NamedTuple):
    role: str
    size: int
    spacing: int = 1
    """Distance of neighbours, in positions of the map or sequence it was cut from."""


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


def axis(role: str, size: int) -> Axis:
    return (Atom(role, size),) if size != 1 else ()


def default_axes(shape: Sequence[int]) -> Axes:
    """Samples first; then channels and a map, as images have them, or a sequence and channels for three
    dimensions.
    """
    roles = {0: "", 1: "S", 2: "SC", 3: "SPC"}.get(len(shape), "SC" + "P" * (len(shape) - 2))
    return tuple(axis(role, size) for role, size in zip(roles, shape, strict=True))


def size(part: Iterable[Atom]) -> int:
    return math.prod(atom.size for atom in part)


def shape(axes: Axes) -> tuple[int, ...]:
    return tuple(size(part) for part in axes)


def atoms(axes: Axes, role: str | None = None) -> Axis:
    return tuple(atom for part in axes for atom in part if role in (None, atom.role))


def main_role(part: Axis) -> str:
    """The role of a dimension that several atoms share: that of the largest."""
    return max(part, key=lambda atom: atom.size).role if part else CHANNEL


def reshape(axes: Axes, target: Sequence[int]) -> Axes:
    """The axes of a contiguous view. A dimension that cuts an atom unevenly takes that atom's role."""
    left = [atom for atom in atoms(axes) if atom.size != 1]
    result = []
    for need in target:
        part: list[Atom] = []
        while need > 1:
            if not left:
                part.append(Atom(CHANNEL, need))
                break
            atom = left.pop(0)
            if need % atom.size == 0:
                part.append(atom)
                need //= atom.size
            elif atom.size % need == 0:
                inner = atom.size // need
                part.append(Atom(atom.role, need, atom.spacing * inner))
                left.insert(0, Atom(atom.role, inner, atom.spacing))
                need = 1
            else:  # uneven: this cannot be told apart any further
                part = [Atom(atom.role, need * size(part))]
                rest = atom.size * size(left) // need
                left = [Atom(main_role((atom, *left)), rest)] if rest > 1 else []
                need = 1
        result.append(tuple(part))
    return tuple(result)


@lru_cache(maxsize=4096)
def ring_counts(positions: Axis) -> np.ndarray:
    """For a position, how many others (itself for ring 0) lie in each ring of distances, on average; they sum
    to the positions.

    The distance is the largest over the coordinates; near a border there are fewer, and that is counted
    exactly.
    """
    cumulative = np.ones(RINGS)
    for atom in positions:
        steps = np.arange(atom.size)
        pairs = np.where(steps == 0, atom.size, 2 * (atom.size - steps))
        for ring in range(RINGS):
            reach = 2**ring - 1 if ring < RINGS - 1 else atom.size * atom.spacing
            cumulative[ring] *= pairs[steps * atom.spacing <= reach].sum() / atom.size
    return np.diff(cumulative, prepend=0.0)


def positions(axes: Axes) -> Axis:
    return atoms(axes, POSITION)


def count(axes: Axes, role: str) -> int:
    return size(atoms(axes, role))


def broadcast(*several: Axes) -> Axes:
    """The axes of an elementwise result: of each dimension those of the operand that is not 1 there."""
    rank = max(map(len, several))
    padded = [((),) * (rank - len(axes)) + axes for axes in several]
    return tuple(max(parts, key=size) for parts in zip(*padded, strict=True))
