"""Data: latents of a Gaussian mixture, whose exact velocity is known."""

from __future__ import annotations

from math import prod
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from dit_compress.hooks import Plugin, VideoOptions, hookimpl

WORDS = (
    ("tiny", "little", "small", "medium", "big", "large"),
    ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan", "brown", "black", "white", "grey"),
    ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "ball", "box"),
    ("moving", "standing", "resting", "rotating", "turning", "bouncing", "growing", "shrinking"),
    ("left", "right", "up", "down"),
)
"""Words of each attribute, in the order of a caption: "a tiny red circle moving left"."""
MOST_NUMBERS = 4_000_000
"""Of all modes' means together: they are held in memory, and compared with every latent."""
MOST_DRAWN = 200_000_000
"""Of one split's latents together: 0.8 GB as float32, and several times that while they are drawn (in float64)."""

Cells = Annotated[int, Field(ge=1, le=1024)]


class MixtureOptions(VideoOptions):
    """The mixture, and how much is drawn of it.

    frames, size, channels: T, (H, W) and C of the latents.
    values: words that captions use of each attribute: sizes, colours, shapes, movements, directions.
    modes: modes of each caption, which it doesn't tell apart.
    spread: standard deviation within a mode; that of all latents is 1.
    composed: share of the variance of the modes' means that is a sum over the caption's words (and the mode's
        number); the rest is each mode's own, to be learnt by heart.
    num_clips, num_test: latents of the train and of the test split; the captions are the same.
    seed: another seed makes another mixture.
    """

    frames: int = Field(1, ge=1, le=64)
    size: tuple[Cells, Cells] = (2, 2)
    channels: int = Field(16, ge=1, le=1024)
    values: tuple[int, ...] = Field((6, 6, 6), min_length=1, max_length=len(WORDS))
    modes: int = Field(4, ge=1, le=4096)
    spread: float = Field(0.5, gt=0.01, lt=1)
    composed: float = Field(0.8, ge=0, le=1)
    num_clips: int = Field(50_000, ge=1, le=1_000_000)
    num_test: int = Field(1000, ge=1, le=1_000_000)
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (C, T, H, W) of a latent."""
        return (self.channels, self.frames, *self.size)

    @property
    def expected_clips(self) -> int:
        """Return the latents of both splits."""
        return self.num_clips + self.num_test

    @field_validator("values")
    @classmethod
    def _has_words(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        for place, (count, words) in enumerate(zip(values, WORDS, strict=False), start=1):
            if not 1 <= count <= len(words):
                raise ValueError(f"{count} words of attribute {place}, which has {len(words)}: give 1 to {len(words)}")
        return values

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (count := prod(self.values) * self.modes * prod(self.shape)) > MOST_NUMBERS:
            raise ValueError(
                f"the means of {prod(self.values) * self.modes} modes are {count} numbers, more than {MOST_NUMBERS}: "
                "give fewer 'values' or 'modes'"
            )
        clips = max(self.num_clips, self.num_test)
        if (count := clips * prod(self.shape)) > MOST_DRAWN:
            name = "num_clips" if clips == self.num_clips else "num_test"
            raise ValueError(
                f"{clips} latents of {list(self.shape)} are {count} numbers, more than {MOST_DRAWN}, and a split is "
                f"held in memory whole: set {name!r} to {MOST_DRAWN // prod(self.shape)} at most, or make them smaller"
            )
        return self


@hookimpl
def data() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="mixture",
        options=MixtureOptions,
        load="dit_compress_plugins.data_mixture.data:MixtureData",
        summary="latents of a Gaussian mixture with captions, whose exact velocity is known",
    )
