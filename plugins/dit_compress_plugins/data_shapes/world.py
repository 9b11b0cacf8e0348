"""The world of moving shapes: its vocabulary, how a scene is drawn at random, and its caption.

Every attribute of a scene is spelled in its caption. Positions alone are free. A scene shows one or two objects that
differ, or, where it was asked for, some that are alike: "three tiny red circles moving left slowly on a grey
background".

All shapes are regular polygons with a flat base, and all objects of one size have one *area*, whatever
their shape: size and shape can be read independently of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.randomness import generator
from dit_compress.data.clips import split_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.data.clips import Split

BACKGROUNDS = {"black": (16, 16, 16), "grey": (108, 108, 108), "white": (240, 240, 240)}
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 70), "blue": (50, 80, 220), "yellow": (240, 200, 40)}
SHAPES = {"circle": 24, "square": 4, "triangle": 3}
"""Corners of each shape."""
SIZES = {"small": 26 / 96, "large": 36 / 96}
"""Square root of the area, as a share of the frame's short side."""
TINY = {"tiny": 18 / 96}
"""The one size of objects that are alike: four of any shape fit."""
NUMBERS = ("one", "two", "three", "four")
SPEEDS = {"slow": 8 / 96, "fast": 20 / 96}
"""The distance an object moves from the first to the last frame, as a share of the frame's short side."""
ADVERBS = {"slow": "slowly", "fast": "fast"}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""(y, x), y pointing down."""

GRID = 16 / 96
"""Pitch of the grid on which the middles of paths lie, as a share of the frame's short side; 0 for none."""

_MARGIN = 2.0
"""Pixels between an object and the frame's edge."""
_GAP = 3.0
"""Pixels between two objects, at every moment."""
_PLACES = 128
"""Places tried at once for the objects of a scene."""
_ATTEMPTS, _ENOUGH = 4_000, 2
"""Scenes drawn to see whether a world has any, and how many must do: fewer, and drawing its clips would not end."""


@dataclass(frozen=True)
class Thing:
    """One object: its attributes, and where its centre is in the first frame (pixels)."""

    shape: str
    colour: str
    size: str
    direction: str
    speed: str
    start: tuple[float, float] = (0.0, 0.0)

    def phrase(self, number: str = "a") -> str:
        """Return the thing's part of the caption; of so many alike, where a number is given."""
        plural = "" if number in ("a", NUMBERS[0]) else "s"
        return f"{number} {self.size} {self.colour} {self.shape}{plural} moving {self.direction} {ADVERBS[self.speed]}"


@dataclass(frozen=True)
class Scene:
    """The content of one clip. The things stand in the order of the caption."""

    background: str
    things: tuple[Thing, ...]

    @property
    def alike(self) -> bool:
        """True where the things differ in nothing but their places."""
        return all(thing.size in TINY for thing in self.things)

    def caption(self) -> str:
        """Name every attribute, in words."""
        if self.alike:
            said = self.things[0].phrase(NUMBERS[len(self.things) - 1])
        else:
            said = " and ".join(thing.phrase() for thing in self.things)
        return f"{said} on a {self.background} background"

    def truth(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return the scene as JSON data, with all that an evaluator must know of the world."""
        world = spec(size, TINY if self.alike else SIZES)
        return {"background": self.background, "objects": [vars(thing) for thing in self.things], "world": world}


def spec(size: tuple[int, int], sizes: Mapping[str, float] = SIZES) -> dict[str, Any]:
    """Return the vocabulary in pixels of a (Y, X) frame, as JSON data."""
    side = min(size)
    return {
        "backgrounds": BACKGROUNDS,
        "colours": COLOURS,
        "shapes": SHAPES,
        "directions": DIRECTIONS,
        "sizes": {name: round(share * side, 3) for name, share in sizes.items()},
        "speeds": {name: round(share * side, 3) for name, share in SPEEDS.items()},
    }


def draw_scene(
    seed: int,
    split: Split,
    index: int,
    *,
    size: tuple[int, int],
    max_objects: int,
    test_fraction: float,
    grid: float = GRID,
    alike: int = 0,
) -> Scene:
    """Draw the scene of one clip: a function of its arguments, of the split that its caption hashes to.

    alike: so many objects at most that are alike, instead of ``max_objects`` that differ.
    """
    rng = generator(seed, f"shapes/{split}", index)
    count = int(rng.integers(1, (alike or max_objects) + 1))
    while True:  # it ends: options whose scenes are_rare are refused
        scene = _attempt(rng, split, count, size, test_fraction, grid, alike=bool(alike))
        if scene is not None:
            return scene


@lru_cache(maxsize=64)
def are_rare(
    split: Split, count: int, size: tuple[int, int], test_fraction: float, grid: float, *, alike: bool = False
) -> bool:
    """Tell whether of many scenes of ``count`` objects hardly one is of a split and finds places in the frame."""
    rng = generator(0, f"shapes/rare/{split}", count)
    attempts = (_attempt(rng, split, count, size, test_fraction, grid, alike=alike) for _ in range(_ATTEMPTS))
    return sum(1 for _ in islice((scene for scene in attempts if scene), _ENOUGH)) < _ENOUGH


def _attempt(
    rng: np.random.Generator,
    split: Split,
    count: int,
    size: tuple[int, int],
    test_fraction: float,
    grid: float,
    *,
    alike: bool,
) -> Scene | None:
    """Draw a scene; None where it is of the other split, or its objects don't fit (as many pairs of large ones)."""
    background = _pick(rng, BACKGROUNDS)
    things = count * (_draw_thing(rng, _pick(rng, COLOURS), TINY),) if alike else _draw_things(rng, count)
    if split_of(Scene(background, things).caption(), test_fraction) != split:
        return None
    placed = _place(rng, things, size, grid)
    return None if placed is None else Scene(background, placed)


def path_of(thing: Thing, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Return the centre in each frame, ``[F,2]`` (y, x) in pixels."""
    time_F = np.linspace(0.0, 1.0, num_frames)
    return np.asarray(thing.start) + time_F[:, None] * _move(thing, size)


def apothem(thing: Thing, size: tuple[int, int]) -> float:
    """Return the distance from the centre to a side: a regular n-gon has the area n·a²·tan(π/n)."""
    corners = SHAPES[thing.shape]
    return (SIZES | TINY)[thing.size] * min(size) / math.sqrt(corners * math.tan(math.pi / corners))


def normals(corners: int) -> np.ndarray:
    """Return the outward normals ``[n,2]`` (y, x) of the sides of a regular polygon with a flat base."""
    angle = math.pi / 2 + 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _pick(rng: np.random.Generator, names: dict[str, Any] | Sequence[str]) -> str:
    return list(names)[rng.integers(len(names))]


def _draw_things(rng: np.random.Generator, count: int) -> tuple[Thing, ...]:
    """Draw objects without a place, of different colours, in the order of their phrases."""
    colours = [list(COLOURS)[index] for index in rng.permutation(len(COLOURS))[:count]]
    return tuple(sorted((_draw_thing(rng, colour, SIZES) for colour in colours), key=Thing.phrase))


def _draw_thing(rng: np.random.Generator, colour: str, sizes: dict[str, float]) -> Thing:
    return Thing(_pick(rng, SHAPES), colour, _pick(rng, sizes), _pick(rng, DIRECTIONS), _pick(rng, SPEEDS))


def _move(thing: Thing, size: tuple[int, int]) -> np.ndarray:
    """Return the displacement (y, x) from the first to the last frame."""
    return np.asarray(DIRECTIONS[thing.direction]) * (SPEEDS[thing.speed] * min(size))


def _box(thing: Thing, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest corner (y, x), relative to the centre."""
    corners = SHAPES[thing.shape]
    angle = math.pi / 2 + math.pi * (2 * np.arange(corners) + 1) / corners
    reach = apothem(thing, size) / math.cos(math.pi / corners)
    corner = reach * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return corner.min(axis=0), corner.max(axis=0)


def _starts(
    rng: np.random.Generator, first: np.ndarray, last: np.ndarray, move: np.ndarray, pitch: float
) -> np.ndarray | None:
    """Return starting places ``[N,2]`` from ``first`` to ``last``; with a pitch, middles of paths lie on a grid.

    None where the grid has no place for the path.
    """
    share = rng.random((_PLACES, 2))
    if not pitch:
        return first + share * (last - first)
    low, high = np.ceil((first + move / 2) / pitch), np.floor((last + move / 2) / pitch)
    if (high < low).any():
        return None
    return (low + np.floor(share * (high - low + 1))) * pitch - move / 2


def _place(
    rng: np.random.Generator, things: tuple[Thing, ...], size: tuple[int, int], grid: float
) -> tuple[Thing, ...] | None:
    """Choose starting places that keep objects inside the frame and apart; None where none was found."""
    time = np.linspace(0.0, 1.0, 9)[None, :, None]
    lows, highs, starts = [], [], []
    for thing in things:
        low, high = _box(thing, size)
        move = _move(thing, size)
        first = _MARGIN - low - np.minimum(move, 0.0)
        last = np.asarray(size) - _MARGIN - high - np.maximum(move, 0.0)
        start = _starts(rng, first, last, move, grid * min(size))
        if start is None:
            return None
        centre = start[:, None] + time * move
        lows.append(centre + low)
        highs.append(centre + high)
        starts.append(start)
    apart = np.ones(_PLACES, dtype=bool)
    for one, other in combinations(range(len(things)), 2):
        gap = np.maximum(lows[other] - highs[one], lows[one] - highs[other]).max(axis=2)
        apart &= gap.min(axis=1) >= _GAP
    if not apart.any():
        return None
    best = int(np.argmax(apart))
    return tuple(
        Thing(**{**vars(thing), "start": tuple(np.round(start[best], 3).tolist())})
        for thing, start in zip(things, starts, strict=True)
    )
