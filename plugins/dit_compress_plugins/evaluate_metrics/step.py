"""Generate a video for each test clip's caption, and compare: by pairs, with the caption, as a distribution.

Shapes: N videos of F frames of Y × X pixels, uint8 ``[N,F,Y,X,3]``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.core.errors import UserError
from dit_compress.core.progress import progress
from dit_compress.core.randomness import generator as random
from dit_compress.data.samples import to_video
from dit_compress.data.video import evenly
from dit_compress.measure.similarity import MIN_SIDE, similarity
from dit_compress.step.context import Result
from dit_compress.step.sampling import Generator
from dit_compress_plugins.evaluate_metrics.distances import distance, mean
from dit_compress_plugins.evaluate_metrics.judges import CLIP, Backbone, need_judge
from dit_compress_plugins.evaluate_metrics.lpips import LPIPS
from dit_compress_plugins.evaluate_metrics.lpips import MIN_SIDE as LPIPS_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dit_compress.data.clips import Clip
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_metrics import MetricsOptions

Videos = dict[str, np.ndarray]
"""Of one clip, ``[F,Y,X,3]``: ``made``, ``reference`` (of the pair), ``real``, ``noise``; ``other``, of training."""


class MetricsEvaluation:
    """Step ``evaluate: {use: metrics}``."""

    def __init__(self, options: MetricsOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Check that there is what draws, that judges are there and no pickles, and that frames are large enough."""
        spec.need_latent()
        spec.need_denoiser()
        spec.need_sampled(self.options.num_steps)
        need_judge(self.options.clip)
        need_judge(self.options.lpips, files=(".safetensors",))
        need_judge(self.options.fid, files=(".onnx",))
        need_judge(self.options.fvd, files=(".onnx",))
        side, by = (LPIPS_SIDE, "LPIPS") if self.options.lpips else (MIN_SIDE, "SSIM")
        if spec.video is not None and min(spec.video[1:]) < side:
            what = f"frames of {spec.video[1]}x{spec.video[2]} pixels: {by} needs {side} a side"
            raise UserError(what, mend="Give the data a larger 'size'")
        return spec

    def run(self, context: Context) -> Result:
        """Measure."""
        judges = Judges(self.options)
        clips = context.clips("test")[: self.options.num_clips]
        if len(clips) < 2:
            raise UserError("one test clip: an error needs two", mend="Give the data more clips")
        captions = [clip.caption for clip in clips]
        with progress(context.name, len(clips)) as advance:
            for videos, caption, following in zip(
                self.videos(context, clips), captions, [*captions[1:], captions[0]], strict=True
            ):
                judges.see(videos, caption, following)
                advance()
        return Result(metrics={**judges.figures(), "videos": len(clips), "frames": self.options.frames})

    def videos(self, context: Context, clips: Sequence[Clip]) -> Iterator[Videos]:
        """Yield what is compared, clip by clip; a video's noise is a function of (seed, place)."""
        draws = Generator(context.input, context.latent_shape(), context.sampler())
        against = context.slot("against")
        draws_other = None if against is None else Generator(against, context.latent_shape())
        train = context.clips("train")
        others = [train[place] for place in evenly(min(len(clips), len(train)), len(train))]
        for first in range(0, len(clips), self.options.batch):
            chunk = list(clips[first : first + self.options.batch])
            made = self.drawn(draws, chunk, first)
            reference = None if draws_other is None else self.drawn(draws_other, chunk, first)
            for place, clip in enumerate(chunk):
                real = clip.pixels()
                noise = random(self.options.seed, "noise", first + place).integers(0, 256, real.shape, np.uint8)
                pair = real if reference is None else reference[place]
                found = {"made": made[place], "reference": pair, "real": real, "noise": noise}
                yield found | ({"other": others[first + place].pixels()} if first + place < len(others) else {})

    def drawn(self, draws: Generator, chunk: Sequence[Clip], first: int) -> np.ndarray:
        """Draw a video for each caption."""
        options = self.options
        index = range(first, first + len(chunk))
        captions = [clip.caption for clip in chunk]
        return draws(captions, seed=options.seed, index=index, num_steps=options.num_steps, guidance=options.guidance)


class Judges:
    """Those that the options name, and what they said so far."""

    def __init__(self, options: MetricsOptions) -> None:
        self.frames = options.frames
        self.clip = CLIP(options.clip) if options.clip else None
        self.pairs: dict[str, Any] = {"ssim": ssim} | ({"lpips": LPIPS(Path(options.lpips))} if options.lpips else {})
        self.backbones = {"fid": Backbone(options.fid, videos=False, frames=options.frames)} if options.fid else {}
        if options.fvd:
            self.backbones["fvd"] = Backbone(options.fvd, videos=True)
        self.scores: dict[str, list[float]] = defaultdict(list)
        self.features: dict[str, dict[str, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.before: np.ndarray | None = None

    def see(self, videos: Videos, caption: str, other_caption: str) -> None:
        """Judge the videos of one clip."""
        chosen = evenly(self.frames, len(videos["made"]))
        for name, pair in self.pairs.items():
            ours, wanted, noise = (
                as_frames(videos[which] if name == "ssim" else videos[which][chosen])
                for which in ("made", "reference", "noise")
            )
            self.scores[name].append(pair(ours, wanted))
            self.scores[f"{name}_noise"].append(pair(noise, wanted))
            if self.before is not None:
                before = as_frames(self.before if name == "ssim" else self.before[chosen])
                self.scores[f"{name}_unrelated"].append(pair(before, wanted))
        self.before = videos["reference"]
        if self.clip is not None:
            for name, which, text in (
                ("clip_score", "made", caption), ("clip_score_real", "real", caption),
                ("clip_score_other_caption", "made", other_caption), ("clip_score_noise", "noise", caption),
            ):  # fmt: skip
                self.scores[name].append(self.clip(videos[which][chosen], text))
        for name, backbone in self.backbones.items():
            for which in videos.keys() - {"reference"}:
                self.features[name][which].append(backbone(videos[which]))

    def figures(self) -> dict[str, Any]:
        """Return every figure with its error, and its floors without."""
        found: dict[str, Any] = {}
        for name, values in self.scores.items():
            found |= mean(name, values) if name in (*self.pairs, "clip_score") else {name: float(np.mean(values))}
        for name, features in self.features.items():
            found |= distance(name, features)
        return found


def as_frames(video_FYX3: np.ndarray) -> torch.Tensor:
    """Turn uint8 into float ``[F,3,Y,X]`` in [-1, 1]."""
    return to_video(torch.from_numpy(video_FYX3)[None])[0].transpose(0, 1)


def ssim(ours_F3YX: torch.Tensor, theirs_F3YX: torch.Tensor) -> float:
    """Return structural similarity, a mean over frames."""
    return float(similarity((ours_F3YX + 1) * 127.5, (theirs_F3YX + 1) * 127.5).mean())
