"""Per frame GN-SiLU-Conv3×3 twice with a skip; attention over T in every cell; 1×1 to a map of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compress.train.discriminators import grid_discriminator, groups_of

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser
    from dit_compress_plugins.discriminator_resblock2d_temporal import ResBlock2DTemporalOptions

HEAD_WIDTH = 8
"""Channels of one head of the attention over time; every width is a multiple."""


class ResBlock2DTemporalPart:
    """Part ``discriminator: {use: resblock2d_temporal}``."""

    def __init__(self, options: ResBlock2DTemporalOptions) -> None:
        self.options = options

    def create(self, generator: Denoiser) -> nn.Module:
        """Make a discriminator from a frozen copy of the generator as it is now."""
        return grid_discriminator(generator, self.options.frozen_blocks, self.options.width, ResBlock2DTemporal)


class ResBlock2DTemporal(nn.Module):
    """``[B,D,T,H,W] → [B,1,T,H,W]``."""

    def __init__(self, stream: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(stream, width, 1)
        self.frames = nn.Sequential(
            nn.GroupNorm(groups_of(width), width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups_of(width), width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.leave = nn.Conv2d(width, 1, 1)

    def forward(self, x_BDTHW: Tensor) -> Tensor:
        """Look at the frames one by one, then at every cell through time."""
        frames = x_BDTHW.shape[2]
        x = self.enter(rearrange(x_BDTHW, "B D T H W -> (B T) D H W"))
        x = self.through_time(x + self.frames(x), frames)
        return rearrange(self.leave(x), "(B T) D H W -> B D T H W", T=frames)

    def through_time(self, x_NDHW: Tensor, frames: int) -> Tensor:
        """Attend over T with a skip, in every cell alike; rows N = B·T."""
        cells = rearrange(x_NDHW, "(B T) D H W -> B H W T D", T=frames)
        parts = self.qkv(self.norm(cells)).chunk(3, -1)
        q, k, v = (rearrange(part, "B H W T (N K) -> B H W N T K", K=HEAD_WIDTH) for part in parts)
        mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "B H W N T K -> B H W T (N K)")
        return rearrange(cells + self.out(mixed), "B H W T D -> (B T) D H W")
