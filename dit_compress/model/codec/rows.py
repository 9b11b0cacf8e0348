"""A video as rows ``[B·T, C, H, W]``, one per latent frame: the first frame apart, later ones in groups.

Shapes: N = B·T rows, C channels, G frames of a group, T H W latent frames, height, width, Y X pixels, F frames. A row
of a group holds ``G·C`` channels, those of a frame fastest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange

if TYPE_CHECKING:
    from torch import Tensor

    Rows = tuple[Tensor | None, Tensor | None]
    """The first frame's row ``[B,…]``, and those of groups ``[B·(T-1),…]``; None where there are none."""


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


def rows_of(video_BCFYX: Tensor, group: int, *, begins: bool = True) -> Rows:
    """Return first frame ``[B,3,Y,X]`` and groups ``[B·(T-1),G·3,Y,X]`` of a video; groups only where it goes on."""
    batch, colours, frames, height, width = video_BCFYX.shape
    if not begins:
        return None, merge_time(video_BCFYX).reshape(batch * (frames // group), group * colours, height, width)
    if frames == 1:
        return video_BCFYX[:, :, 0], None
    rest = merge_time(video_BCFYX[:, :, 1:])
    return video_BCFYX[:, :, 0], rest.reshape(batch * ((frames - 1) // group), group * colours, height, width)


def continuation_of(rest_NCYX: Tensor, group: int, num_groups: int) -> Tensor:
    """Undo :func:`rows_of` of a video that goes on: ``[B,C,F,Y,X]``."""
    rows, channels, height, width = rest_NCYX.shape
    frames = rest_NCYX.reshape(rows * group, channels // group, height, width)
    return split_time(frames, num_groups * group)


def video_of(first_NCYX: Tensor, rest_NCYX: Tensor | None) -> Tensor:
    """Undo :func:`rows_of` of a whole video: ``[B,3,F,Y,X]``."""
    if rest_NCYX is None:
        return first_NCYX[:, :, None]
    batch, colours, height, width = first_NCYX.shape
    frames = rest_NCYX.reshape(-1, colours, height, width)
    return split_time(join(first_NCYX, frames), 1 + len(frames) // batch)


def parts(x_NCHW: Tensor, num_frames: int, *, begins: bool) -> Rows:
    """Split like :func:`first_and_rest`; None for no first frame (a video that goes on) or no later ones (an image)."""
    if not begins:
        return None, x_NCHW
    return (x_NCHW, None) if num_frames == 1 else first_and_rest(x_NCHW, num_frames)


def cells_between(fine: int, coarse: int) -> list[int]:
    """Return powers of two from ``fine`` to ``coarse``, both included."""
    cells = [fine]
    while cells[-1] < coarse:
        cells.append(cells[-1] * 2)
    return cells
