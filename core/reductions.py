"""One number from one tensor: norms, and what a layer's output says about its units and samples.

Chosen by measurement on a CPU core (one million float32): ``vector_norm`` 0.08 ms, a sum over samples as a matrix-vector product
0.05 ms, ``std`` 1.1 ms, ``var`` over samples 6.6 ms. They run over (samples, units) views in memory order, because the same
reductions over a channels-last tensor's logical order are ten times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SAFE_NORM = (1e-13, 1e15)
"""Outside this range float32 squares may underflow or overflow, and the norm is taken again in float64."""

_PLAIN = 0.05
"""Share of the mean square that the signal's variance must be for float32 sums to give it to 1e-5."""
_PIECE = 2**17
"""Numbers looked at in one go where a large tensor is gone through more than once: half a megabyte, a core's cache."""


def by_sample(x: Tensor) -> Tensor:
    """``x`` (samples first) as (samples, units), a view in memory order where that is possible."""
    if x.dim() < 2:
        return x.reshape(-1, 1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1)
    return x.reshape(x.shape[0], -1)


def norm(x: Tensor) -> Tensor:
    """L2 norm as a scalar tensor, right also where float32 squares would vanish (below 1e-19) or overflow."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.device.type == "cuda" or x.dtype == torch.float64:
        return torch.linalg.vector_norm(x, dtype=torch.float64)
    length = torch.linalg.vector_norm(x, dtype=torch.float32)
    if x.device.type == "cpu":
        if not _SAFE_NORM[0] < length < _SAFE_NORM[1]:
            length = torch.linalg.vector_norm(x, dtype=torch.float64)
        return length.double()
    return length


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """L2 norms of several tensors, with few kernels where launching one costs."""
    if not tensors or any(x.device.type != "cuda" or x.device != tensors[0].device for x in tensors):
        return [norm(x) for x in tensors]
    return torch._foreach_norm(tensors, 2, torch.float64)


def copy_norms(targets: list[Tensor], sources: list[Tensor]) -> Sequence[Tensor]:
    """Copy ``sources`` into ``targets`` (alike in shape and layout); their L2 norms."""
    if not targets or targets[0].device.type == "cuda":
        if targets:
            torch._foreach_copy_(targets, sources)
        return norms(targets)
    return [norm(target.copy_(source)) for target, source in zip(targets, sources, strict=True)]  # while it is in the cache


def change_norms(before: list[Tensor], after: list[Tensor]) -> Sequence[Tensor]:
    """L2 norms of the differences; ``before`` may be overwritten."""
    if not before or before[0].device.type == "cuda":
        if before:
            torch._foreach_sub_(before, after)
        return norms(before)
    return [_change_norm(one, other) for one, other in zip(before, after, strict=True)]


def _change_norm(before: Tensor, after: Tensor) -> Tensor:
    """The norm of ``before - after``, in pieces that stay in the cache where the memory's order allows it."""
    if before.numel() <= _PIECE or not (before.is_contiguous() or before.is_contiguous(memory_format=torch.channels_last)):
        return norm(before.sub_(after))
    flat, other = (x.detach().as_strided((x.numel(),), (1,)) for x in (before, after))
    pieces = [norm(a.sub_(b)) for a, b in zip(flat.split(_PIECE), other.split(_PIECE), strict=True)]
    return torch.linalg.vector_norm(torch.stack(pieces))


def forward_statistics(output: Tensor) -> dict[str, Tensor]:
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
    count, units = max(1, x.numel()), max(1, units)
    ones = torch.ones(samples, device=x.device, dtype=x.dtype)
    if x.device.type == "cpu":
        means = torch.mv(x.t(), ones) / max(1, samples)
        square, mean = norm(x) ** 2 / count, means.mean().double()
        signal = square - norm(means) ** 2 / units
        if signal > _PLAIN * square:
            return {"activation_mean": mean, "activation_std": (square - mean**2).sqrt(), "signal_std": signal.sqrt()}
    spread, moved = _from_first_sample(x, ones)
    moved = moved / max(1, samples)
    origin = x[0, 0]
    means = (x[0] - origin) + moved
    mean = means.mean()
    signal = (spread**2 / count - norm(moved) ** 2 / units).clamp(min=0)
    return {
        "activation_mean": origin + mean,
        "activation_std": (signal + norm(means - mean) ** 2 / units).sqrt(),
        "signal_std": signal.sqrt(),
    }


def _from_first_sample(x: Tensor, ones: Tensor) -> tuple[Tensor, Tensor]:
    """Of the differences between all samples and the first: the norm, and the sum over samples (one number a unit)."""
    rows = max(1, _PIECE // max(1, x.shape[1]))
    if x.device.type != "cpu" or rows >= len(x):
        difference = x - x[:1]
        return norm(difference), torch.mv(difference.t(), ones)
    # In pieces through one small buffer: a fresh one as large as the output costs more than the sums.
    buffer, moved, lengths = torch.empty_like(x[:rows]), torch.zeros_like(x[0]), []
    for piece in x.split(rows):
        difference = torch.sub(piece, x[:1], out=buffer[: len(piece)])
        lengths.append(norm(difference))
        moved.addmv_(difference.t(), ones[: len(piece)])
    return torch.linalg.vector_norm(torch.stack(lengths)), moved
