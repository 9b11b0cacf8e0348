"""SnapGen's timestep-aware scaling as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_EDGE = 1e-6


def task_share(sigma_B: Tensor) -> Tensor:
    """Return ``alpha`` in [0, 1]: the density of the logit-normal (0, 1) at sigma over its highest, that at one half.

    ``exp(-logit²/2) / (4·sigma·(1 - sigma))``; 0 at either end, where the teacher alone counts.
    """
    sigma = sigma_B.clamp(_EDGE, 1 - _EDGE)
    return torch.exp(-torch.logit(sigma).square() / 2) / (4 * sigma * (1 - sigma))


def scaled(task_B: Tensor, kd_B: Tensor, alpha_B: Tensor, ratio_B: Tensor) -> Tensor:
    """Return ``alpha·task + (1 - alpha)·ratio·kd`` per sample; ``ratio``, ``|task| / |kd|``, is held fixed.

    With a ratio that is differentiated the teacher's slope would be zero: ``|task| / |kd| · kd`` is ``|task|``.
    """
    return alpha_B * task_B + (1 - alpha_B) * ratio_B.detach() * kd_B


def bins_of(sigma_B: Tensor, bins: int) -> Tensor:
    """Return which of equal parts of [0, 1] each sigma lies in."""
    return (sigma_B * bins).long().clamp(0, bins - 1)
