"""The small decoder: 2D convolutions, pixel shuffle, one look back a resolution; ranks of at most 5, no norms.

The network works at the rate of *latent* frames: a row is one of them, and its last convolution writes all frames
that it stands for side by side. Only the last, thin network sees single frames. A temporal convolution is a 2D one over
a latent frame and its predecessor on the channel axis, so that a frame never depends on a later latent frame. A linear
map of the latent, fitted before training and fixed, carries what linear algebra can find without any steps.

Shapes: N = B·T rows, C channels, T H W latent frames, height, width, F frames, Y X pixels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from dit_compress.model.codec.carried import delayed
from dit_compress.model.codec.layers import COLOURS, activate
from dit_compress.model.codec.rows import merge_time

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAME_CELL = 4
"""Pixels a side of a cell of the network on single frames."""
SMALL = 0.1
"""Size of a residual branch at the start, of its usual one."""


class Block(nn.Module):
    """``x + conv1x1(activate(conv3x3(x, and the frame before where it looks back)))``."""

    def __init__(self, width: int, *, looks_back: bool, expansion: int) -> None:
        super().__init__()
        self.looks_back = looks_back
        self.mix = nn.Conv2d(width * (1 + looks_back), width * expansion, 3, padding=1)
        self.out = nn.Conv2d(width * expansion, width, 1)
        with torch.no_grad():
            self.out.weight.mul_(SMALL)

    def forward(self, x_NCHW: Tensor, num_frames: int) -> Tensor:
        """Map ``[B·T,C,H,W]`` to the same shape."""
        seen = torch.cat(delayed(x_NCHW, num_frames, 2, None, self), 1) if self.looks_back else x_NCHW
        return x_NCHW + self.out(activate(self.mix(seen)))


class Video(nn.Module):
    """Rows of latent frames → frames, by a 1 × 1 convolution and pixel shuffle; the first row by one of its own."""

    def __init__(self, width: int, lead: int, group: int, cell: int) -> None:
        super().__init__()
        self.lead, self.cell = lead, cell
        self.first = nn.Conv2d(width, lead * COLOURS * cell**2, 1)
        self.rest = nn.Conv2d(width, group * COLOURS * cell**2, 1)

    def forward(self, x_NCHW: Tensor, num_frames: int) -> Tensor:
        """Map ``[B·T,C,H,W]`` to frames ``[B,F,3,Y,X]``: lead, then a group for every later row."""
        x_BTCHW = x_NCHW.unflatten(0, (-1, num_frames))
        first_BCYX = functional.pixel_shuffle(self.first(x_BTCHW[:, 0]), self.cell)
        frames = first_BCYX.unflatten(1, (self.lead, COLOURS))
        if num_frames == 1:
            return frames
        rest_NCYX = functional.pixel_shuffle(self.rest(x_BTCHW[:, 1:].flatten(0, 1)), self.cell)
        later = rest_NCYX.unflatten(1, (-1, COLOURS)).flatten(0, 1)
        return torch.cat([frames, later.unflatten(0, (len(frames), -1))], 1)


class Sharpen(nn.Module):
    """A residual network on single frames, at cells of 4 pixels."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        values = COLOURS * FRAME_CELL**2
        self.stem = nn.Conv2d(values, width, 1)
        self.blocks = nn.ModuleList(Block(width, looks_back=False, expansion=1) for _ in range(blocks))
        self.head = silent(nn.Conv2d(width, values, 1))

    def forward(self, frames_NCYX: Tensor) -> Tensor:
        """Map frames ``[B·F,3,Y,X]`` to the same shape."""
        x_NCHW = self.stem(functional.pixel_unshuffle(frames_NCYX, FRAME_CELL))
        for block in self.blocks:
            x_NCHW = block(x_NCHW, 1)
        return frames_NCYX + functional.pixel_shuffle(self.head(activate(x_NCHW)), FRAME_CELL)


class SmallDecoder(nn.Module):
    """Normalised latent → video.

    Args:
        channels: C of the latent.
        ratio: pixels per latent cell along time, height, width; height and width alike.
        lead: frames that the first latent frame stands for.
        widths: of the network at cells of ratio[1] pixels, of half as many, of a quarter …
        blocks: a resolution; the first of each looks back at the latent frame before.
        frame_width: of the network on single frames; 0: none.
    """

    def __init__(
        self, channels: int, ratio: Sequence[int], lead: int, widths: Sequence[int], blocks: int, frame_width: int
    ) -> None:
        super().__init__()
        group, size, _ = ratio
        self.linear = Video(channels, lead, group, size).requires_grad_(requires_grad=False)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, looks_back=not index, expansion=2) for index in range(blocks))
            for width in widths
        )
        self.ups = nn.ModuleList(nn.Conv2d(coarse, fine * 4, 1) for coarse, fine in pairwise(widths))
        self.head = Video(widths[-1], lead, group, size >> (len(widths) - 1))
        silent(self.head.first), silent(self.head.rest)
        self.sharpen = Sharpen(frame_width, blocks) if frame_width else None
        self.reach = len(widths)
        """Latent frames before its own that a frame depends on."""

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Map ``[B,C,T,H,W]`` to ``[B,3,F,Y,X]``, F = lead + ratio[0]·(T-1)."""
        num_frames, latent_NCHW = latent_BCTHW.shape[2], merge_time(latent_BCTHW)
        x_NCHW = self.stem(latent_NCHW)
        for index, stage in enumerate(self.stages):
            if index:
                x_NCHW = functional.pixel_shuffle(self.ups[index - 1](activate(x_NCHW)), 2)
            for block in stage:  # type: ignore[attr-defined]  # a list of blocks in a list
                x_NCHW = block(x_NCHW, num_frames)
        frames_BFCYX = self.linear(latent_NCHW, num_frames) + self.head(activate(x_NCHW), num_frames)
        if self.sharpen is not None:
            frames_BFCYX = self.sharpen(frames_BFCYX.flatten(0, 1)).unflatten(0, (len(frames_BFCYX), -1))
        return frames_BFCYX.transpose(1, 2)


def silent(conv: nn.Conv2d) -> nn.Conv2d:
    """Let a convolution begin with zeros: what it is added to begins alone."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
