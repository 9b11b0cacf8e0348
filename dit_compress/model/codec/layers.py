"""Layers of causal codecs: 3D convolutions in tensors of rank 4, patches, and the state that chunks carry.

A causal 3D convolution with ``taps`` frames in time is one 2D convolution over the frame and its predecessors side by
side on the channel axis. That is the same arithmetic, and it (1) keeps time out of ``padding=``, where the bf16 weight
gradient of torch's CPU conv3d is garbage, (2) runs faster on the CPU, (3) exports to runtimes and accelerators that
have no 3D convolution.

Shapes: N = B·T rows, C channels, T H W latent frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dit_compress.core.randomness import generator
from dit_compress.model.codec.carried import delayed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dit_compress.model.codec.carried import Carried
    from dit_compress.model.codec.rows import Rows

    LinearMaker = Callable[[int, int], nn.Module]

COLOURS = 3


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
        return self.conv(torch.cat(delayed(x_NCHW, num_frames, self.taps, carried, self), 1))


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


def orthogonal(size: int) -> Tensor:
    """Return a fixed orthogonal matrix ``[C,C]`` that mixes every row with every other."""
    draw = generator(0, "rotation", size).standard_normal((size, size))
    q, r = torch.linalg.qr(torch.from_numpy(draw))
    return (q * r.diagonal().sign()).float()
