"""From a tensor to its moments, and back: measuring a batch or a constant, and drawing Gaussian tensors with
given moments.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from initscope.moments import axes as ax
from initscope.moments.axes import CHANNEL, POSITION, RINGS, SAMPLE, Axes
from initscope.moments.field import Field

_LARGEST = 2**24
"""Numbers looked at; of a larger tensor every n-th channel."""


def canonical(x: Tensor, axes: Axes) -> tuple[Tensor, tuple[int, ...]]:
    """x as (samples, channels, *position atoms), float64, and the spacing of each position atom."""
    parts = [(atom, dim) for dim, part in enumerate(axes) for atom in part]
    x = x.detach().reshape([atom.size for atom, _ in parts] or [1]).double()
    order = [
        i for role in (SAMPLE, CHANNEL, POSITION) for i, (atom, _) in enumerate(parts) if atom.role == role
    ]
    if parts:
        x = x.permute(order)
    place = [atom for atom, _ in parts if atom.role == POSITION]
    samples, channels = ax.count(axes, SAMPLE), ax.count(axes, CHANNEL)
    return x.reshape(samples, channels, *(atom.size for atom in place)), tuple(atom.spacing for atom in place)


def measure(x: Tensor, axes: Axes) -> Field:
    """The moments of one tensor, exact sums over all its pairs (autocovariances by FFT)."""
    values, spacing = canonical(x, axes)
    if values.numel() > _LARGEST:
        values = values[:, :: -(-values.numel() // _LARGEST)]
    samples, channels, *sizes = values.shape
    square, mean = float(values.square().mean()), float(values.mean())
    total = values.sum(1)
    cross = float((total.square().mean() / channels - square) / (channels - 1)) if channels > 1 else square
    far = None
    if channels > 1 and sizes:
        n = total[0].numel()
        over = float(
            (total.flatten(1).sum(1) / (n * channels)).square().mean()
        )  # of the mean over positions and channels
        same = float((values.flatten(2).sum(2) / n).square().mean())
        pairs = (over * channels - same) / (channels - 1)  # two channels, any two positions
        far = (pairs * n - cross) / (n - 1) if n > 1 else cross
    if not sizes:
        within, everyone = np.full(RINGS, square), np.full(RINGS, float(values.sum(0).square().mean()))
    else:
        dims = tuple(range(2, 2 + len(sizes)))
        padded = [2 * n for n in sizes]
        spectrum = torch.fft.rfftn(values, s=padded, dim=dims)
        within = _rings(spectrum.abs().square().mean((0, 1)), padded, sizes, spacing)
        everyone = _rings(spectrum.sum(0).abs().square().mean(0), padded, sizes, spacing)
        within[0] = square
    if samples == 1:
        return Field(axes, within, np.zeros(RINGS), mean, cross, far)
    between = (everyone / samples - within) / (samples - 1)
    apart = within - between
    apart[0] = float((values - values.mean(0)).square().mean()) * samples / (samples - 1)
    if not sizes:
        apart[:] = apart[0]
    return Field(axes, within, apart, mean, cross, far)


def _rings(power: Tensor, padded: list[int], sizes: list[int], spacing: tuple[int, ...]) -> np.ndarray:
    """Means over rings of distances of the autocovariance whose power spectrum is given."""
    lags = torch.fft.irfftn(power, s=padded).numpy()
    steps = [np.abs(np.fft.fftfreq(n, 1 / n)) for n in padded]
    pairs = np.ones(())
    distance = np.zeros(())
    for step, n, gap in zip(steps, sizes, spacing, strict=True):
        pairs = np.multiply.outer(pairs, np.maximum(n - step, 0))
        distance = np.maximum.outer(distance, step * gap)
    ring = np.where(
        distance == 0, 0, np.minimum(np.floor(np.log2(np.maximum(distance, 1))) + 1, RINGS - 1)
    ).astype(int)
    sums = np.bincount(ring.ravel(), (lags * (pairs > 0)).ravel(), RINGS)
    counts = np.bincount(ring.ravel(), pairs.ravel(), RINGS)
    found = counts > 0
    result = np.where(found, sums / np.where(found, counts, 1), 0.0)
    last = int(np.flatnonzero(found)[-1])
    result[last + 1 :] = result[last]
    return result


def draw(field: Field, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """A Gaussian tensor with the field's mean, mean square and covariances (as far as they do not rise with
    the distance).

    Covariances over rings are made by adding noise that is constant on blocks of 2**(k + 1) positions, at
    random offsets: an approximation, good to a third of the covariance.
    """
    shape = [atom.size for atom in ax.atoms(field.axes)]
    mean2 = field.mean**2
    between, apart = field.between - mean2, field.apart
    x = _blocks(between, field.axes, generator, shared=True) + _blocks(
        apart, field.axes, generator, shared=False
    )
    scale = max(field.variance, 0.0) / max(float(x.square().mean()), 1e-300) if field.variance > 0 else 0.0
    x = x * scale**0.5 if scale else torch.zeros_like(x)
    return (x + field.mean).reshape(shape or [1]).reshape(ax.shape(field.axes)).to(dtype)


def _blocks(rings: np.ndarray, axes: Axes, generator: torch.Generator, *, shared: bool) -> Tensor:
    levels = np.maximum(np.minimum.accumulate(rings), 0.0)
    parts = ax.atoms(axes)
    full = [atom.size for atom in parts]
    x = torch.zeros(full or [1], dtype=torch.float64)
    if levels[0] <= 0:
        return x
    place = ax.positions(axes)
    reach = max((atom.size * atom.spacing for atom in place), default=1)
    top = min(int(np.ceil(np.log2(reach))) + 1, RINGS - 1) if place else 0
    for ring in range(top + 1):
        share = levels[ring] - (levels[ring + 1] if ring < top else 0.0)
        if share <= 0:
            continue
        whole, block = ring == top, 2 ** (ring + 1)
        sizes = [
            1
            if (shared and atom.role == SAMPLE) or (atom.role == POSITION and whole and top > 0)
            else atom.size
            if atom.role != POSITION or ring == 0
            else -(-atom.size * atom.spacing // block) + 1
            for atom in parts
        ]
        noise = torch.randn(sizes or [1], generator=generator, dtype=torch.float64)
        for dim, atom in enumerate(parts):
            if atom.role == POSITION and ring > 0 and not whole:
                offset = int(torch.randint(block, (1,), generator=generator))
                noise = noise.index_select(dim, (torch.arange(atom.size) * atom.spacing + offset) // block)
        x = x + share**0.5 * noise
    return x
