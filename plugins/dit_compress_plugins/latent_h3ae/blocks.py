"""Blocks: residual convolutions under a norm per position, changes of resolution, block-causal attention.

Shapes: N = B·T rows, C channels, T H W latent frames, height, width; Z heads, K head width, S = H·W places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dit_compress.model.codec.carried import delayed
from dit_compress.model.codec.layers import CausalConv, EqualConv, activate

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.model.codec.carried import Carried

FORBIDDEN = -3e4
"""Added to scores of places out of reach: half precision holds it, and its exponential is zero."""


class PositionNorm(nn.Module):
    """RMSNorm of the channels of every position, in its gain's precision: sees neither the future nor beyond a tile."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=1e-6)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map ``[N,C,H,W]`` to the same shape."""
        return self.norm(x_NCHW.permute(0, 2, 3, 1).to(self.norm.weight.dtype)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """``x + conv1x1(activate(conv(norm(x))))``: in space alone (``taps`` 1), or in the past, too."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.norm = PositionNorm(width)
        self.mix = CausalConv(width, width * 2, 3, taps)
        self.out = EqualConv(width * 2, width, size=0.1)

    def forward(self, x_NCHW: Tensor, num_frames: int, carried: Carried | None = None) -> Tensor:
        """Map ``[B·T,C,H,W]`` to the same shape."""
        return x_NCHW + self.out(activate(self.mix(self.norm(x_NCHW), num_frames, carried)))


class Attention(nn.Module):
    """Block-causal attention: a place sees its surrounding in its own latent frame and in those before.

    Frames are seen within a window and places within a radius, so that chunks and tiles equal the whole. Frames before
    the first are there as zeros, as a convolution has them: nothing is masked in time.

    Args:
        width: C, divisible by ``heads``.
        heads: Z.
        window: latent frames that are seen, the present one among them.
        radius: cells that are seen to each side; None for the whole frame.
    """

    def __init__(self, width: int, heads: int, window: int, radius: int | None) -> None:
        super().__init__()
        self.heads, self.window, self.radius = heads, window, radius
        self.norm = PositionNorm(width)
        self.query, self.keys = EqualConv(width, width), EqualConv(width, 2 * width)
        self.delay = nn.Parameter(torch.zeros(window, width))
        self.out = EqualConv(width, width, size=0.1)

    def forward(self, x_NCHW: Tensor, num_frames: int, carried: Carried | None = None) -> Tensor:
        """Map ``[B·T,C,H,W]`` to the same shape."""
        height, width = x_NCHW.shape[-2:]
        normed = self.norm(x_NCHW)
        past = delayed(self.keys(normed), num_frames, self.window, carried, self)
        keys, values = zip(*(frame.chunk(2, 1) for frame in past), strict=True)
        shifted = [key + self.delay[place][:, None, None].to(key) for place, key in enumerate(keys)]
        mask = None if self.radius is None else self._near(height, width, normed)
        found = functional.scaled_dot_product_attention(
            self._tokens([self.query(normed)]), self._tokens(shifted), self._tokens(values), attn_mask=mask
        )
        return x_NCHW + self.out(found.transpose(2, 3).reshape(x_NCHW.shape))

    def _tokens(self, frames: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        """Turn rows ``[N,C,H,W]`` of one or more frames into tokens ``[N,Z,frames·S,K]``."""
        tokens = torch.cat([frame.flatten(2) for frame in frames], 2)
        return tokens.unflatten(1, (self.heads, -1)).transpose(2, 3)

    def _near(self, height: int, width: int, like: Tensor) -> Tensor:
        """Return what is added to the scores ``[S,window·S]``: nothing within the radius."""
        lines = (torch.arange(side, device=like.device, dtype=like.dtype) for side in (height, width))
        far_YY, far_XX = ((line[:, None] - line).abs() for line in lines)
        far = torch.maximum(far_YY[:, None, :, None], far_XX[None, :, None, :]).reshape(height * width, -1)
        return ((far - (self.radius or 0)).clamp(0, 1) * FORBIDDEN).repeat(1, self.window)


class Stage(nn.Module):
    """Blocks at one resolution, an attention after each where there are heads.

    Args:
        width: C.
        num_blocks: of them.
        taps: frames that a convolution sees; 1 for the present alone.
        attention: heads, window and radius; None for no attention.
    """

    def __init__(
        self, width: int, num_blocks: int, taps: int, attention: tuple[int, int, int | None] | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for _ in range(num_blocks):
            self.blocks.append(Block(width, taps))
            if attention is not None:
                self.blocks.append(Attention(width, *attention))
        radius = 0 if attention is None else attention[2] or WHOLE
        self.reach = num_blocks * (1 + radius)
        """Cells to each side that a cell depends on."""

    def forward(self, x_NCHW: Tensor, num_frames: int, carried: Carried | None = None) -> Tensor:
        """Map ``[B·T,C,H,W]`` to the same shape."""
        for block in self.blocks:
            x_NCHW = block(x_NCHW, num_frames, carried)
        return x_NCHW


WHOLE = 1 << 20
"""The radius of an attention over the whole frame: more than any tile has."""
