"""Encoder and decoder: a linear code of patches (PCA at the start) plus a residual network.

The first frame is a patch ``[1, r, r]`` and every later group of ``ratio[0]`` frames a patch
``[ratio[0], r, r]``; each has its own linear maps. The residual networks work on latent frames at
cells of r … 8 pixels, the decoder's also on single frames, and start at zero: the VAE starts as PCA.

Shapes: N = B·T rows, C channels of the latent, G frames of a group, T H W latent frames, height,
width, Y X pixels, F frames. A row of pixels holds ``G·3`` channels, colour fastest.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from dit_compress.model.codec.carried import begin
from dit_compress.model.codec.layers import (
    COLOURS,
    EqualConv,
    FromPatches,
    PairedConv,
    ToPatches,
    activate,
    from_patches,
    to_patches,
)
from dit_compress.model.codec.rows import (
    cells_between,
    continuation_of,
    join,
    merge_time,
    only,
    parts,
    rows_of,
    split_time,
    video_of,
)
from dit_compress_plugins.latent_video_vae.blocks import FixedLinear, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.codec.carried import Carried
    from dit_compress.model.codec.rows import Rows

GROUP_CELL = 8
FRAME_CELL = 2


class Encoder(nn.Module):
    """Video → raw latent rows: linear patch code + causal residual network."""

    def __init__(self, ratio: Sequence[int], channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.group, size, _ = ratio
        self.patch = from_patches(FixedLinear, self.group, channels, size)
        cells = cells_between(GROUP_CELL, size)
        stage_widths = [width_at(widths, cell) for cell in cells]
        self.stem = from_patches(EqualConv, self.group, stage_widths[0], cells[0])
        self.stages = nn.ModuleList(Stage(width, 1, taps=2) for width in stage_widths)
        self.downs = nn.ModuleList(
            FromPatches(EqualConv(fine * 4, coarse), 2) for fine, coarse in pairwise(stage_widths)
        )
        self.head = EqualConv(stage_widths[-1], channels, size=0.0)
        self.reach = sum(cells)
        """Pixels to each side that a latent cell sees besides its own."""

    def forward(self, video_BCFYX: Tensor, carried: Carried | None = None) -> Tensor:
        """Map ``[B,3,F,Y,X]`` to raw latent ``[B,C,T,H,W]``; with ``carried``, the next chunk of a longer video."""
        begins = begin(carried)
        rows = rows_of(video_BCFYX, self.group, begins=begins)
        frames = video_BCFYX.shape[2]
        num_frames = 1 + (frames - 1) // self.group if begins else frames // self.group
        x_NCHW = join(*self.stem(*rows))
        for index, stage in enumerate(self.stages):
            x_NCHW = stage(x_NCHW, num_frames, carried)
            if index < len(self.downs):
                x_NCHW = self.downs[index](activate(x_NCHW))
        latent_NCHW = join(*self.patch(*rows)) + self.head(activate(x_NCHW))
        return split_time(latent_NCHW, num_frames)


class Decoder(nn.Module):
    """Raw latent → video: linear patch synthesis + causal residual network; ranks ≤ 5, no norms.

    The network works on latent frames up to cells of 8 pixels, then on single frames at cells of 2,
    where it sees the linear synthesis: what sharpens one edge of one frame serves all of them.
    """

    def __init__(self, ratio: Sequence[int], channels: int, widths: Sequence[int], num_blocks: int) -> None:
        super().__init__()
        self.group, size, _ = ratio
        self.patch = to_patches(FixedLinear, self.group, channels, size)
        cells = cells_between(GROUP_CELL, size)[::-1]
        stage_widths = [width_at(widths, cell) for cell in cells]
        self.stem = EqualConv(channels, stage_widths[0])
        self.stages = nn.ModuleList(Stage(width, num_blocks, taps=2) for width in stage_widths)
        self.ups = nn.ModuleList(ToPatches(EqualConv(coarse, fine * 4), 2) for coarse, fine in pairwise(stage_widths))
        width, scale = widths[0], GROUP_CELL // FRAME_CELL
        self.context = PairedConv(
            ToPatches(EqualConv(stage_widths[-1], width * scale**2), scale),
            ToPatches(EqualConv(stage_widths[-1], self.group * width * scale**2), scale),
        )
        self.refine = FromPatches(EqualConv(COLOURS * FRAME_CELL**2, width), FRAME_CELL)
        self.frames = Stage(width, num_blocks, taps=1, expansion=1)
        self.head = ToPatches(EqualConv(width, COLOURS * FRAME_CELL**2, size=0.0), FRAME_CELL)
        self.reach = num_blocks * (sum(cells) + FRAME_CELL)
        """Pixels to each side that a pixel depends on, besides those of its cell."""

    def forward(
        self, latent_BCTHW: Tensor, carried: Carried | None = None, features: list[Tensor] | None = None
    ) -> Tensor:
        """Map ``[B,C,T,H,W]`` raw to ``[B,3,F,Y,X]``.

        Args:
            latent_BCTHW: a whole latent, or with ``carried`` the next chunk of a longer one.
            carried: what the chunks before have left; this one leaves its own.
            features: gets the stream ``[B,D,T,H,W]`` after every stage, and after the stage on single frames.
        """
        num_frames, begins = latent_BCTHW.shape[2], begin(carried)
        latent_NCHW = merge_time(latent_BCTHW)
        linear_BCFYX = self._video(self.patch(*parts(latent_NCHW, num_frames, begins=begins)), num_frames)
        x_NCHW = self.stem(latent_NCHW)
        for index, stage in enumerate(self.stages):
            x_NCHW = stage(x_NCHW, num_frames, carried)
            if features is not None:
                features.append(split_time(x_NCHW, num_frames))
            if index < len(self.ups):
                x_NCHW = self.ups[index](activate(x_NCHW))
        rows = self.context(*parts(activate(x_NCHW), num_frames, begins=begins))
        context = merge_time(self._video(rows, num_frames))
        frames_NCYX = self.frames(context + self.refine(merge_time(linear_BCFYX)), linear_BCFYX.shape[2])
        if features is not None:
            features.append(split_time(frames_NCYX, linear_BCFYX.shape[2]))
        return linear_BCFYX + split_time(self.head(activate(frames_NCYX)), linear_BCFYX.shape[2])

    def _video(self, rows: Rows, num_frames: int) -> Tensor:
        """Join rows to a video, whole or going on."""
        first, rest = rows
        return continuation_of(only(None, rest), self.group, num_frames) if first is None else video_of(first, rest)


def width_at(widths: Sequence[int], cell: int) -> int:
    """Return the network's width at cells of 8, 16, 32 … pixels (first: single frames); the last serves all coarser."""
    return widths[min((cell // GROUP_CELL).bit_length(), len(widths) - 1)]
