"""One number from one tensor: norms, and what a layer's output says about its units and samples.

Chosen by measurement on a CPU core (one million float32): NumPy's ``dot`` 0.04 ms and its sum over samples as a vector-matrix product
0.03 ms, torch's for the same 0.06 and 0.05, ``std`` 1.1 ms, ``var`` over samples 6.6 ms. So on a CPU the sums are NumPy's, over the tensor's own
memory and in pieces that stay in a core's cache. They run over (samples, units) views in memory order, because the same reductions over
a channels-last tensor's logical order are ten times slower.

What comes out of a CPU tensor is a Python float, because there an operation on a scalar tensor costs fifty times one on a float; what
comes out of a device's tensor is a scalar tensor that stays there, because looking at it would wait for the device.
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

_SAFE_SQUARES = (1e-26, 1e30)
"""Outside this range float32 squares may underflow or overflow, and their sum is taken again in float64."""

_PLAIN = 0.01
"""Share of the mean square that the signal's variance must be for float32 sums to give it to 1e-5."""
_PIECE = 2**17
"""Numbers looked at in one go: half a megabyte, a core's cache. Also few enough for their float32 sum to be good to 1e-6, and for
NumPy's BLAS to stay on the thread it was called on."""


_NATIVE = (torch.float32, torch.float64)
"""Types that NumPy can compute with."""

Number = float | Tensor


def by_sample(x: Tensor) -> Tensor:
    """``x`` (samples first) as (samples, units), a view in memory order where that is possible."""
    if x.dim() < 2:
        return x.reshape(-1, 1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.flatten(1)


_QUIETLY = np.errstate(all="ignore")
"""NaN and infinities are findings here, not faults of the arithmetic."""


@_QUIETLY
def norm(x: Tensor) -> Number:
    """L2 norm, right also where float32 squares would vanish (below 1e-19) or overflow."""
    if x.device.type == "cpu" and type(x) is Tensor:
        return math.sqrt(sum(map(_squares, _pieces(torch.view_as_real(x.resolve_conj()) if x.is_complex() else x))))
    if x.device.type == "cpu":  # a tensor of another kind, spread over processes perhaps, knows best how
        return torch.linalg.vector_norm(x, dtype=torch.float64).item()
    return torch.linalg.vector_norm(x, dtype=torch.float64 if x.device.type == "cuda" else torch.float32)


def _pieces(x: Tensor) -> Iterable[np.ndarray]:
    """The numbers of a CPU tensor, flat, in pieces of at most ``_PIECE``; float32 copies of what NumPy has no type for."""
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
    """This thread's memory for intermediate numbers, flat: it never leaves the cache, and nothing is allocated anew."""
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


def root(x: Number) -> Number:
    """Square root; 0 for what rounding made negative."""
    return above_zero(x).sqrt() if isinstance(x, Tensor) else math.sqrt(above_zero(x))


def above_zero(x: Number) -> Number:
    """``x``, or 0 where it is negative; NaN stays."""
    return x.clamp(min=0) if isinstance(x, Tensor) else 0.0 if x < 0 else x


def ratio(part: Number, whole: Number) -> Number:
    """``part / whole``, where nothing is 0 of anything, of nothing too."""
    if isinstance(part, Tensor):
        return torch.where(part == 0, part, part / whole)
    if part == 0:
        return 0.0
    return part / whole if whole else math.nan if math.isnan(part) else math.inf


def norms(tensors: list[Tensor]) -> Sequence[Number]:
    """L2 norms of several tensors, with few kernels where launching one costs."""
    if not tensors or any(x.device.type != "cuda" or x.device != tensors[0].device for x in tensors):
        return [norm(x) for x in tensors]
    return torch._foreach_norm(tensors, 2, torch.float64)


@_QUIETLY
def copy_norms(targets: list[Tensor], sources: list[Tensor]) -> Sequence[Number]:
    """Copy ``sources`` into ``targets`` (alike in shape and layout); their L2 norms."""
    if not targets or targets[0].device.type == "cuda":
        if targets:
            torch._foreach_copy_(targets, sources)
        return norms(targets)
    return [_copy_norm(target, source) for target, source in zip(targets, sources, strict=True)]


def _copy_norm(target: Tensor, source: Tensor) -> Number:
    if not _in_order(target):
        return norm(target.copy_(source))
    total = 0.0
    for to, piece in zip(_cut(_flat(target)), _cut(_flat(source)), strict=True):
        np.copyto(to, piece)
        total += _squares(to)  # while it is in the cache
    return math.sqrt(total)


@_QUIETLY
def change_norms(before: list[Tensor], after: list[Tensor]) -> Sequence[Number]:
    """L2 norms of the differences; ``before`` may be overwritten."""
    if not before or before[0].device.type == "cuda":
        if before:
            torch._foreach_sub_(before, after)
        return norms(before)
    return [_change_norm(one, other) for one, other in zip(before, after, strict=True)]


def _change_norm(before: Tensor, after: Tensor) -> Number:
    if not _in_order(before):
        return norm(before.sub_(after))
    # Through one small buffer: what is written there never leaves the cache.
    old, new, total = _flat(before), _flat(after), 0.0
    buffer = _scratch(min(len(old), _PIECE), old.dtype)
    for a, b in zip(_cut(old), _cut(new), strict=True):
        total += _squares(np.subtract(a, b, out=buffer[: len(a)]))
    return math.sqrt(total)


def _in_order(x: Tensor) -> bool:
    """Whether NumPy can go through ``x``, and through what is alike, in place: on the CPU and without gaps."""
    plain = x.device.type == "cpu" and type(x) is Tensor and x.dtype in _NATIVE
    return plain and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


@_QUIETLY
def off_units(output: Tensor) -> Tensor:
    """For each of a rectifier's units (samples first), whether it is zero for every sample."""
    rows = by_sample(output.detach())
    if rows.device.type != "cpu":
        return rows.amax(0) <= 0
    return torch.from_numpy(functools.reduce(np.maximum, map(_highest, _blocks(rows))) <= 0)


def _highest(block: np.ndarray) -> np.ndarray:
    return block[0].copy() if len(block) == 1 else np.maximum.reduce(block, 0, initial=-np.inf)


def _over_samples(block: np.ndarray) -> np.ndarray:
    return block[0].copy() if len(block) == 1 else np.dot(np.ones(len(block), block.dtype), block)


def forward_statistics(output: Tensor, off: bool = False) -> dict[str, Any]:
    """activation_mean, activation_std and signal_std of a layer's output (samples first). ``off`` asks for the units that are not above
    zero for any sample too, which a rectifier will set to zero: a CPU gives them with the same look at the memory, a GPU does not.

    ``signal_std`` is the population standard deviation of each unit across the samples, root-mean-squared over units. It
    can be a millionth of the values themselves, so the first sample is subtracted before anything is squared: the
    difference of two close floats is exact, and what is left has the size of the signal. The whole variance is that
    across samples plus that of the units' means, which are few and are shifted before they are squared too. Where a look at the
    plain sums (half the work) shows that little cancels, those are taken; a GPU would have to be waited for to know.
    """
    x = by_sample(output)
    if x.device.type == "cpu":
        return _on_cpu(x, off)
    if x.dtype not in _NATIVE:
        x = x.float()
    samples, units = x.shape
    difference = x - x[:1]
    moved = torch.mv(difference.t(), torch.ones(samples, device=x.device, dtype=x.dtype)) / samples
    origin = x[0, 0]
    means = (x[0] - origin) + moved
    mean = means.mean()
    signal = above_zero(_square(norm(difference)) / x.numel() - _square(norm(moved)) / units)
    return {
        "activation_mean": origin + mean,
        "activation_std": root(signal + _square(norm(means - mean)) / units),
        "signal_std": root(signal),
    }


@_QUIETLY
def _on_cpu(x: Tensor, off: bool) -> dict[str, Any]:
    """The same over the memory of a CPU tensor (samples, units)."""
    samples, units = x.shape
    tops: list[np.ndarray] | None = [] if off else None
    square, total = _sums(_blocks(x), tops)
    asked = {"off": torch.from_numpy(functools.reduce(np.maximum, tops) <= 0)} if tops else {}
    square /= samples * units
    signal = square - sum(map(_squares, _cut(total))) / (samples * samples * units)
    if signal > _PLAIN * square:
        mean = float(total.sum()) / (samples * units)
        return {"activation_mean": mean, "activation_std": root(square - mean * mean), "signal_std": math.sqrt(signal), **asked}
    first = next(_blocks(x[:1]))[0].copy()
    square, moved = _sums(_less(first, _blocks(x)))
    moved = moved / samples
    signal = above_zero(square / (samples * units) - sum(map(_squares, _cut(moved))) / units)
    origin = first[0]
    means = (first - origin) + moved
    mean = means.mean()
    between = sum(map(_squares, _cut(means - mean))) / units
    return {"activation_mean": float(origin) + float(mean), "activation_std": root(signal + between), "signal_std": root(signal), **asked}


def _blocks(x: Tensor) -> Iterator[np.ndarray]:
    """A few samples at a time, as arrays: the tensor's memory where NumPy has its type, else a float32 copy that the next one overwrites."""
    rows = max(1, _PIECE // x.shape[1])
    if x.dtype in _NATIVE:
        array = x.numpy(force=True)
        yield from (array,) if rows >= len(array) else (array[start : start + rows] for start in range(0, len(array), rows))
    else:
        yield from _converted(x, rows)


def _less(first: np.ndarray, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """``blocks`` with ``first`` taken from each sample, in one small buffer: a fresh one as large as the output costs more than the sums."""
    buffer = None
    for block in blocks:
        buffer = np.empty_like(block) if buffer is None else buffer
        yield np.subtract(block, first, out=buffer[: len(block)])


def _sums(blocks: Iterable[np.ndarray], tops: list[np.ndarray] | None = None) -> tuple[float, np.ndarray]:
    """Sum of squares over everything, and sums over the samples, one a unit; ``tops`` gathers the highest of each block, one a unit."""
    square, total = 0.0, None
    for block in blocks:
        square += sum(map(_squares, _cut(block.reshape(-1))))
        if tops is not None:
            tops.append(_highest(block))
        part = _over_samples(block)
        total = part if total is None else total + part
    return square, total


def _square(x: Number) -> Number:
    return x * x  # a float's ** raises where it overflows
