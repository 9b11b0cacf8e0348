"""Two denoisers, one trajectory: which of them is called depends on sigma alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.flow import euler
from dit_compress.model.protocols import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress_plugins.sampler_experts import ExpertsOptions


class ExpertsSampler(Sampler):
    """The denoiser that is given, and the one of ``options.other`` at the sigmas that its bundle states."""

    def __init__(self, options: ExpertsOptions) -> None:
        self.options = options
        bundle = Bundle.open(options.other)
        if bundle.flow.between is None:
            raise UserError(
                "no expert: the bundle is for every sigma",
                where=options.other,
                mend="Name the bundle of the pipeline's other part: model: {…, part: transformer_2}",
            )
        self.flow = bundle.flow
        self._bundle = bundle
        self._other: Denoiser | None = None

    def sample(
        self, denoiser: Denoiser, noise_BCTHW: Tensor, cond: Cond, sigmas: Sequence[float], guidance: float = 1.0
    ) -> Tensor:
        """Turn noise into a clean latent; differentiable by the denoiser that is given."""
        x, theirs = noise_BCTHW, guidance if self.options.guidance is None else self.options.guidance
        for now, then in pairwise(sigmas):
            mine = not self.flow.has(now)
            x = euler(denoiser if mine else self.other(x), x, cond, (now, then), guidance if mine else theirs)
        return x

    def other(self, like: Tensor) -> Denoiser:
        """Return the other expert where a latent is, loaded when it is first called."""
        if self._other is None:
            self._other = self._bundle.denoiser().eval()
        return self._other.to(like.device)
