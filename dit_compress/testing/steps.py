"""The context of a step at the size of seconds: clips drawn in memory, a bundle on disk, a context over both.

Nothing here needs a video file or the packages that decode one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.randomness import generator
from dit_compress.data.clips import Clip
from dit_compress.data.source import Data
from dit_compress.data.video import Facts
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.defaults import TINY_LATENT, TINY_MODEL, TINY_TEXT
from dit_compress.plugin.options import Part, Plugin, VideoOptions
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.step.context import Context
from dit_compress.testing.models import CAPTIONS, CHANNELS, tiny_denoiser, tiny_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.model.protocols import Codec

GRAIN = 12.0
"""Standard deviation of the clips' noise, of 255: no two pixels are the same thing twice."""


class DrawnOptions(VideoOptions):
    """Frames and size (Y, X) of every clip, and how many there are."""

    frames: int = 9
    size: tuple[int, int] = (32, 32)
    num_clips: int = 24


@dataclass(frozen=True)
class DrawnClip(Clip):
    """A bright square that moves over a sloping ground, with grain."""

    index: int = 0

    def pixels(self) -> np.ndarray:
        """Return ``[F,Y,X,3]`` uint8, the same at every call."""
        rng = generator(0, "drawn clip", self.index)
        (height, width), side = self.size, min(self.size) // 3
        ground, colour = rng.uniform(30, 220, (2, 3))
        slope = np.linspace(-60, 60, height)[:, None, None] * rng.uniform(-1, 1, 3)
        frames = np.broadcast_to(ground + slope, (self.frames, height, width, 3)).copy()
        y, x = rng.integers(0, height - side), rng.integers(0, width - side)
        for index, frame in enumerate(frames):
            left = (x + 2 * index) % (width - side)
            frame[y : y + side, left : left + side] = colour
        return np.clip(frames + rng.normal(0, GRAIN, frames.shape), 0, 255).astype(np.uint8)

    def look(self, most: int) -> Facts:
        """Return facts of a clip as long as is wanted."""
        return Facts(most, *self.size)

    def identity(self) -> list[Any]:
        """Return nothing: there is no file whose size and time could change."""
        return [self.index, self.frames, list(self.size)]


class DrawnClips(Data):
    """A source of clips (``hooks.Data``) that writes nothing."""

    def __init__(self, options: DrawnOptions) -> None:
        self.options = options

    def prepare(self, cache: Path) -> None:
        """Do nothing: there is nothing to write."""

    def manifest(self, cache: Path) -> list[dict[str, Any]]:
        """Return one record per clip."""
        return [clip.record() for split in ("train", "test") for clip in self.clips(cache, split)]

    def clips(self, cache: Path, split: str) -> Sequence[Clip]:  # noqa: ARG002 - the contract's signature
        """Return ``num_clips`` clips for training, a third as many held out."""
        options, count = self.options, self.options.num_clips
        chosen = range(count) if split == "train" else range(count, count + max(1, count // 3))
        return [
            DrawnClip(Path(f"{index}.mp4"), CAPTIONS[index % len(CAPTIONS)], None, options.frames, options.size,
                      index=index)
            for index in chosen
        ]  # fmt: skip


def drawn(frames: int = 9, size: tuple[int, int] = (32, 32), num_clips: int = 24) -> Part:
    """Return the source as a recipe's ``data`` would name it."""
    plugin = Plugin(name="drawn", options=DrawnOptions, load="dit_compress.testing.steps:DrawnClips")
    return Part("data", plugin, DrawnOptions(frames=frames, size=size, num_clips=num_clips))


def tiny_context(folder: Path, *, data: Part | None = None, **bundles: Bundle) -> Context:
    """Make the context of a step in ``folder``, over drawn clips and some bundles (``input=``, ``teacher=``)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = data or drawn()
    options = data.options
    assert isinstance(options, DrawnOptions)
    return Context(
        name="step",
        seed=0,
        folder=folder,
        cache=folder,
        bundles=bundles,
        names={},
        parts={"data": data},
        record={"kind": "step"},
        video=(options.frames, *options.size),
    )


def tiny_bundle(folder: Path) -> Bundle:
    """Make a whole bundle: the tiny reference DiT, a caption encoder, and a VAE that is PCA of the drawn clips."""
    codec = pca_codec()
    modules: dict[str, Any] = {"denoiser": tiny_denoiser(TINY_MODEL).module, "text": tiny_text().encoder}
    specs: dict[str, Any] = {}
    for name, (kind, plugin) in {"denoiser": ("model", TINY_MODEL), "text": ("text", TINY_TEXT)}.items():
        maker = make_part(kind, plugin, installed()).build()
        specs[name] = ComponentSpec(kind, plugin, maker.config_of(modules[name]))
    config: dict[str, Any] = {key: value for key, value in codec.config.items() if not key.startswith("_")}  # type: ignore[attr-defined]
    spec = Spec(video=(9, 32, 32), flow=Flow(), latent=ComponentSpec("latent", TINY_LATENT, config), **specs)
    return write_bundle(folder, spec, {**modules, "latent": codec}, base=None, lineage=())  # type: ignore[dict-item]


def pca_codec() -> Codec:
    """Make the built-in VAE at its start: PCA of 8x16x16 patches, as many channels as the tiny denoisers take."""
    import torch

    from dit_compress.data.samples import to_video

    given = {"use": TINY_LATENT, "ratio": "8x16x16", "channels": CHANNELS, "widths": [8, 8], "blocks": 1}
    step = make_part("latent", given, installed()).build()
    clips = DrawnClips(DrawnOptions()).clips(Path(), "train")
    videos = [to_video(torch.from_numpy(np.stack([clip.pixels() for clip in clips])))]
    vae = step.create()
    step.initialise(vae, videos)
    return step.finish(vae, videos)
