"""The power of latents by spatial frequency, by the discrete cosine transform of every latent frame.

Shapes: B batch, C channels, T H W latent frames, height, width, K bands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    Sizes = Sequence[tuple[float, Tensor]]


def cosine_transform(values: Tensor) -> Tensor:
    """Transform the last two axes by the orthonormal DCT-II: power is kept, place (0, 0) is the mean."""
    height, width = values.shape[-2:]
    return _basis(height).to(values) @ values @ _basis(width).to(values).T


def frequency(height: int, width: int) -> Tensor:
    """Return the radius of each frequency ``[H,W]``: 0 for the mean, 1 for the finest of both axes."""
    v, u = (torch.linspace(0, 1, size, dtype=torch.float64) for size in (height, width))
    return ((v[:, None].square() + u.square()) / 2).sqrt()


def power(latent_BCTHW: Tensor) -> Tensor:
    """Return the mean power of each frequency ``[H,W]`` over samples, channels and latent frames."""
    return cosine_transform(latent_BCTHW.double()).square().mean((0, 1, 2))


def by_band(sizes: Sizes, bands: int) -> list[float]:
    """Return the mean power per frequency within each of ``bands`` rings of equal width; 0 for one without any.

    sizes: of the latents of each size, their share of the clips, and the power of each frequency ``[H,W]``.
    """
    total, count = torch.zeros(bands, dtype=torch.float64), torch.zeros(bands, dtype=torch.float64)
    for share, power_HW in sizes:
        ring = (frequency(*power_HW.shape) * bands).long().clamp(max=bands - 1).flatten()
        total += share * torch.bincount(ring, power_HW.flatten().double(), bands)
        count += share * torch.bincount(ring, None, bands)
    return torch.where(count > 0, total / count, 0.0).tolist()


def upper_share(sizes: Sizes) -> float:
    """Return the share of the power that lies above half of the largest radius; ``sizes`` as in :func:`by_band`."""
    upper = sum(share * float(power_HW[frequency(*power_HW.shape) > 0.5].sum()) for share, power_HW in sizes)
    total = sum(share * float(power_HW.sum()) for share, power_HW in sizes)
    return upper / total if total else 0.0


def _basis(size: int) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * place[:, None] * (place + 0.5)) * math.sqrt(2 / size)
    rows[0] = math.sqrt(1 / size)
    return rows
