"""The engine's Euler sampler as a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.model.flow import euler
from dit_compress.model.protocols import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress_plugins.sampler_euler import EulerOptions


class EulerSampler(Sampler):
    """``x += (sigma' - sigma)·v``."""

    def __init__(self, options: EulerOptions) -> None:
        self.options = options

    def sample(
        self, denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0
    ) -> Tensor:
        """Turn noise into a clean latent; differentiable."""
        return euler(denoiser, noise_BCTHW, cond, sigmas, guidance)
