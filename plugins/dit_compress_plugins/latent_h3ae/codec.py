"""The codec ``h3ae``.

Shapes: B batch, C channels, T H W latent frames, height, width; video ``[B,3,F,Y,X]`` in [-1, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import register_to_config

from dit_compress.core.errors import UserError
from dit_compress.model.codec.causal import CausalCodec, check_ratio
from dit_compress.model.protocols import FirstFrameCodec
from dit_compress_plugins.latent_h3ae.coders import Decoder, Encoder, Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class H3AE(CausalCodec, FirstFrameCodec):
    """A codec ``[B,3,F,Y,X] ↔ [B,C,T,H,W]`` whose decoder also takes the first frame, where known.

    Args:
        ratio: pixels per latent cell along time, height, width; height and width alike, a power of two ≥ 8.
        channels: C.
        widths: of the network at cells of 4, 8, 16 … pixels; the last serves all coarser cells.
        num_blocks: residual blocks per resolution.
        heads: of the attention at the bottleneck.
        window: latent frames that a token sees, its own among them.
        radius: cells to each side that a token sees; None for the whole frame.
        latent_mean: per channel, of the raw latent; ``set_statistics`` writes it.
        latent_std: likewise.
        tile: frames of more cells a side are encoded and decoded in tiles of so many.
        tile_overlap: cells that neighbouring tiles share; None for so many that tiles join exactly, up to half of one.
        chunk: longer videos are encoded and decoded in chunks of so many latent frames, which join exactly.
    """

    takes_first = True

    @register_to_config
    def __init__(
        self,
        ratio: Sequence[int] = (8, 32, 32),
        channels: int = 128,
        widths: Sequence[int] = (48, 96, 160, 192),
        num_blocks: int = 2,
        heads: int = 4,
        window: int = 3,
        radius: int | None = 2,
        latent_mean: Sequence[float] | None = None,
        latent_std: Sequence[float] | None = None,
        tile: int = 32,
        tile_overlap: int | None = None,
        chunk: int = 16,
    ) -> None:
        super().__init__()
        check_ratio(ratio, "h3ae")
        check_heads(Shape(ratio, widths).widths[-1], heads)
        attention = (heads, window, radius)
        self.encoder = Encoder(ratio, channels, widths, num_blocks, attention)
        self.decoder = Decoder(ratio, channels, widths, num_blocks, attention)
        self.settle(ratio, channels, (latent_mean, latent_std), (tile, tile_overlap), chunk)

    def decode(self, latent_BCTHW: Tensor, first_BCYX: Tensor | None = None) -> Tensor:
        """Decode a normalised latent to video, unclipped, given its first frame or not; in chunks and tiles."""
        if first_BCYX is None:
            return super().decode(latent_BCTHW)
        height, width = (cells * self.ratio[1] for cells in latent_BCTHW.shape[-2:])
        if first_BCYX.shape != (len(latent_BCTHW), 3, height, width):
            raise UserError(
                f"the first frame is {list(first_BCYX.shape)}, the video {len(latent_BCTHW)} times 3x{height}x{width}",
                mend="Give a first frame of the video's size for every latent",
            )
        return torch.cat(list(self.decode_chunks(latent_BCTHW, first_BCYX=first_BCYX)), 2)


def check_heads(width: int, heads: int) -> None:
    """Raise a UserError unless the heads share the width of the bottleneck."""
    if width % heads:
        raise UserError(
            f"{heads} heads can't share a width of {width}",
            mend="Give 'widths' whose value at the coarsest cells is divisible by 'heads'",
        )
