"""1×1×1-GN-LeakyReLU, a residual of the same, 1×1×1 to a logit per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dit_compress.train.discriminators import grid_discriminator, groups_of

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Denoiser
    from dit_compress_plugins.discriminator_light_resblock3d import LightResBlock3DOptions


class LightResBlock3DPart:
    """Part ``discriminator: {use: light_resblock3d}``."""

    def __init__(self, options: LightResBlock3DOptions) -> None:
        self.options = options

    def create(self, generator: Denoiser) -> nn.Module:
        """Make a discriminator from a frozen copy of the generator as it is now."""
        return grid_discriminator(generator, self.options.frozen_blocks, self.options.width, LightResBlock3D)


class LightResBlock3D(nn.Module):
    """``[B,D,T,H,W] → [B,1,T,H,W]``."""

    def __init__(self, stream: int, width: int) -> None:
        super().__init__()
        self.enter, self.residual = _layer(stream, width), _layer(width, width)
        self.leave = nn.Conv3d(width, 1, 1)

    def forward(self, x_BDTHW: Tensor) -> Tensor:
        """Judge the tokens; none sees another, but for the norms."""
        x = self.enter(x_BDTHW)
        return self.leave(x + self.residual(x))


def _layer(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(width_in, width, 1), nn.GroupNorm(groups_of(width), width), nn.LeakyReLU(0.2))
