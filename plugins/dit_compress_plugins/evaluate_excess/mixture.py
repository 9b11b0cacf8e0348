"""Velocities of a Gaussian mixture in closed form: the exact one, and the best that simpler denoisers can do.

``x = (1 - sigma)·x0 + sigma·noise``; the velocity that a denoiser learns is ``E[noise - x0 | x]``.
Modes are equally likely, each ``N(mean, spread²)`` in all directions.

Shapes: B batch, M modes, D numbers of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exact(x_BD: Tensor, sigma: float, means: Tensor, spread: float) -> Tensor:
    """Return the exact velocity of a mixture: of each sample's own, ``means [B,M,D]``, or of one for all, ``[M,D]``.

    Within a mode ``x`` is ``N((1 - sigma)·mean, v)``, ``v = (1 - sigma)²·spread² + sigma²``, and both noise and x0 are
    linear in x. So only the mean of the mode is left to be averaged, over the modes' posterior.
    """
    clean, modes = 1 - sigma, "md" if means.ndim == 2 else "bmd"
    variance = (clean * spread) ** 2 + sigma**2
    likely_BM = clean * torch.einsum(f"bd,{modes}->bm", x_BD, means) - (clean**2 / 2) * means.square().sum(-1)
    mean_BD = torch.einsum(f"bm,{modes}->bd", torch.softmax(likely_BM / variance, -1), means)
    return (sigma - clean * spread**2) / variance * (x_BD - clean * mean_BD) - mean_BD


def linear(x_BD: Tensor, sigma: float, means_MD: Tensor, spread: float) -> Tensor:
    """Return the velocity of the best affine denoiser at this sigma, which sees no caption: least squares."""
    clean, mean_D, one = 1 - sigma, means_MD.mean(0), torch.eye(means_MD.shape[1]).to(means_MD)
    centred = means_MD - mean_D
    covariance = centred.T @ centred / len(means_MD) + spread**2 * one
    slope = torch.linalg.solve(clean**2 * covariance + sigma**2 * one, sigma * one - clean * covariance)
    return (x_BD - clean * mean_D) @ slope - mean_D


def constant(x_BD: Tensor, means_MD: Tensor) -> Tensor:
    """Return the mean velocity, whatever x is: zero in a centred mixture."""
    return -means_MD.mean(0).expand_as(x_BD)
