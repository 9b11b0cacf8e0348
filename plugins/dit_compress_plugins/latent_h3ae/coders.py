"""Encoder and decoder: 2D on single frames at cells of 4 and 8 pixels, causal in 3D from 16 on, attention at the end.

Shapes: N = B·T rows, C channels of the latent, D width, G frames of a group, T H W latent frames, height, width, Y X
pixels, F frames.
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
from dit_compress_plugins.latent_h3ae.blocks import Stage
from dit_compress_plugins.latent_h3ae.start import averaging, choosing, cosines, repeating, starting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.codec.carried import Carried
    from dit_compress.model.codec.rows import Rows

FINE_CELL, GROUP_CELL = 4, 16
"""Pixels of a cell on single frames at their finest, and from which on a row is a latent frame."""


class Shape:
    """What both coders are made of: cells, widths, and from which stage on rows are latent frames."""

    def __init__(self, ratio: Sequence[int], widths: Sequence[int]) -> None:
        self.group, size, _ = ratio
        self.cells = cells_between(FINE_CELL, size)
        self.widths = [widths[min(place, len(widths) - 1)] for place in range(len(self.cells))]
        self.grouped = self.cells.index(min(GROUP_CELL, size))

    def stages(self, num_blocks: int, attention: tuple[int, int, int | None]) -> list[Stage]:
        """Make the stages, fine to coarse."""
        last = len(self.cells) - 1
        return [
            Stage(width, num_blocks, 2 if place >= self.grouped else 1, attention if place == last else None)
            for place, width in enumerate(self.widths)
        ]

    def reach(self, stages: Sequence[Stage]) -> int:
        """Return the pixels to each side that the stages see."""
        return sum(stage.reach * cell for stage, cell in zip(stages, self.cells, strict=True))


class Encoder(nn.Module):
    """Video → raw latent."""

    def __init__(
        self,
        ratio: Sequence[int],
        channels: int,
        widths: Sequence[int],
        num_blocks: int,
        attention: tuple[int, int, int | None],
    ) -> None:
        super().__init__()
        shape = Shape(ratio, widths)
        self.group, self.grouped = shape.group, shape.grouped
        self.stem = FromPatches(starting(cosines(FINE_CELL, shape.widths[0])), FINE_CELL)
        self.stages = nn.ModuleList(shape.stages(num_blocks, attention))
        self.reach = shape.reach(shape.stages(num_blocks, attention))
        """Pixels to each side that a latent cell sees besides its own."""
        self.downs = nn.ModuleList(
            PairedConv(
                FromPatches(averaging(4 * fine, coarse), 2),
                FromPatches(averaging(4 * fine * self.group, coarse, self.group), 2),
            )
            if place + 1 == self.grouped
            else FromPatches(averaging(4 * fine, coarse), 2)
            for place, (fine, coarse) in enumerate(pairwise(shape.widths))
        )
        self.head = starting(choosing(shape.widths[-1], channels))

    def forward(self, video_BCFYX: Tensor, carried: Carried | None = None) -> Tensor:
        """Map ``[B,3,F,Y,X]`` to raw latent ``[B,C,T,H,W]``; with ``carried``, the next chunk of a longer video."""
        begins, frames = begin(carried), video_BCFYX.shape[2]
        num_latent = 1 + (frames - 1) // self.group if begins else frames // self.group
        x_NCHW, rows = self.stem(merge_time(video_BCFYX)), frames
        for place, stage in enumerate(self.stages):
            if place == self.grouped:
                split = rows_of(split_time(x_NCHW, frames), self.group, begins=begins)
                x_NCHW, rows = join(*self.downs[place - 1](*split)), num_latent
            elif place:
                x_NCHW = self.downs[place - 1](x_NCHW)
            x_NCHW = stage(x_NCHW, rows, carried)
        return split_time(self.head(x_NCHW), num_latent)


class Guide(nn.Module):
    """The first frame as something to add to the decoder's stream at every resolution; at the start it adds nothing.

    Only patches and 1 × 1 convolutions: a cell sees its own pixels.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = FromPatches(EqualConv(COLOURS * FINE_CELL**2, widths[0]), FINE_CELL)
        self.downs = nn.ModuleList(FromPatches(averaging(4 * fine, coarse), 2) for fine, coarse in pairwise(widths))
        self.gates = nn.ModuleList(EqualConv(width, width, size=0.0) for width in widths)

    def forward(self, first_BCYX: Tensor, known_B: Tensor | None) -> list[Tensor]:
        """Return ``[B,D,H,W]`` per resolution, fine to coarse; zero where ``known_B`` is 0."""
        x_BDHW, found = self.stem(first_BCYX), []
        for place, gate in enumerate(self.gates):
            if place:
                x_BDHW = self.downs[place - 1](activate(x_BDHW))
            added = gate(activate(x_BDHW))
            found.append(added if known_B is None else added * known_B.to(added).reshape(-1, 1, 1, 1))
        return found


class Decoder(nn.Module):
    """Raw latent → video, with or without the first frame; ranks ≤ 5."""

    def __init__(
        self,
        ratio: Sequence[int],
        channels: int,
        widths: Sequence[int],
        num_blocks: int,
        attention: tuple[int, int, int | None],
    ) -> None:
        super().__init__()
        shape = Shape(ratio, widths)
        self.group, self.grouped = shape.group, shape.grouped
        self.stem = starting(choosing(shape.widths[-1], channels).T)
        self.stages = nn.ModuleList(shape.stages(num_blocks, attention))
        self.reach = shape.reach(shape.stages(num_blocks, attention))
        """Pixels to each side that a pixel depends on, besides those of its cell."""
        self.ups = nn.ModuleList(
            PairedConv(
                ToPatches(repeating(coarse, 4 * fine), 2),
                ToPatches(repeating(coarse, 4 * fine * self.group, self.group), 2),
            )
            if place + 1 == self.grouped
            else ToPatches(repeating(coarse, 4 * fine), 2)
            for place, (fine, coarse) in enumerate(pairwise(shape.widths))
        )
        self.guide = Guide(shape.widths)
        self.head = ToPatches(starting(cosines(FINE_CELL, shape.widths[0]).T), FINE_CELL)

    def forward(
        self,
        latent_BCTHW: Tensor,
        carried: Carried | None = None,
        features: list[Tensor] | None = None,
        first: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Map ``[B,C,T,H,W]`` raw to ``[B,3,F,Y,X]``.

        Args:
            latent_BCTHW: a whole latent, or with ``carried`` the next chunk of a longer one.
            carried: what the chunks before have left; this one leaves its own.
            features: gets the stream ``[B,D,T,H,W]`` after every stage.
            first: the video's first frame ``[B,3,Y,X]``.
            known: ``[B]``, 0 for samples whose first frame is not to be seen.
        """
        begins, num_latent = begin(carried), latent_BCTHW.shape[2]
        frames = 1 + self.group * (num_latent - 1) if begins else self.group * num_latent
        added = None if first is None else self.guide(first, known)
        x_NCHW, rows = self.stem(merge_time(latent_BCTHW)), num_latent
        for place in reversed(range(len(self.stages))):
            if added is not None:
                x_NCHW = x_NCHW + added[place].repeat_interleave(rows, 0)
            x_NCHW = self.stages[place](x_NCHW, rows, carried)
            if features is not None:
                features.append(split_time(x_NCHW, rows))
            if place == self.grouped and place:
                split = self.ups[place - 1](*parts(x_NCHW, num_latent, begins=begins))
                x_NCHW, rows = self._frames(split, num_latent), frames
            elif place:
                x_NCHW = self.ups[place - 1](x_NCHW)
        return split_time(self.head(x_NCHW), frames)

    def _frames(self, split: Rows, num_latent: int) -> Tensor:
        """Join rows of latent frames to rows of single frames."""
        first, rest = split
        if first is None:
            return merge_time(continuation_of(only(None, rest), self.group, num_latent))
        return merge_time(video_of(first, rest))
