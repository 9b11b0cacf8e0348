"""From a module's prediction to velocity, by exact change of variables. No module state here.

A variance-preserving model (DDPM) was trained on ``a·x0 + s·noise`` with ``a² + s² = 1``. The engine's
``x = (1 - sigma)·x0 + sigma·noise`` is that input times ``n = sqrt((1 - sigma)² + sigma²)``, at the
timestep where ``s/a = sigma/(1 - sigma)``.

Shapes: B batch, latents ``[B,C,T,H,W]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_compress.model.flow import expand

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-6
"""Bound of alpha-bar at both ends: a schedule of zero terminal SNR would divide by it."""

SHORTEST = 1e-12
"""Length of a step between two equal noise levels, so that nothing is divided by zero."""


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a variance-preserving schedule: ``sigmas [N]``, ascending with the timestep; the ends as numbers.

    Nothing here is looked up by a value, so tracers follow it.
    """

    sigmas: Tensor
    lowest: float
    highest: float

    @classmethod
    def from_alphas(cls, alphas_cumprod: Tensor) -> Schedule:
        """Make the schedule of ``alpha_bar [N]``: ``sigma = s / (a + s)``."""
        alpha_bar = alphas_cumprod.double().clamp(SMALLEST, 1 - SMALLEST)
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        sigmas = s / (a + s)
        return cls(sigmas, float(sigmas[0]), float(sigmas[-1]))

    def clamp(self, sigma_B: Tensor) -> Tensor:
        """Return the nearest noise level that the model was trained on."""
        return sigma_B.clamp(self.lowest, self.highest)

    def timestep(self, sigma_B: Tensor) -> Tensor:
        """Return the (fractional) timestep of a noise level, ``[B]``; linear between neighbours.

        It is the sum of how much of each step lies below: 1 of those that do, a part of one, 0 of the others.
        """
        sigmas = self.sigmas.to(sigma_B.device)
        low, high = sigmas[:-1], sigmas[1:]
        wanted_B1 = self.clamp(sigma_B.double())[:, None]
        return ((wanted_B1 - low) / (high - low).clamp(min=SHORTEST)).clamp(0, 1).sum(-1).to(sigma_B.dtype)


def norm_of(sigma: Tensor) -> Tensor:
    """Return ``n = sqrt((1 - sigma)² + sigma²)``: the engine's latent over a variance-preserving one."""
    return ((1 - sigma) ** 2 + sigma**2).sqrt()


def from_noise(output: Tensor, latent: Tensor, sigma_B: Tensor) -> Tensor:
    """Turn ``noise`` into ``noise - x0``, with ``x0 = (x - sigma·noise) / (1 - sigma)``; sigma below 1."""
    sigma = expand(sigma_B, latent)
    return (output - latent) / (1 - sigma)


def from_x0(output: Tensor, latent: Tensor, sigma_B: Tensor) -> Tensor:
    """Turn ``x0`` into ``noise - x0``, with ``noise = (x - (1 - sigma)·x0) / sigma``; sigma above 0."""
    sigma = expand(sigma_B, latent)
    return (latent - output) / sigma


def from_v(output: Tensor, latent: Tensor, sigma_B: Tensor) -> Tensor:
    """Turn ``v = a·noise - s·x0`` into ``noise - x0``."""
    sigma = expand(sigma_B, latent)
    n = norm_of(sigma)
    a, s, scaled = (1 - sigma) / n, sigma / n, latent / n
    return (s * scaled + a * output) - (a * scaled - s * output)
