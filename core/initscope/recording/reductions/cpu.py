"""The reductions of tensors on a CPU.

Chosen by measurement on a core (one million float32): NumPy's ``dot`` 0.04 ms and its sum over samples as a
vector-matrix product 0.03 ms, torch's for the same 0.06 and 0.05, ``std`` 1.1 ms, ``var`` over samples 6.6
ms. So the sums are NumPy's, over the tensor's own memory and in pieces that stay in a core's cache. They run
over (samples, units) views in memory order, because the same reductions over a channels-last tensor's logical
order are ten times slower.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initscope.recording.tensors import by_sample

_SAFE_SQUARES = (1e-26, 1e30)
"""Outside this range float32 squares may underflow or overflow, and their sum is taken again in float64."""

_PLAIN = 0.01
"""Share of the mean square that the signal's variance must be for float32 sums to give it to 1e-5."""
_PIECE = 2**17
"""Numbers looked at in one go: half a megabyte, a core's cache. Also few enough for their float32 sum to be
good to 1e-6, and for NumPy's BLAS to stay on the thread it was called on.
"""
_NATIVE = (torch.float32, torch.float64)
"""Types that NumPy can compute with."""

_QUIETLY = np.errstate(all="ignore")
"""NaN and infinities are findings here, not faults of the arithmetic."""


@_QUIETLY
def norm(x: Tensor) -> float:
    """L2 norm."""
    return math.sqrt(
        sum(map(_squares, _pieces(torch.view_as_real(x.resolve_conj()) if x.is_complex() else x)))
    )


def _pieces(x: Tensor) -> Iterable[np.ndarray]:
    """The numbers of a CPU tensor, flat, in pieces of at most ``_PIECE``; float32 copies of what NumPy has no
    type for.
    """
    if x.dtype in _NATIVE:
        return _cut(_flat(x))
    return _converted(by_sample(x).reshape(-1), _PIECE)


def _converted(x: Tensor, rows: int) -> Iterator[np.ndarray]:
    """So many rows at a time as float32, in memory that the next ones overwrite."""
    shape = min(rows, x.shape[0]), *x.shape[1:]
    array = _scratch(math.prod(shape), np.float32).reshape(shape)
    for piece in x.split(rows):  # of nothing: one, empty
        part = array[: piece.shape[0]]
        torch.from_numpy(part).copy_(piece)
        yield part


_threads = threading.local()


def _scratch(size: int, dtype: Any) -> np.ndarray:
    """This thread's memory for intermediate numbers, flat: it never leaves the cache, and nothing is
    allocated anew.
    """
    kept = _threads.__dict__.setdefault(np.dtype(dtype).char, np.empty(0, dtype))
    if len(kept) < size:
        kept = _threads.__dict__[np.dtype(dtype).char] = np.empty(max(size, _PIECE), dtype)
    return kept[:size]


def _flat(x: Tensor) -> np.ndarray:
    """All numbers of a CPU tensor in the order of its memory, without a copy where it has no gaps."""
    return x.numpy(force=True).ravel("K")


def _cut(x: np.ndarray) -> Sequence[np.ndarray]:
    return (x,) if len(x) <= _PIECE else [x[start : start + _PIECE] for start in range(0, len(x), _PIECE)]


def _squares(x: np.ndarray) -> float:
    """Sum of the squares of a flat array."""
    found = float(np.dot(x, x))
    if _SAFE_SQUARES[0] < found < _SAFE_SQUARES[1] or x.dtype == np.float64:
        return found
    x = x.astype(np.float64)
    return float(np.dot(x, x))


@_QUIETLY
def copy_norm(target: Tensor, source: Tensor) -> float:
    """Copy ``source`` into ``target``, both ``in_order`` and alike; its norm."""
    total = 0.0
    for to, piece in zip(_cut(_flat(target)), _cut(_flat(source)), strict=True):
        np.copyto(to, piece)
        total += _squares(to)  # while it is in the cache
    return math.sqrt(total)


@_QUIETLY
def change_norm(before: Tensor, after: Tensor) -> float:
    """Norm of the difference of two tensors that are ``in_order`` and alike."""
    # Through one small buffer: what is written there never leaves the cache.
    old, new, total = _flat(before), _flat(after), 0.0
    buffer = _scratch(min(len(old), _PIECE), old.dtype)
    for a, b in zip(_cut(old), _cut(new), strict=True):
        total += _squares(np.subtract(a, b, out=buffer[: len(a)]))
    return math.sqrt(total)


def in_order(x: Tensor) -> bool:
    """Whether NumPy can go through ``x``, and through what is alike, in place: on the CPU and without
    gaps.
    """
    plain = x.device.type == "cpu" and type(x) is Tensor and x.dtype in _NATIVE
    return plain and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


@_QUIETLY
def dead_units(x: Tensor) -> Tensor:
    """For each unit of (samples, units), whether it is above zero for no sample."""
    return torch.from_numpy(functools.reduce(np.maximum, map(_highest, _blocks(x))) <= 0)


def _highest(block: np.ndarray) -> np.ndarray:
    return block[0].copy() if len(block) == 1 else np.maximum.reduce(block, 0, initial=-np.inf)


def _over_samples(block: np.ndarray) -> np.ndarray:
    return block[0].copy() if len(block) == 1 else np.dot(np.ones(len(block), block.dtype), block)


@_QUIETLY
def forward_statistics(x: Tensor, off: bool) -> dict[str, Any]:
    """Mean, deviation and signal of (samples, units), and the units that are off."""
    samples, units = x.shape
    tops: list[np.ndarray] | None = [] if off else None
    square, total = _sums(_blocks(x), tops)
    asked = {"off": torch.from_numpy(functools.reduce(np.maximum, tops) <= 0)} if tops else {}
    square /= samples * units
    signal = square - sum(map(_squares, _cut(total))) / (samples * samples * units)
    if signal > _PLAIN * square:
        mean = float(total.sum()) / (samples * units)
        return {
            "activation_mean": mean,
            "activation_std": math.sqrt(max(square - mean * mean, 0.0)),
            "signal_std": math.sqrt(signal),
            **asked,
        }
    first = next(_blocks(x[:1]))[0].copy()
    square, moved = _sums(_less(first, _blocks(x)))
    moved = moved / samples
    signal = max(square / (samples * units) - sum(map(_squares, _cut(moved))) / units, 0.0)  # NaN stays
    origin = first[0]
    means = (first - origin) + moved
    mean = means.mean()
    between = sum(map(_squares, _cut(means - mean))) / units
    return {
        "activation_mean": float(origin) + float(mean),
        "activation_std": math.sqrt(signal + between),
        "signal_std": math.sqrt(signal),
        **asked,
    }


def _blocks(x: Tensor) -> Iterator[np.ndarray]:
    """A few samples at a time, as arrays: the tensor's memory where NumPy has its type, else a float32 copy
    that the next one overwrites.
    """
    rows = max(1, _PIECE // x.shape[1])
    if x.dtype in _NATIVE:
        array = x.numpy(force=True)
        yield from (
            (array,)
            if rows >= len(array)
            else (array[start : start + rows] for start in range(0, len(array), rows))
        )
    else:
        yield from _converted(x, rows)


def _less(first: np.ndarray, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """``blocks`` with ``first`` taken from each sample, in one small buffer: a fresh one as large as the
    output costs more than the sums.
    """
    buffer = None
    for block in blocks:
        buffer = np.empty_like(block) if buffer is None else buffer
        yield np.subtract(block, first, out=buffer[: len(block)])


def _sums(blocks: Iterable[np.ndarray], tops: list[np.ndarray] | None = None) -> tuple[float, np.ndarray]:
    """Sum of squares over everything, and sums over the samples, one a unit; ``tops`` gathers the highest of
    each block, one a unit.
    """
    square = 0.0
    total: Any = None
    for block in blocks:
        square += sum(map(_squares, _cut(block.reshape(-1))))
        if tops is not None:
            tops.append(_highest(block))
        part = _over_samples(block)
        total = part if total is None else total + part
    return square, total
