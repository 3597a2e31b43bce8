"""The reductions of tensors on a GPU: as few bytes as eager kernels allow, and nothing that waits.

Bytes are what counts there. ``linalg.vector_norm`` with a wider result first copies the whole tensor in that type (ten times the
memory traffic for bfloat16 summed in float64); ``_foreach_norm`` widens each number as it is read, so that it is taken for a single tensor too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = 2**25
"""An output's bytes looked at in one go: what is subtracted fits a large GPU's cache, and takes little of anybody's memory."""


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """L2 norms of tensors on one device, each a scalar in float64 (float32 where there is none)."""
    tensors = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in tensors]
    kind = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    if all(x.dtype == tensors[0].dtype for x in tensors):
        return torch._foreach_norm(tensors, 2, kind)
    return [torch._foreach_norm([x], 2, kind)[0] for x in tensors]  # together they would be copied first


def copy_norms(targets: list[Tensor], sources: list[Tensor]) -> Sequence[Tensor]:
    """Copy ``sources`` into ``targets``; their norms."""
    torch._foreach_copy_(targets, sources)
    return norms(targets)


def change_norms(before: list[Tensor], after: list[Tensor]) -> Sequence[Tensor]:
    """Norms of the differences, which overwrite ``before``."""
    torch._foreach_sub_(before, after)
    return norms(before)


def off_units(x: Tensor) -> Tensor:
    """For each unit of (samples, units), whether it is above zero for no sample."""
    return x.amax(0) <= 0 if len(x) else x.new_ones(x.shape[1], dtype=torch.bool)


def forward_statistics(x: Tensor, off: bool) -> dict[str, Any]:
    """Mean, deviation and signal of (samples, units), and the units that are off: a few units of all samples at a time."""
    samples, units = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    lengths, sums, below = [], [], []
    for part in x.split(max(1, PIECE_BYTES // (samples * x.element_size())), 1):
        difference = _less_first(part)
        lengths += norms([difference])
        sums.append(difference.sum(0, dtype=wide))
        if off:
            below.append(off_units(part))
    first = x[0].to(wide)
    moved = torch.cat(sums) / samples
    means = first - first[0] + moved
    mean = means.mean()
    moved_length, between = (length.square() / units for length in norms([moved, means - mean]))
    signal = (torch.stack(lengths).square().sum() / x.numel() - moved_length).clamp(min=0)
    found = {"activation_mean": first[0] + mean, "activation_std": (signal + between).sqrt(), "signal_std": signal.sqrt()}
    return {**found, "off": torch.cat(below)} if off else found


def _less_first(x: Tensor) -> Tensor:
    """Each sample less the first, in the type of ``x``: a difference is rounded by a share of itself, which averages out over many. Only
    float16 has too small a range for it."""
    return x.float() - x[:1].float() if x.dtype == torch.float16 else x - x[:1]
