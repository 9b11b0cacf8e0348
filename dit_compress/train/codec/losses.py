"""Losses between videos and between posteriors. Pure; every one is a mean.

Shapes: video ``[B,3,F,Y,X]``, latent ``[B,C,T,H,W]``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def pixel(video: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Return smooth L1: ``d²/2ε`` below ε, ``|d| - ε/2`` above. One kernel each way, where Charbonnier takes eight."""
    return functional.smooth_l1_loss(video, target, beta=epsilon)


def temporal_difference(video: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Return smooth L1 between the differences of successive frames: punishes flicker; 0 for one frame."""
    if video.shape[2] < 2:
        return video.new_zeros(())
    return pixel(video[:, :, 1:] - video[:, :, :-1], target[:, :, 1:] - target[:, :, :-1], epsilon)


def haar(video: Tensor, target: Tensor, epsilon: float, levels: int = 1) -> Tensor:
    """Return smooth L1 between the three spatial detail bands of Haar levels; ``2^levels`` must divide Y and X."""
    error, terms = video - target, []
    for _ in range(levels):
        low, high = error[..., 0::2, :] + error[..., 1::2, :], error[..., 0::2, :] - error[..., 1::2, :]
        bands = [
            (low[..., 0::2] - low[..., 1::2]) / 2,
            (high[..., 0::2] + high[..., 1::2]) / 2,
            (high[..., 0::2] - high[..., 1::2]) / 2,
        ]
        detail = torch.stack(bands)
        terms.append(pixel(detail, torch.zeros_like(detail), epsilon))
        error = (low[..., 0::2] + low[..., 1::2]) / 2
    return terms[0] if levels == 1 else torch.stack(terms).mean()


def multiscale(video: Tensor, target: Tensor, epsilon: float, levels: int = 1) -> Tensor:
    """Return smooth L1 between frames averaged over 2 × 2, 4 × 4 … pixels, a mean over ``levels`` scales."""
    error_NCYX, terms = rearrange(video - target, "B C F Y X -> (B F) C Y X"), []
    for _ in range(levels):
        error_NCYX = functional.avg_pool2d(error_NCYX, 2)
        terms.append(pixel(error_NCYX, torch.zeros_like(error_NCYX), epsilon))
    return torch.stack(terms).mean()


def kl(mean: Tensor, std: float) -> Tensor:
    """Return ``KL(N(mean, std²) ‖ N(0, 1))`` per latent value, with one fixed posterior std."""
    return 0.5 * (mean.square().mean() + std**2 - 1.0 - 2.0 * math.log(std))


def consistency(again: Tensor, latent: Tensor) -> Tensor:
    """Return the mean squared distance of a latent encoded anew to the latent, which takes no gradient.

    Without that the encoder could lower the loss by shrinking its scale.
    """
    return (again - latent.detach()).square().mean()


def smaller(values_BCTYX: Tensor, scale: int) -> Tensor:
    """Average over ``scale × scale`` values along the last two axes; for 2 that is bilinear interpolation."""
    return functional.avg_pool3d(values_BCTYX, (1, scale, scale))


def psnr(video: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB per clip ``[B]``, for videos in [-1, 1] (peak 2)."""
    error_B = (video.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10.0 * torch.log10(4.0 / error_B.clamp_min(1e-12))
