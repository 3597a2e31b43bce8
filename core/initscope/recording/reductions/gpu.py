"""The reductions of tensors on a GPU: as few bytes as eager kernels allow, and nothing that waits.

Bytes are what counts there. ``linalg.vector_norm`` with a wider result first copies the whole tensor in that
type (ten times the memory traffic for bfloat16 summed in float64); ``_foreach_norm`` widens each number as it
is read, so that it is taken for a single tensor too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from initscope.torch_internals import copy_all, norm_all, subtract_all

PIECE_BYTES = 2**25
"""An output's bytes looked at in one go: what is subtracted fits a large GPU's cache, and takes little of
anybody's memory.
"""


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """L2 norms of tensors on one device, each a scalar in float64 (float32 where there is none)."""
    tensors = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in tensors]
    kind = _widest(tensors[0])
    if all(x.dtype == tensors[0].dtype for x in tensors):
        return norm_all(tensors, kind)
    return [norm_all([x], kind)[0] for x in tensors]  # together they would be copied first


def copy_norms(targets: list[Tensor], sources: list[Tensor]) -> Sequence[Tensor]:
    """Copy ``sources`` into ``targets``; their norms."""
    copy_all(targets, sources)
    return norms(targets)


def change_norms(before: list[Tensor], after: list[Tensor]) -> Sequence[Tensor]:
    """Norms of the differences, which overwrite ``before``."""
    subtract_all(before, after)
    return norms(before)


def dead_units(x: Tensor) -> Tensor:
    """For each unit of (samples, units), whether it is above zero for no sample."""
    return x.amax(0) <= 0 if len(x) else x.new_ones(x.shape[1], dtype=torch.bool)


def forward_statistics(x: Tensor, off: bool) -> dict[Any, Any]:
    """What ``finalize`` makes the columns of, for (samples, units), a few units of all samples at a time; and
    the units that are off.
    """
    samples, summed = len(x), torch.promote_types(x.dtype, torch.float32)
    found: dict[Any, Any] = {"samples": samples, "units": []}
    below = []
    for k, part in enumerate(x.split(max(1, PIECE_BYTES // (samples * x.element_size())), 1)):
        difference = _less_first(part)
        total = difference.sum(0, dtype=summed)
        between, mean = torch.var_mean(
            torch.add(part[0].to(_widest(x)), total, alpha=1 / samples), correction=0
        )
        found |= {
            ("length", k): norms([difference])[0],
            ("moved", k): norms([total])[0],
            ("between", k): between,
            ("mean", k): mean,
        }
        found["units"].append(part.shape[1])
        if off:
            below.append(dead_units(part))
    return {**found, "off": below[0] if len(below) == 1 else torch.cat(below)} if off else found


def finalize(found: dict[Any, Any]) -> dict[str, float]:
    """The columns, from plain numbers: over the samples of each unit the differences from the first and their
    sum, over the units of each piece mean and variance of their means.
    """
    pieces, units = range(len(found["units"])), sum(found["units"])
    shares = [count / units for count in found["units"]]
    squares, moved = (sum(found[name, k] * found[name, k] for k in pieces) for name in ("length", "moved"))
    signal = max((squares - moved / found["samples"]) / (found["samples"] * units), 0.0)  # NaN stays
    mean = sum(share * found["mean", k] for k, share in zip(pieces, shares, strict=True))
    between = sum(
        share * (found["between", k] + (found["mean", k] - mean) * (found["mean", k] - mean))
        for k, share in zip(pieces, shares, strict=True)
    )
    return {
        "activation_mean": mean,
        "activation_std": math.sqrt(signal + between),
        "signal_std": math.sqrt(signal),
    }


def _less_first(x: Tensor) -> Tensor:
    """Each sample less the first, in the type of ``x``: a difference is rounded by a share of itself, which
    averages out over many. Only float16 has too small a range for it.
    """
    return x.float() - x[:1].float() if x.dtype == torch.float16 else x - x[:1]


def _widest(x: Tensor) -> torch.dtype:
    """The widest type that the device of ``x`` has."""
    return torch.float32 if x.device.type == "mps" else torch.float64
