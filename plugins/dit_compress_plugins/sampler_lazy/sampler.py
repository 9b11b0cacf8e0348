"""The engine's lazy walk as a part."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.model.flow import Fixed
from dit_compress.model.protocols import Sampler
from dit_compress.model.skipping import need_gates, skipping_euler, static_table, tabled_euler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress_plugins.sampler_lazy import LazySamplerOptions


class LazySampler(Sampler):
    """Euler steps; a module whose gate is below one half gives what it gave the step before."""

    def __init__(self, options: LazySamplerOptions) -> None:
        self.options = options

    def sample(
        self, denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0
    ) -> Tensor:
        """Turn noise into a clean latent; UserError for a denoiser without gates, and for another schedule's."""
        if self.options.skip == "gates":
            return skipping_euler(denoiser, noise_BCTHW, cond, sigmas, guidance)[0]
        return self.fixed(denoiser, sigmas).sample(denoiser, noise_BCTHW, cond, sigmas, guidance)

    def fixed(self, denoiser: Denoiser, sigmas: Sequence[float]) -> Fixed:
        """Return the steps with what the table skips left out; UserError where gates decide, and as ``sample``."""
        if self.options.skip == "gates":
            raise UserError(
                "the bundle is sampled by 'lazy', whose gates decide by each input what is skipped, and an exported "
                "graph is the same for all",
                mend="Name a table under 'export': 'sampler: {use: lazy, skip: table}'",
            )
        owners = need_gates(denoiser.module, sigmas)
        table = static_table(owners, self.options.ratio)
        calls = [computes for row in table.values() for computes in row]
        known = self.options.ratio is not None or not any(owner.skip_gate.is_meta for owner in owners.values())
        left = f"{calls.count(False)} of {len(calls)} calls" if known else "the calls whose mean is below 0.5"
        return Fixed(partial(tabled_euler, table=table), f"{left} of attention and FFN are left out")
