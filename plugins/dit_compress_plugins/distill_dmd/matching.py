"""Distribution matching as pure functions of tensors (DMD, Eq. 7–8); means over samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.train.losses import per_sample

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.model.flow import Flow

LOWEST, HIGHEST = 0.02, 0.98
"""Sigmas between which samples are noised again: outside, one of both posteriors knows nothing (DMD2)."""


def matching_sigma(u: Tensor, schedule: Flow) -> Tensor:
    """Return sigmas between the ends for uniform ``u`` in [0, 1): what a uniform position becomes by the shift."""
    low, high = (_position(sigma, schedule.shift) for sigma in (LOWEST, HIGHEST))
    return schedule.warp(low + (high - low) * u)


def _position(sigma: float, shift: float) -> float:
    """Invert :meth:`Flow.warp`."""
    return sigma / (shift - (shift - 1) * sigma)


def direction(fake_x0: Tensor, real_x0: Tensor, x0: Tensor) -> Tensor:
    """Return the way samples are to go back: ``(fake - real) / mean|x0 - real|``, the mean per sample (DMD, Eq. 8)."""
    scale_B = per_sample((x0 - real_x0).abs()).clamp_min(1e-8)
    return (fake_x0 - real_x0) / scale_B.reshape(-1, *[1] * (x0.ndim - 1))


def surrogate(x0: Tensor, direction: Tensor) -> Tensor:
    """Return ``½·mean (x0 - stop(x0 - direction))²``: its slope by ``x0`` is the direction over the numbers in it."""
    return 0.5 * (x0 - (x0 - direction).detach()).square().mean()


def energy_score(one: Tensor, other: Tensor, reference: Tensor) -> Tensor:
    """Return ``½(|X - y| + |X' - y|) - ½|X - X'|``, averaged over samples; ``|·|`` is the root of the mean square.

    X and X' are two samples of a caption by the model, y one by the truth. Its expectation is least where both
    distributions are equal, and only there (Gneiting and Raftery, "Strictly proper scoring rules", Eq. 22).
    """
    near_B = (_length(one - reference) + _length(other - reference)) / 2
    return (near_B - _length(one - other) / 2).mean()


def _length(value: Tensor) -> Tensor:
    return per_sample(value.float().square()).sqrt()
