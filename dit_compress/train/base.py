"""The common part of all distillers: what they ask of a bundle, and the engine's training around their objective.

Imports no torch, so that a plugin of one file can subclass it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from dit_compress.core.errors import UserError
from dit_compress.train.objective import Distiller
from dit_compress.train.options import DistillOptions

if TYPE_CHECKING:
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context, Result
    from dit_compress.train.options import TrainOptions


class DistillStep(Distiller):
    """A step that trains. A plugin adds ``objective``, and ``flow`` where the result is sampled in another way."""

    options: Any
    samples_whole: ClassVar[bool] = False
    """True where training samples the student from noise to data, which no expert for some sigmas can do."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle as it will be sampled; training changes weights besides."""
        spec.need_denoiser()
        spec.need_latent()
        watched = isinstance(self.options, DistillOptions) and self.options.watch is not None
        if self.samples_whole or watched:
            spec.flow.need_whole("this training" if self.samples_whole else "'watch'")
        takes_images = isinstance(self.options, DistillOptions) and self.options.images
        if takes_images and (frames := spec.outline().patch[0]) > 1:
            raise UserError(
                f"'images' are single latent frames, and a token of this denoiser takes {frames}",
                mend="Take 'images' out, or a model with a patch of one frame",
            )
        return replace(spec, flow=self.flow(spec.flow))

    def run(self, context: Context) -> Result:
        """Train by the one loop: optimisers, averages, checkpoints, resume, several processes."""
        from dit_compress.train.distill import distill

        return distill(self, context)

    def flow(self, before: Flow) -> Flow:
        """Return how the result is meant to be sampled: as its input."""
        return before
