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

from dit_compress_plugins.latent_video_vae.blocks import (
    Carried,
    EqualConv,
    FixedLinear,
    FromPatches,
    Stage,
    ToPatches,
    activate,
    first_and_rest,
    join,
    merge_time,
    only,
    split_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    LinearMaker = Callable[[int, int], nn.Module]
    Rows = tuple[Tensor | None, Tensor | None]

COLOURS = 3
GROUP_CELL = 8
FRAME_CELL = 2


def rows_of(video_BCFYX: Tensor, group: int, *, begins: bool = True) -> Rows:
    """Return first frame ``[B,3,Y,X]`` and groups ``[B·(T-1),G·3,Y,X]`` of a video; groups only where it goes on."""
    batch, colours, frames, height, width = video_BCFYX.shape
    if not begins:
        return None, merge_time(video_BCFYX).reshape(batch * (frames // group), group * colours, height, width)
    if frames == 1:
        return video_BCFYX[:, :, 0], None
    rest = merge_time(video_BCFYX[:, :, 1:])
    return video_BCFYX[:, :, 0], rest.reshape(batch * ((frames - 1) // group), group * colours, height, width)


def continuation_of(rest_NCYX: Tensor, group: int, num_groups: int) -> Tensor:
    """Undo :func:`rows_of` of a video that goes on: ``[B,C,F,Y,X]``."""
    rows, channels, height, width = rest_NCYX.shape
    frames = rest_NCYX.reshape(rows * group, channels // group, height, width)
    return split_time(frames, num_groups * group)


def video_of(first_NCYX: Tensor, rest_NCYX: Tensor | None) -> Tensor:
    """Undo :func:`rows_of` of a whole video: ``[B,3,F,Y,X]``."""
    if rest_NCYX is None:
        return first_NCYX[:, :, None]
    batch, colours, height, width = first_NCYX.shape
    frames = rest_NCYX.reshape(-1, colours, height, width)
    return split_time(join(first_NCYX, frames), 1 + len(frames) // batch)


class PairedConv(nn.Module):
    """One convolution for the first frame's row, another for the rows of groups."""

    def __init__(self, first: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = first, rest

    def forward(self, first_NCHW: Tensor | None, rest_NCHW: Tensor | None) -> Rows:
        """Map each row by its own convolution."""
        return (
            None if first_NCHW is None else self.first(first_NCHW),
            None if rest_NCHW is None else self.rest(rest_NCHW),
        )


def from_patches(linear: LinearMaker, group: int, channels: int, cell: int) -> PairedConv:
    """Map patches of ``cell × cell`` pixels (times one frame, or a group) to channels."""
    values = COLOURS * cell**2
    return PairedConv(FromPatches(linear(values, channels), cell), FromPatches(linear(values * group, channels), cell))


def to_patches(linear: LinearMaker, group: int, channels: int, cell: int) -> PairedConv:
    """Map channels to patches of ``cell × cell`` pixels (times one frame, or a group)."""
    values = COLOURS * cell**2
    return PairedConv(ToPatches(linear(channels, values), cell), ToPatches(linear(channels, values * group), cell))


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
        begins = _begin(carried)
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
        num_frames, begins = latent_BCTHW.shape[2], _begin(carried)
        latent_NCHW = merge_time(latent_BCTHW)
        linear_BCFYX = self._video(self.patch(*_parts(latent_NCHW, num_frames, begins=begins)), num_frames)
        x_NCHW = self.stem(latent_NCHW)
        for index, stage in enumerate(self.stages):
            x_NCHW = stage(x_NCHW, num_frames, carried)
            if features is not None:
                features.append(split_time(x_NCHW, num_frames))
            if index < len(self.ups):
                x_NCHW = self.ups[index](activate(x_NCHW))
        rows = self.context(*_parts(activate(x_NCHW), num_frames, begins=begins))
        context = merge_time(self._video(rows, num_frames))
        frames_NCYX = self.frames(context + self.refine(merge_time(linear_BCFYX)), linear_BCFYX.shape[2])
        if features is not None:
            features.append(split_time(frames_NCYX, linear_BCFYX.shape[2]))
        return linear_BCFYX + split_time(self.head(activate(frames_NCYX)), linear_BCFYX.shape[2])

    def _video(self, rows: Rows, num_frames: int) -> Tensor:
        """Join rows to a video, whole or going on."""
        first, rest = rows
        return continuation_of(only(None, rest), self.group, num_frames) if first is None else video_of(first, rest)


def _begin(carried: Carried | None) -> bool:
    """Tell whether the next chunk is the first one; from now on it is not."""
    if carried is None:
        return True
    begun, carried.begun = carried.begun, True
    return not begun


def _parts(x_NCHW: Tensor, num_frames: int, *, begins: bool) -> Rows:
    """Split like :func:`first_and_rest`; None for no first frame (a video that goes on) or no later ones (an image)."""
    if not begins:
        return None, x_NCHW
    return (x_NCHW, None) if num_frames == 1 else first_and_rest(x_NCHW, num_frames)


def cells_between(fine: int, coarse: int) -> list[int]:
    """Return powers of two from ``fine`` to ``coarse``, both included."""
    cells = [fine]
    while cells[-1] < coarse:
        cells.append(cells[-1] * 2)
    return cells


def width_at(widths: Sequence[int], cell: int) -> int:
    """Return the network's width at cells of 8, 16, 32 … pixels (first: single frames); the last serves all coarser."""
    return widths[min((cell // GROUP_CELL).bit_length(), len(widths) - 1)]
