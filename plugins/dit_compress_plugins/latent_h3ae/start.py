"""The start of the linear maps: encoder and decoder begin as a low-pass filter and its transpose.

The maps that change resolution, taken together, begin as averages of the lowest cosines of patches and as their
repetition: the residual branches are small then, and the codec trains from there. It is no baseline like PCA, and costs
nothing at run time: DC-AE's shortcuts (Chen et al. 2025: space to channels and averages) are separate
branches, here they are where the one linear map begins. Training starts from noise without it, and loses some hundred
steps to the mean colour.

Shapes: D values of a patch, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit_compress.model.codec.layers import COLOURS, EqualConv, orthogonal

NOISE = 0.05
"""Size of the random part of such a map, whose weights are about 1."""


def starting(matrix_OI: Tensor) -> EqualConv:
    """Make a 1 × 1 convolution that begins as a matrix (outputs × inputs), with a little noise."""
    channels_out, channels_in = matrix_OI.shape
    layer = EqualConv(channels_in, channels_out, size=NOISE)
    with torch.no_grad():
        layer.weight += (matrix_OI / layer.gain)[:, :, None, None].to(layer.weight)
    return layer


def averaging(channels_in: int, channels_out: int, group: int = 1) -> EqualConv:
    """Make a map that begins as averages of neighbours: after a pixel unshuffle by 2, of ``group`` frames' rows.

    Neighbours are values of one channel along frames and places; where they are fewer than an average takes, those of
    the next channel follow.
    """
    shares = _shares(channels_in, channels_out, group)
    return starting(shares / shares.sum(1, keepdim=True).clamp_min(1))


def repeating(channels_in: int, channels_out: int, group: int = 1) -> EqualConv:
    """Make a map that begins as :func:`averaging`'s transpose: each is repeated, before a pixel shuffle."""
    return starting(_shares(channels_out, channels_in, group).T)


def cosines(cell: int, count: int) -> Tensor:
    """Return the lowest cosines of patches ``[count, 3·cell²]``, orthonormal, in the order of a pixel unshuffle.

    Each frequency comes in three colours. Zero rows where there are more than values in a patch.
    """
    place = torch.arange(cell, dtype=torch.float32)
    line = torch.cos(math.pi / cell * place[:, None] * (place + 0.5)) * math.sqrt(2 / cell)
    line[0] = math.sqrt(1 / cell)
    order = sorted(((v, u) for v in range(cell) for u in range(cell)), key=lambda at: (at[0] + at[1], at))
    planes = torch.stack([torch.outer(line[v], line[u]).flatten() for v, u in order])
    rows = torch.einsum("fp,cd->fcdp", planes, torch.eye(COLOURS)).reshape(-1, COLOURS * cell**2)
    return torch.cat([rows, rows.new_zeros(max(0, count - len(rows)), rows.shape[1])])[:count]


def choosing(width: int, channels: int) -> Tensor:
    """Return ``[channels, width]``: the first values of a stream, turned so that every channel has a part of each."""
    kept = min(width, channels)
    return orthogonal(channels).to(torch.get_default_device())[:, :kept] @ torch.eye(width)[:kept]


def _shares(many: int, few: int, group: int) -> Tensor:
    """Return ``[few, many]``, 1 where a value counts towards an average."""
    by_channel = torch.arange(many).reshape(group, -1, 4).transpose(0, 1).flatten()
    shares = torch.zeros(few, many)
    shares[torch.arange(many) * few // many, by_channel] = 1.0
    return shares
