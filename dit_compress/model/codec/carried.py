"""Frames before the present one: of one piece of video, or carried over from the chunk before.

Shapes: N = B·T rows, C channels, T H W latent frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor, nn


class Carried:
    """The memory of a causal network between two chunks of one video: what its layers saw last.

    past: per layer ``[B, taps-1, C, H, W]``. begun: whether a chunk has been given already.
    """

    def __init__(self) -> None:
        self.past: dict[nn.Module, Tensor] = {}
        self.begun = False


def begin(carried: Carried | None) -> bool:
    """Tell whether the next chunk is the first one; from now on it is not."""
    if carried is None:
        return True
    begun, carried.begun = carried.begun, True
    return not begun


def delayed(x_NCHW: Tensor, num_frames: int, taps: int, carried: Carried | None, layer: nn.Module) -> list[Tensor]:
    """Return the rows, and those of 1 … ``taps`` - 1 latent frames before; frames before the first are zero.

    Args:
        x_NCHW: rows of ``num_frames`` latent frames.
        num_frames: T.
        taps: the present frame, and how many before it.
        carried: what the chunk before has left; this one leaves its own.
        layer: whose inputs these are.
    """
    x_BTCHW = rearrange(x_NCHW, "(B T) C H W -> B T C H W", T=num_frames)
    if carried is not None:
        before = carried.past.get(layer, x_BTCHW.new_zeros(len(x_BTCHW), taps - 1, *x_BTCHW.shape[2:]))
        whole = torch.cat([before, x_BTCHW], 1)
        carried.past[layer] = whole[:, num_frames:]
        found = [whole[:, taps - 1 - delay :][:, :num_frames] for delay in range(taps)]
        return [rearrange(frames, "B T C H W -> (B T) C H W") for frames in found]
    past = [x_NCHW]
    for delay in range(1, taps):
        padded = functional.pad(x_BTCHW, (0, 0, 0, 0, 0, 0, delay, 0))[:, :num_frames]
        past.append(rearrange(padded, "B T C H W -> (B T) C H W"))
    return past
