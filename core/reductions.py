"""One number from one tensor: norms, and what a layer's output says about its units and samples.

Chosen by measurement on a CPU core (one million float32): ``vector_norm`` 0.08 ms, a sum over samples as a matrix-vector product
0.05 ms, ``std`` 1.1 ms, ``var`` over samples 6.6 ms. They run over (samples, units) views in memory order, because the same
reductions over a channels-last tensor's logical order are ten times slower.

What comes out of a CPU tensor is a Python float, because there an operation on a scalar tensor costs fifty times one on a float; what
comes out of a device's tensor is a scalar tensor that stays there, because looking at it would wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SAFE_NORM = (1e-13, 1e15)
"""Outside this range float32 squares may underflow or overflow, and the norm is taken again in float64."""

_PLAIN = 0.05
"""Share of the mean square that the signal's variance must be for float32 sums to give it to 1e-5."""
_PIECE = 2**17
"""Numbers looked at in one go where a large tensor is gone through more than once: half a megabyte, a core's cache."""


Number = float | Tensor


def by_sample(x: Tensor) -> Tensor:
    """``x`` (samples first) as (samples, units), a view in memory order where that is possible."""
    if x.dim() < 2:
        return x.reshape(-1, 1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.reshape(x.shape[0], -1)


def norm(x: Tensor) -> Number:
    """L2 norm, right also where float32 squares would vanish (below 1e-19) or overflow."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.device.type == "cpu":
        if x.dtype != torch.float64:
            length = torch.linalg.vector_norm(x, dtype=torch.float32).item()
            if _SAFE_NORM[0] < length < _SAFE_NORM[1]:
                return length
        return torch.linalg.vector_norm(x, dtype=torch.float64).item()
    return torch.linalg.vector_norm(x, dtype=torch.float64 if x.device.type == "cuda" else torch.float32)


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


def copy_norms(targets: list[Tensor], sources: list[Tensor]) -> Sequence[Number]:
    """Copy ``sources`` into ``targets`` (alike in shape and layout); their L2 norms."""
    if not targets or targets[0].device.type == "cuda":
        if targets:
            torch._foreach_copy_(targets, sources)
        return norms(targets)
    return [norm(target.copy_(source)) for target, source in zip(targets, sources, strict=True)]  # while it is in the cache


def change_norms(before: list[Tensor], after: list[Tensor]) -> Sequence[Number]:
    """L2 norms of the differences; ``before`` may be overwritten."""
    if not before or before[0].device.type == "cuda":
        if before:
            torch._foreach_sub_(before, after)
        return norms(before)
    return [_change_norm(one, other) for one, other in zip(before, after, strict=True)]


def _change_norm(before: Tensor, after: Tensor) -> Number:
    """The norm of ``before - after``, in pieces that stay in the cache where the memory's order allows it."""
    if before.device.type != "cpu" or before.numel() <= _PIECE or not (before.is_contiguous() or before.is_contiguous(memory_format=torch.channels_last)):
        return norm(before.sub_(after))
    flat, other = (x.detach().as_strided((x.numel(),), (1,)) for x in (before, after))
    return math.hypot(*(norm(a.sub_(b)) for a, b in zip(flat.split(_PIECE), other.split(_PIECE), strict=True)))


def forward_statistics(output: Tensor) -> dict[str, Number]:
    """activation_mean, activation_std and signal_std of a layer's output (samples first).

    ``signal_std`` is the population standard deviation of each unit across the samples, root-mean-squared over units. It
    can be a millionth of the values themselves, so the first sample is subtracted before anything is squared: the
    difference of two close floats is exact, and what is left has the size of the signal. The whole variance is that
    across samples plus that of the units' means, which are few and are shifted before they are squared too. Where a look at the
    plain sums (half the work) shows that little cancels, those are taken; a GPU would have to be waited for to know.
    """
    x = by_sample(output)
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    samples, units = x.shape
    ones = torch.ones(samples, device=x.device, dtype=x.dtype)
    if x.device.type == "cpu":
        means = torch.mv(x.t(), ones) / samples
        square, mean = _square(norm(x)) / x.numel(), means.mean().item()
        signal = square - _square(norm(means)) / units
        if signal > _PLAIN * square:
            return {"activation_mean": mean, "activation_std": root(square - mean * mean), "signal_std": root(signal)}
    spread, moved = _from_first_sample(x, ones)
    moved = moved / samples
    origin = x[0, 0]
    means = (x[0] - origin) + moved
    mean = means.mean()
    signal = _square(spread) / x.numel() - _square(norm(moved)) / units
    signal = above_zero(signal)
    middle = origin + mean
    return {
        "activation_mean": middle.item() if x.device.type == "cpu" else middle,
        "activation_std": root(signal + _square(norm(means - mean)) / units),
        "signal_std": root(signal),
    }


def _square(x: Number) -> Number:
    return x * x  # a float's ** raises where it overflows


def _from_first_sample(x: Tensor, ones: Tensor) -> tuple[Number, Tensor]:
    """Of the differences between all samples and the first: the norm, and the sum over samples (one number a unit)."""
    rows = max(1, _PIECE // x.shape[1])
    if x.device.type != "cpu" or rows >= len(x):
        difference = x - x[:1]
        return norm(difference), torch.mv(difference.t(), ones)
    # In pieces through one small buffer: a fresh one as large as the output costs more than the sums.
    buffer, moved, lengths = torch.empty_like(x[:rows]), torch.zeros_like(x[0]), []
    for piece in x.split(rows):
        difference = torch.sub(piece, x[:1], out=buffer[: len(piece)])
        lengths.append(norm(difference))
        moved.addmv_(difference.t(), ones[: len(piece)])
    return math.hypot(*lengths), moved
