"""Encode and decode test clips, and measure how near the result is. Its videos are the report's first two columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dit_compress.core.progress import progress
from dit_compress.data.clips import distinct
from dit_compress.data.samples import to_pixels, to_video
from dit_compress.data.video import Gallery
from dit_compress.step.context import Result
from dit_compress_plugins.evaluate_psnr.psnr import PEAK_UINT8, psnr_per_clip, summarise

if TYPE_CHECKING:
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_psnr import PsnrOptions


class PsnrEvaluation:
    """Step ``evaluate: {use: psnr}``."""

    def __init__(self, options: PsnrOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a VAE."""
        spec.need_latent()
        return spec

    def run(self, context: Context) -> Result:
        """Measure PSNR over test clips."""
        clips = distinct(context.clips("test"))[: self.options.num_clips]
        codec = context.input.codec().eval()
        gallery = Gallery(context.folder)
        decibels: list[float] = []
        with progress(context.name, len(clips)) as advance:
            for first in range(0, len(clips), self.options.batch):
                chunk = clips[first : first + self.options.batch]
                real = np.stack([clip.pixels() for clip in chunk])
                with torch.no_grad():
                    decoded = to_pixels(codec.decode(codec.encode(to_video(torch.from_numpy(real)))))
                decibels += psnr_per_clip(decoded, real, PEAK_UINT8)
                for clip, before, after in zip(chunk, real, decoded, strict=True):
                    gallery.add(clip.caption, {"real": before, "VAE round trip": after})
                    advance()
        return Result(metrics=summarise(decibels), files=gallery.files())
