"""Between heads ``[B,N,S,K]`` and frames ``[B·T,N·K,H,W]``, which 2D convolutions take; no tensor exceeds rank 5."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_frames(x_BNSK: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return ``[B·T,N·K,H,W]``."""
    t, h, w = grid
    x_BDS = x_BNSK.transpose(1, 2).flatten(2).transpose(1, 2)
    return x_BDS.unflatten(2, (t, h * w)).transpose(1, 2).flatten(0, 1).unflatten(2, (h, w))


def to_heads(frames: Tensor, grid: tuple[int, int, int], width: int) -> Tensor:
    """Return ``[B,N,S,K]``; the grid is that of ``frames``."""
    x_BTDP = frames.flatten(2).unflatten(0, (-1, grid[0]))
    return x_BTDP.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (-1, width)).transpose(1, 2)
