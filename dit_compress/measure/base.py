"""The common part of evaluations that call a bundle's denoiser on its latents. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compress.step.protocols import Step

if TYPE_CHECKING:
    from dit_compress.model.spec import Spec
    from dit_compress.plugin.options import Options


class DenoiserEvaluation(Step):
    """A step that measures a denoiser. A plugin adds ``run``."""

    options: Any

    def __init__(self, options: Options) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a denoiser, and latents for it."""
        spec.need_denoiser()
        spec.need_latent()
        return spec
