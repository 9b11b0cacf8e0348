"""Per frame GN-SiLU-Conv3×3 twice with a skip; attention over T in every cell; 1×1 to a map of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        """A discriminator from a frozen copy of the generator as it is now."""
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
        """Frames one by one, then every cell through time."""
        batch, frames = x_BDTHW.shape[0], x_BDTHW.shape[2]
        x = self.enter(x_BDTHW.transpose(1, 2).flatten(0, 1))
        x = x + self.frames(x)
        x = self.through_time(x.unflatten(0, (batch, frames)))
        return self.leave(x.flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)

    def through_time(self, x_BTDHW: Tensor) -> Tensor:
        """Attention over T with a skip, the same in every cell."""
        cells = x_BTDHW.permute(0, 3, 4, 1, 2)  # B H W T D
        q, k, v = (
            part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(-2, -3) for part in self.qkv(self.norm(cells)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        return (cells + self.out(mixed)).permute(0, 3, 4, 1, 2)
