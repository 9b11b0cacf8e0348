"""Building blocks of the VAE: causal 3D convolutions in tensors of rank 4.

A video is held as ``[B·T, C, H, W]``, one row per latent frame. A causal 3D convolution with ``taps``
frames in time is one 2D convolution over the frame and its predecessors side by side on the channel
axis. That is the same arithmetic, and it (1) keeps time out of ``padding=``, where the bf16 weight
gradient of torch's CPU conv3d is garbage, (2) runs faster on the CPU, (3) exports to runtimes and
accelerators that have no 3D convolution.

There is no normalisation layer: group norms would look into the future, and RMS norms are lowered
wrongly for zero rows by Core ML's converter. Residual branches start small instead.

Shapes: N = B·T rows, C channels, T H W latent frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def merge_time(x_BCTHW: Tensor) -> Tensor:
    """Turn ``[B,C,T,H,W]`` into ``[B·T,C,H,W]``."""
    return rearrange(x_BCTHW, "B C T H W -> (B T) C H W")


def split_time(x_NCHW: Tensor, num_frames: int) -> Tensor:
    """Turn ``[B·T,C,H,W]`` into ``[B,C,T,H,W]``."""
    return rearrange(x_NCHW, "(B T) C H W -> B C T H W", T=num_frames)


def first_and_rest(x_NCHW: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Return rows of the first latent frame ``[B,…]`` and of the later ones ``[B·(T-1),…]``."""
    x_BTCHW = rearrange(x_NCHW, "(B T) C H W -> B T C H W", T=num_frames)
    return x_BTCHW[:, 0], rearrange(x_BTCHW[:, 1:], "B T C H W -> (B T) C H W")


def join(first_NCHW: Tensor | None, rest_NCHW: Tensor | None) -> Tensor:
    """Undo :func:`first_and_rest`; one of the two may be missing."""
    if first_NCHW is None or rest_NCHW is None:
        return only(first_NCHW, rest_NCHW)
    rest_BTCHW = rearrange(rest_NCHW, "(B T) C H W -> B T C H W", B=len(first_NCHW))
    return rearrange(torch.cat([first_NCHW[:, None], rest_BTCHW], 1), "B T C H W -> (B T) C H W")


def only(one: Tensor | None, other: Tensor | None) -> Tensor:
    """Return the one that is there."""
    given = one if other is None else other
    assert given is not None
    return given


def activate(x_NCHW: Tensor) -> Tensor:
    """Apply leaky ReLU. SiLU's bf16 backward costs more than the convolution beside it; plain ReLUs can die and did."""
    return functional.leaky_relu(x_NCHW, 0.1)


class EqualConv(nn.Conv2d):
    """A 2D convolution of size-preserving padding whose weights train at one *relative* rate.

    Weights are stored at unit size and multiplied by ``1/√fan_in`` (equalised learning rate, Karras
    et al. 2018): Adam moves all by the same amount, which otherwise is 20% of a weight with 1,536
    inputs and 3% of one with 48. Without it, training diverged at rates that were still slow elsewhere.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, size: float = 1.0) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)
        self.gain = (channels_in * kernel**2) ** -0.5
        nn.init.normal_(self.weight, std=size)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map ``[N,C,H,W]`` to ``[N,channels_out,H,W]``."""
        return functional.conv2d(x_NCHW, self.weight * self.gain, self.bias, padding=self.padding)


class Carried:
    """The memory of a causal network between two chunks of one video: the last inputs of its convolutions.

    past: per convolution ``[B, taps-1, C, H, W]``. begun: whether a chunk has been given already.
    """

    def __init__(self) -> None:
        self.past: dict[nn.Module, Tensor] = {}
        self.begun = False


class CausalConv(nn.Module):
    """3D convolution of kernel ``[taps, kernel, kernel]``: zero padding in space, the past only in time."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, taps: int = 2) -> None:
        super().__init__()
        self.taps = taps
        self.conv = EqualConv(channels_in * taps, channels_out, kernel)

    def forward(self, x_NCHW: Tensor, num_frames: int, carried: Carried | None = None) -> Tensor:
        """Map rows ``[B·T,C,H,W]`` of ``num_frames`` = T latent frames to as many rows; they follow what is carried."""
        if self.taps == 1:
            return self.conv(x_NCHW)
        x_BTCHW = rearrange(x_NCHW, "(B T) C H W -> B T C H W", T=num_frames)
        if carried is not None:
            return self.conv(self._following(x_BTCHW, carried))
        past = [x_NCHW]
        for delay in range(1, self.taps):
            padded = functional.pad(x_BTCHW, (0, 0, 0, 0, 0, 0, delay, 0))[:, :num_frames]
            past.append(rearrange(padded, "B T C H W -> (B T) C H W"))
        return self.conv(torch.cat(past, 1))

    def _following(self, x_BTCHW: Tensor, carried: Carried) -> Tensor:
        """Lay the frames and their predecessors side by side, with the carried frames before the first."""
        batch, num_frames, *size_CHW = x_BTCHW.shape
        before = carried.past.get(self, x_BTCHW.new_zeros(batch, self.taps - 1, *size_CHW))
        whole = torch.cat([before, x_BTCHW], 1)
        carried.past[self] = whole[:, num_frames:]
        delayed = [whole[:, self.taps - 1 - delay :][:, :num_frames] for delay in range(self.taps)]
        return torch.cat([rearrange(frames, "B T C H W -> (B T) C H W") for frames in delayed], 1)


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


class FromPatches(nn.Module):
    """Patches of ``cell × cell`` pixels → channels: space to channels, then a linear map.

    The same arithmetic as a convolution of stride ``cell``, which is not used: in bf16, oneDNN's
    forward of a strided convolution with 24 input channels is wrong by 130% (torch 2.13, AMX).
    """

    def __init__(self, linear: nn.Module, cell: int) -> None:
        super().__init__()
        self.linear, self.cell = linear, cell

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map ``[N,C,H,W]`` to ``[N,channels,H/cell,W/cell]``."""
        return self.linear(functional.pixel_unshuffle(x_NCHW, self.cell))


class ToPatches(nn.Module):
    """Channels → patches of ``cell × cell`` pixels: a linear map, then channels to space."""

    def __init__(self, linear: nn.Module, cell: int) -> None:
        super().__init__()
        self.linear, self.cell = linear, cell

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map ``[N,channels,H,W]`` to ``[N,C,H·cell,W·cell]``."""
        return functional.pixel_shuffle(self.linear(x_NCHW), self.cell)
