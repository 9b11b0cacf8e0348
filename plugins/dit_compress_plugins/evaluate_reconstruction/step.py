"""Encode and decode test clips, and measure how near the result is, clip by clip.

The first captions' videos are the report's first two columns; the worst clips have a table of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.core.errors import UserError
from dit_compress.core.progress import progress
from dit_compress.data.buckets import buckets_of
from dit_compress.data.clips import find_broken, raise_all
from dit_compress.data.samples import to_pixels, to_video
from dit_compress.data.video import Gallery
from dit_compress.model.spec import latent_size
from dit_compress.step.context import Result
from dit_compress_plugins.evaluate_reconstruction import MIN_SIDE
from dit_compress_plugins.evaluate_reconstruction.measures import distances

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dit_compress.data.clips import Clip
    from dit_compress.model.protocols import Codec
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress_plugins.evaluate_reconstruction import ReconstructionOptions
    from dit_compress_plugins.evaluate_reconstruction.measures import Distances

NUM_WORST = 3
"""Clips shown beside what became of them."""


@dataclass(frozen=True)
class Measured:
    """A clip as it is and decoded, and the distance of the two."""

    clip: Clip
    real: np.ndarray
    decoded: np.ndarray
    found: Distances

    def row(self, name: str) -> dict[str, Any]:
        """Return the clip's row of the table, under a name; ``worst_frame`` counts from 0."""
        frame = int(np.argmin(self.found.frames_db))
        return {
            "clip": name,
            "video": list(self.clip.shape),
            "psnr_db": self.found.psnr_db,
            "ssim": self.found.ssim,
            "temporal_difference_error": self.found.temporal,
            "worst_frame": frame,
            "worst_frame_psnr_db": self.found.frames_db[frame],
        }


class ReconstructionEvaluation:
    """Step ``evaluate: {use: reconstruction}``."""

    def __init__(self, options: ReconstructionOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Check that there is a VAE, that it takes videos of the size that is measured, and that clips are as long."""
        spec.need_latent()
        if spec.video is not None:
            video = self.options.video_of(spec.video)
            need_size(video, spec.codec())
            if spec.longest is not None and video[0] > spec.longest:
                mend = "Give the step fewer 'frames', or the data more"
                raise UserError(f"the data's clips have {spec.longest} frames, {video[0]} are wanted", mend=mend)
        return spec

    def run(self, context: Context) -> Result:
        """Measure test clips, show some, and the worst."""
        clips = [self._sized(clip) for clip in context.clips("test")[: self.options.num_clips]]
        need_measurable(clips, context.input.codec())
        names = names_of(clips, context.parts["data"].build().place)
        first, last = Gallery(context.folder), Gallery(context.folder, "worst", NUM_WORST)
        rows: dict[str, dict[str, Any]] = {}
        worst: list[Measured] = []
        with progress(context.name, len(clips)) as advance:
            for measured in self.measured(context, clips):
                rows[str(measured.clip.path)] = measured.row(names[measured.clip.path])
                first.add(measured.clip.caption, {"real": measured.real, "VAE round trip": measured.decoded})
                worst = sorted([*worst, measured], key=lambda one: (one.found.psnr_db, names[one.clip.path]))[
                    :NUM_WORST
                ]
                advance()
        for one in worst:
            last.add(names[one.clip.path], {"original": one.real, "reconstruction": one.decoded})
        files = first.files() | last.files()
        return Result(metrics=summarise([rows[str(clip.path)] for clip in clips]), files=files)

    @torch.no_grad()
    def measured(self, context: Context, clips: Sequence[Clip]) -> Iterator[Measured]:
        """Yield clips encoded and decoded, in batches of one size."""
        codec = context.input.codec().eval()
        for places in buckets_of(clips).values():
            for first in range(0, len(places), self.options.batch):
                chunk = [clips[place] for place in places[first : first + self.options.batch]]
                real = np.stack([clip.pixels() for clip in chunk])
                decoded = to_pixels(codec.decode(codec.encode(to_video(torch.from_numpy(real)))))
                for clip, before, after in zip(chunk, real, decoded, strict=True):
                    yield Measured(clip, before, after, distances(after, before))

    def _sized(self, clip: Clip) -> Clip:
        """Return the clip at the size that is measured."""
        frames, height, width = self.options.video_of(clip.shape)
        return replace(clip, frames=frames, size=(height, width))


def names_of(clips: Sequence[Clip], place: str) -> dict[Path, str]:
    """Name clips by their paths below the data's folder, or of a source without one below the folder of them all."""
    paths = [clip.path for clip in clips]
    folder = Path(place) if place else Path(os.path.commonpath([path.parent for path in paths]))
    if not any(path.is_relative_to(folder) for path in paths):
        folder = folder.parent  # of a table
    return {path: (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix() for path in paths}


def need_size(video: tuple[int, int, int], codec: Codec) -> None:
    """Raise a UserError where SSIM's window does not fit into frames, or the VAE does not take such a video."""
    if min(video[1:]) < MIN_SIDE:
        raise UserError(
            f"frames of {video[1]}x{video[2]} pixels: SSIM needs {MIN_SIDE} a side",
            mend="Give the step a larger 'size'",
        )
    latent_size(video, codec.ratio, codec.frame_rule)


def need_measurable(clips: Sequence[Clip], codec: Codec) -> None:
    """Look at every clip; raise one UserError of sizes that can't be measured, and of clips that are too short."""
    problems: list[UserError] = []
    for video, places in buckets_of(clips).items():
        try:
            need_size(video, codec)
        except UserError as error:
            error.problems = [(str(clips[places[0]].path), what, mend) for _, what, mend in error.problems]
            problems.append(error)
    try:
        find_broken(clips)
    except UserError as error:
        problems.append(error)
    raise_all(problems)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average over clips (of decibels, not of errors), name the worst clip and the worst frame; with every row."""
    changes = [row["temporal_difference_error"] for row in rows if row["temporal_difference_error"] is not None]
    worst, frame = (min(rows, key=lambda row: row[name]) for name in ("psnr_db", "worst_frame_psnr_db"))
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("psnr_db", "ssim")}
    if changes:
        means["temporal_difference_error"] = float(np.mean(changes))
    return {
        **means,
        "psnr_worst_clip_db": worst["psnr_db"],
        "psnr_worst_frame_db": frame["worst_frame_psnr_db"],
        "worst_clip": worst["clip"],
        "worst_frame": [frame["clip"], frame["worst_frame"]],
        "video": rows[0]["video"],
        "num_clips": len(rows),
        "clips": list(rows),
    }
