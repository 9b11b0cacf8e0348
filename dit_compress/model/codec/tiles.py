"""Encode or decode a large frame in tiles that overlap.

With an overlap of twice what the network sees to each side (``margin``) every value is taken where its tile holds
all that it depends on: the tiles join exactly. With less they blend over the overlap.

Shapes: any tensors ``[..., Y, X]``; a cell of the grid is ``cell_in`` values of the input, ``cell_out`` of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Place = tuple[int, int]
"""Top and left of a tile, in cells."""


@dataclass(frozen=True)
class Tiling:
    """tile: cells per side. overlap: cells shared by neighbours, at most half of ``tile``. reach: cells seen around."""

    tile: int
    overlap: int
    reach: int

    def __post_init__(self) -> None:
        if self.overlap * 2 > self.tile:
            raise UserError(
                f"tiles of {self.tile} cells can't overlap by {self.overlap}",
                mend="Give an overlap of at most half of the tile",
            )

    @property
    def margin(self) -> float:
        """Cells next to a cut that weigh nothing."""
        return self.reach if self.overlap >= 2 * self.reach else self.overlap / 4

    def fits(self, height: int, width: int) -> bool:
        """Tell whether one tile holds the whole frame."""
        return max(height, width) <= self.tile


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along one side; the last one is moved back to end with the side."""
    if length <= tile:
        return [0]
    stride = tile - overlap
    return [*range(0, length - tile, stride), length - tile]


def ramp(start: int, length: int, tiling: Tiling, cell: int) -> Tensor:
    """Weigh a tile along one side, per value of the result.

    It is 0 in the margin next to a cut, where the tile sees padding instead of its neighbour, and rises
    over what the margins leave of the overlap. Sides that are edges of the frame keep 1.
    """
    size = min(tiling.tile, length)
    position = torch.arange(size * cell, dtype=torch.float32) + 0.5
    lead, rise = tiling.margin * cell, max((tiling.overlap - 2 * tiling.margin) * cell, 1e-3)
    weight = torch.ones(size * cell)
    if start > 0:
        weight = weight * ((position - lead) / rise).clamp(0, 1)
    if start + size < length:
        weight = weight * ((position.flip(0) - lead) / rise).clamp(0, 1)
    return weight


def in_tiles(
    process: Callable[[Tensor, Place], Tensor], whole: Tensor, tiling: Tiling, cell_in: int, cell_out: int
) -> Tensor:
    """Run ``process`` over overlapping tiles, joined by weighted means.

    Args:
        process: a tile ``[..., h·cell_in, w·cell_in]`` and its place → ``[..., h·cell_out, w·cell_out]``.
        whole: all of the input ``[..., H·cell_in, W·cell_in]``.
        tiling: sizes in cells.
        cell_in: values per cell and side of the input; 1 for a latent.
        cell_out: likewise of the result.
    """
    height, width = (side // cell_in for side in whole.shape[-2:])
    if tiling.fits(height, width):
        return process(whole, (0, 0))
    total = weights = None
    for top in starts(height, tiling.tile, tiling.overlap):
        for left in starts(width, tiling.tile, tiling.overlap):
            bottom, right = top + tiling.tile, left + tiling.tile
            piece = process(whole[..., top * cell_in : bottom * cell_in, left * cell_in : right * cell_in], (top, left))
            weight_Y1 = ramp(top, height, tiling, cell_out)[:, None].to(piece)
            weight_YX = weight_Y1 * ramp(left, width, tiling, cell_out).to(piece)
            if total is None or weights is None:
                total = piece.new_zeros(*piece.shape[:-2], height * cell_out, width * cell_out)
                weights = piece.new_zeros(height * cell_out, width * cell_out)
            rows = slice(top * cell_out, top * cell_out + piece.shape[-2])
            columns = slice(left * cell_out, left * cell_out + piece.shape[-1])
            total[..., rows, columns] += piece * weight_YX
            weights[rows, columns] += weight_YX
    assert total is not None
    assert weights is not None
    return total / weights
