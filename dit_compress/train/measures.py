"""Effects of collapse on videos, as plain numbers of ``[B,3,F,Y,X]`` in [-1, 1]. No reference model, no labels.

Motion and diversity are squared differences over twice the variance, of frames averaged down to about 32 cells a side:
0 is the same picture, 1 an unrelated one. So neither a loss of contrast nor fine noise counts as a change of either.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

CELLS = 32
_FLAT = 1e-6
"""Variance of a video without content, for which no ratio is taken."""


def motion(video_BCFYX: Tensor) -> float:
    """Change from frame to frame; 0 for a single frame. Where edges move, proportional to their speed."""
    if video_BCFYX.shape[2] < 2:
        return 0.0
    coarse = _coarse(video_BCFYX)
    change_B = (coarse[:, :, 1:] - coarse[:, :, :-1]).square().flatten(1).mean(dim=1)
    return float((change_B / (2 * _variance(coarse))).mean())


def contrast(video_BCFYX: Tensor) -> float:
    """Return the standard deviation of each video's brightness over its pixels and frames, averaged."""
    return float(video_BCFYX.mean(dim=1).flatten(1).std(dim=1).mean())


def chroma(video_BCFYX: Tensor) -> float:
    """Return the standard deviation of a pixel's three channels, averaged: 0 is grey."""
    return float(video_BCFYX.std(dim=1).mean())


def diversity(video_BNCFYX: Tensor) -> float:
    """Return the difference of the videos within each group of N, averaged over pairs and groups."""
    videos = [_coarse(video) for video in video_BNCFYX.unbind(1)]
    pairs = list(combinations(videos, 2))
    return sum(float(_apart(one, other).mean()) for one, other in pairs) / len(pairs)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().flatten(1).mean(dim=1) / (_variance(one) + _variance(other))


def _variance(video_BCFYX: Tensor) -> Tensor:
    """Return the variance of each video ``[B]``: over pixels and frames, averaged over channels."""
    return video_BCFYX.flatten(2).var(dim=2, correction=0).mean(dim=1).clamp_min(_FLAT)


def _coarse(video_BCFYX: Tensor) -> Tensor:
    """Average frames over squares, so that the shorter side has about 32 of them."""
    side = max(1, min(video_BCFYX.shape[-2:]) // CELLS)
    return functional.avg_pool3d(video_BCFYX, (1, side, side))
