"""Decode a large latent in tiles that overlap and blend.

Shapes: latent ``[B,C,T,H,W]``, video ``[B,3,F,Y,X]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side; the last one is moved back to end with the side."""
    if length <= tile:
        return [0]
    stride = tile - overlap
    return [*range(0, length - tile, stride), length - tile]


def ramp(start: int, length: int, tile: int, overlap: int, cell: int) -> Tensor:
    """Weight of a tile along one side, per pixel.

    It rises over the inner half of the overlap, so that the cells next to a cut, where the tile
    sees padding instead of its neighbour, weigh nothing. Sides that are edges of the frame keep 1.
    """
    size = min(tile, length)
    position = torch.arange(size * cell, dtype=torch.float32) + 0.5
    quarter = max(overlap * cell / 4, 0.5)
    weight = torch.ones(size * cell)
    if start > 0:
        weight = weight * ((position - quarter) / (2 * quarter)).clamp(0, 1)
    if start + size < length:
        weight = weight * ((position.flip(0) - quarter) / (2 * quarter)).clamp(0, 1)
    return weight


def blend_tiles(decode: Callable[[Tensor], Tensor], latent_BCTHW: Tensor, cell: int, tile: int, overlap: int) -> Tensor:
    """``decode`` over overlapping tiles of ``tile × tile`` cells, joined by weighted means.

    Args:
        decode: latent ``[B,C,T,h,w]`` → video ``[B,3,F,h·cell,w·cell]``.
        latent_BCTHW: the whole latent.
        cell: pixels per latent cell in space.
        tile: cells per side of a tile.
        overlap: cells shared by neighbours, at most half of ``tile``.
    """
    height, width = latent_BCTHW.shape[-2:]
    total = weights = None
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            piece = decode(latent_BCTHW[..., top : top + tile, left : left + tile])
            weight_Y1 = ramp(top, height, tile, overlap, cell)[:, None].to(piece)
            weight_YX = weight_Y1 * ramp(left, width, tile, overlap, cell).to(piece)
            if total is None or weights is None:
                total = piece.new_zeros(*piece.shape[:3], height * cell, width * cell)
                weights = piece.new_zeros(height * cell, width * cell)
            rows = slice(top * cell, top * cell + piece.shape[-2])
            columns = slice(left * cell, left * cell + piece.shape[-1])
            total[..., rows, columns] += piece * weight_YX
            weights[rows, columns] += weight_YX
    if total is None or weights is None:
        return decode(latent_BCTHW)
    return total / weights
