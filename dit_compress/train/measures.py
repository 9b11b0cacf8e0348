"""What collapse does to videos, as plain numbers of ``[B,3,F,Y,X]`` in [-1, 1]. No reference model, no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def motion(video_BCFYX: Tensor) -> float:
    """Mean absolute difference of consecutive frames; 0 for a single frame."""
    if video_BCFYX.shape[2] < 2:
        return 0.0
    return float((video_BCFYX[:, :, 1:] - video_BCFYX[:, :, :-1]).abs().mean())


def contrast(video_BCFYX: Tensor) -> float:
    """Standard deviation of each video's brightness over its pixels and frames, averaged."""
    return float(video_BCFYX.mean(dim=1).flatten(1).std(dim=1).mean())


def chroma(video_BCFYX: Tensor) -> float:
    """Standard deviation of a pixel's three channels, averaged: 0 is grey."""
    return float(video_BCFYX.std(dim=1).mean())


def diversity(video_BNCFYX: Tensor) -> float:
    """Mean absolute difference of the videos within each group of N."""
    num = video_BNCFYX.shape[1]
    pairs = [(one, other) for one in range(num) for other in range(one)]
    return sum(float((video_BNCFYX[:, a] - video_BNCFYX[:, b]).abs().mean()) for a, b in pairs) / len(pairs)
