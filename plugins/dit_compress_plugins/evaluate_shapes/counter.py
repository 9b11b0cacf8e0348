"""How many objects a caption says, and how many are seen: by their colour and shape.

An object whose shape can't be read counts by its colour alone: how well shapes are drawn is another score's business.

Shapes: F frames of Y × X pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_compress.data.samples import to_pixels
from dit_compress_plugins.evaluate_shapes.reader import read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from dit_compress_plugins.evaluate_shapes import CounterOptions
    from dit_compress_plugins.evaluate_shapes.reader import Reading, Track

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
VOCABULARY: dict[str, dict[str, Any]] = {
    "backgrounds": {"black": (16, 16, 16), "grey": (108, 108, 108), "white": (240, 240, 240)},
    "colours": {"red": (220, 40, 40), "green": (40, 190, 70), "blue": (50, 80, 220), "yellow": (240, 200, 40)},
    "shapes": {"circle": 24, "square": 4, "triangle": 3},
    "directions": {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)},
    "speeds": {"slow": 8 / 96, "fast": 20 / 96},
}
"""What a counter sees that has no ground truth to read it from: the world of ``data: shapes``, whose speeds are shares
of the short side."""


@dataclass(frozen=True)
class Wanted:
    """Objects that a caption numbers. span: of the noun in the caption. colour: None where it names none."""

    number: int
    colour: str | None
    shape: str
    span: tuple[int, int]

    def among(self, reading: Reading) -> list[Track]:
        """Return those that are seen, those of a shape that can't be read included."""
        return [
            track for track in reading.tracks
            if track.shape in (None, self.shape) and self.colour in (None, track.colour)
        ]  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Objects of one kind that were wanted, and the pixels of those seen, each ``[F,Y,X]``."""

    span: tuple[int, int]
    wanted: int
    masks_NFYX: list[np.ndarray]


def wanted_of(caption: str, world: Mapping[str, Any]) -> list[Wanted]:
    """Return what a caption numbers, in digits or words: "three tiny red circles"; "a" and "the" are no numbers."""
    words = list(re.finditer(r"\w+", caption.lower()))
    found: list[Wanted] = []
    number, colour = 0, None
    for word in words:
        text = word[0]
        noun = text.removesuffix("s")
        if text in NUMBERS or (text.isascii() and text.isdecimal()):
            number, colour = NUMBERS.get(text) or int(text), None
        elif text in world["colours"]:
            colour = text
        elif noun in world["shapes"]:
            if number:
                found.append(Wanted(number, colour, noun, word.span()))
            number, colour = 0, None
    return found


def count_scores(reading: Reading, caption: str, world: Mapping[str, Any]) -> dict[str, float]:
    """Return ``exact_count``, 1 where every number is right, and ``count_distance``, how many are missing or too many.

    Empty where the caption has no number.
    """
    wanted = wanted_of(caption, world)
    if not wanted:
        return {}
    away = [abs(len(each.among(reading)) - each.number) for each in wanted]
    return {"exact_count": float(not any(away)), "count_distance": sum(away) / len(away)}


class ShapesCounter:
    """Counts moving shapes in videos, on the CPU; follows ``Counter`` of ``sampler: count``."""

    def __init__(self, options: CounterOptions) -> None:
        self.options = options

    def __call__(self, video_BCFYX: Tensor, captions: Sequence[str]) -> list[list[Found]]:
        """Return of each video what its caption numbers."""
        return [self.counted(one, caption) for one, caption in zip(to_pixels(video_BCFYX), captions, strict=True)]

    def counted(self, video_FYX3: np.ndarray, caption: str) -> list[Found]:
        """Count in one video, uint8."""
        size = video_FYX3.shape[:3]
        side = min(size[1:])
        world = {**VOCABULARY, "sizes": {"any": self.options.smallest * side}}
        world["speeds"] = {name: share * side for name, share in VOCABULARY["speeds"].items()}
        wanted = wanted_of(caption, world)
        if not wanted:
            return []
        reading = read(video_FYX3, world)
        return [
            Found(each.span, each.number, [track.part.whole(size) for track in each.among(reading)]) for each in wanted
        ]


class CounterPart:
    """Part ``counter: {use: shapes}``."""

    def __init__(self, options: CounterOptions) -> None:
        self.options = options

    def create(self) -> ShapesCounter:
        """Make it."""
        return ShapesCounter(self.options)
