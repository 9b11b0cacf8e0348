"""Residual blocks of the VAE, and its fixed linear code.

There is no normalisation layer: group norms would look into the future, and RMS norms are lowered
wrongly for zero rows by Core ML's converter. Residual branches start small instead.

Shapes: N = B·T rows, C channels, T H W latent frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dit_compress.model.codec.layers import CausalConv, EqualConv, activate

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.model.codec.carried import Carried


class Block(nn.Module):
    """``x + conv1x1(activate(causal_conv(x)))``; the branch starts at a tenth of its usual size."""

    def __init__(self, width: int, taps: int, expansion: int) -> None:
        super().__init__()
        self.mix = CausalConv(width, width * expansion, 3, taps)
        self.out = EqualConv(width * expansion, width, size=0.1)

    def forward(self, x_NCHW: Tensor, num_frames: int, carried: Carried | None = None) -> Tensor:
        """Map ``[B·T,C,H,W]`` to the same shape."""
        return x_NCHW + self.out(activate(self.mix(x_NCHW, num_frames, carried)))


class Stage(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, width: int, num_blocks: int, taps: int, expansion: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, taps, expansion) for _ in range(num_blocks))

    def forward(self, x_NCHW: Tensor, num_frames: int, carried: Carried | None = None) -> Tensor:
        """Map ``[B·T,C,H,W]`` to the same shape."""
        for block in self.blocks:
            x_NCHW = block(x_NCHW, num_frames, carried)
        return x_NCHW


class FixedLinear(nn.Module):
    """A 1 × 1 convolution whose weights are buffers: the linear code stays PCA throughout training.

    A patch sums 24,576 values, and one Adam step moves every weight by the learning rate: trained
    along, the linear code would need a rate of its own.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(channels_out, channels_in, 1, 1))
        self.register_buffer("bias", torch.zeros(channels_out))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map ``[N,C,H,W]`` to ``[N,channels_out,H,W]``."""
        return functional.conv2d(x_NCHW, self.weight, self.bias)
