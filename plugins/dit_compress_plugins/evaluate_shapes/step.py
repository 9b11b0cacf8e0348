"""Generate videos for held-out captions and read their pixels; or read the codec's round trip of real clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.core.errors import UserError
from dit_compress.core.progress import progress
from dit_compress.data.clips import distinct
from dit_compress.data.samples import first_frames, to_pixels, to_video
from dit_compress.data.video import Gallery
from dit_compress.model.scene import summed_up
from dit_compress.step.context import Result
from dit_compress.step.sampling import Generator
from dit_compress_plugins.evaluate_shapes.scores import ATTRIBUTES, diversity, floors, score, summarise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dit_compress.data.clips import Clip
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_shapes import ShapesEvaluationOptions


class ShapesEvaluation:
    """Step ``evaluate: {use: shapes}``."""

    def __init__(self, options: ShapesEvaluationOptions) -> None:
        self.options = options
        self.notes: list[dict[str, float]] = []

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a VAE, and to generate a denoiser as well."""
        spec.need_latent()
        if self.options.source == "generated":
            spec.need_denoiser()
            if self.options.sampler is None:
                spec.need_sampled(self.options.num_steps)
        return spec

    def run(self, context: Context) -> Result:
        """Measure attribute accuracy, and what goes with it."""
        clips = distinct(context.clips("test"))[: self.options.num_captions]
        videos = self.generated(context, clips) if self.options.source == "generated" else self.real(context, clips)
        scores: list[Mapping[str, float]] = []
        spreads: list[float] = []
        gallery, column = Gallery(context.folder), self.column(context)
        for clip, group_NFYX3 in videos:
            scores += [score(video, truth_of(clip), clip.caption) for video in group_NFYX3]
            spreads.append(diversity(group_NFYX3))
            if self.options.source == "generated":
                gallery.add(clip.caption, {column: group_NFYX3[0]})
        metrics: dict[str, Any] = summarise(scores, len(scores) // len(clips))
        accuracy = {name: metrics.pop(name) for name in ATTRIBUTES}
        metrics |= {"diversity": float(np.mean(spreads)), "captions": len(clips), "videos": len(scores)}
        metrics["floors"] = floors([truth_of(clip) for clip in clips])
        if said := summed_up(self.notes):
            metrics["sampler"] = said
        return Result(metrics={**metrics, "accuracy": accuracy}, files=gallery.files())

    def column(self, context: Context) -> str:
        """Name the videos for the report."""
        if self.options.column:
            return self.options.column
        flow = context.input.flow
        guidance = flow.guidance if self.options.guidance is None else self.options.guidance
        steps = self.options.num_steps or flow.num_steps
        return f"{context.names['input']}, {steps} steps" + (f", guidance {guidance:g}" if guidance > 1 else "")

    def generated(self, context: Context, clips: list[Clip]) -> Iterator[tuple[Clip, np.ndarray]]:
        """Yield per caption its videos ``[N,F,Y,X,3]``; noise is a function of (seed, place)."""
        sampler = self.options.sampler
        sample = context.sampler() if sampler is None else sampler.build().sample
        generator = Generator(context.input, context.latent_shape(), sample)
        self.notes = generator.notes
        each = self.options.videos_per_caption
        captions = [clip.caption for clip in clips for _ in range(each)]
        made: list[np.ndarray] = []
        with progress(context.name, len(captions)) as advance:
            for first in range(0, len(captions), self.options.batch):
                chunk = captions[first : first + self.options.batch]
                some = [clips[place // each] for place in range(first, first + len(chunk))]
                index = range(first, first + len(chunk))
                made += list(
                    generator(
                        chunk,
                        seed=self.options.seed,
                        index=index,
                        num_steps=self.options.num_steps,
                        guidance=self.options.guidance,
                        first_BCYX=first_frames(some) if context.first_frame else None,
                    )
                )
                for _ in chunk:
                    advance()
        for place, clip in enumerate(clips):
            yield clip, np.stack(made[place * each : (place + 1) * each])

    def real(self, context: Context, clips: list[Clip]) -> Iterator[tuple[Clip, np.ndarray]]:
        """Yield real clips, or their round trip through the codec."""
        codec = context.input.codec().eval()
        for clip in clips:
            pixels = clip.pixels()[None]
            if self.options.source == "round_trip":
                with torch.no_grad():
                    pixels = to_pixels(codec.decode(codec.encode(to_video(torch.from_numpy(pixels)))))
            yield clip, pixels


def truth_of(clip: Clip) -> Mapping[str, Any]:
    """Return the clip's ground truth; the data must come from the shapes world."""
    if clip.truth is None:
        raise UserError(
            "the clip has no ground truth", where=str(clip.path), mend="Use clips written by 'data: {use: shapes}'"
        )
    return clip.truth
