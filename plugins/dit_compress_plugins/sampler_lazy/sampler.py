"""The engine's lazy walk as a part."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dit_compress.model.skipping import skipping_euler, static_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress_plugins.sampler_lazy import LazySamplerOptions


class LazySampler:
    """Euler steps; a module whose gate is below one half gives what it gave the step before."""

    def __init__(self, options: LazySamplerOptions) -> None:
        self.options = options

    def sample(
        self, denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0
    ) -> Tensor:
        """Turn noise into a clean latent; UserError for a denoiser without gates, and for another schedule's."""
        table = partial(static_table, ratio=self.options.ratio) if self.options.skip == "table" else None
        return skipping_euler(denoiser, noise_BCTHW, cond, sigmas, guidance, table)[0]
