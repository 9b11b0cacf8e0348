"""Pixels of a video → the objects in it, with their attributes. Nothing learned, nothing random.

What may be seen stands in ``world``, the vocabulary that every ground truth carries: ``backgrounds`` and
``colours`` (name → red, green, blue), ``shapes`` (name → corners of a regular polygon with a flat base),
``sizes`` (name → square root of the area, pixels), ``speeds`` (name → pixels from first to last frame),
``directions`` (name → y, x).

Each pixel is taken as a mixture of the background and one colour; the share of the colour is its
*coverage*, so that smooth edges, blur and compression count with the weight they have. An attribute that
is too far from everything in the vocabulary is read as None.

Suffixes: F frames, Y X pixels, N pixels of all frames, M palette, K colours, L labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FAR = 90.0
"""Largest distance of a pixel (RGB, 0 … 255) from what it is taken for."""
_MIN_AREA = 0.35
"""Smallest area of an object, as a share of the smallest size's."""
_MIN_FRAMES = 0.5
"""Share of the frames in which an object must be seen."""
_MIN_OVERLAP = 0.75
"""Least overlap (intersection over union) with the best of the shapes."""
_MAX_FACTOR = 1.8
"""Largest factor between a length and the size or speed it is taken for."""


@dataclass(frozen=True)
class Part:
    """A mask ``[F,y,x]`` in a box of the picture that starts at ``top, left``."""

    mask: np.ndarray
    top: int
    left: int

    @property
    def present_F(self) -> np.ndarray:
        """In which frames it is seen."""
        return np.asarray(self.mask.any(axis=(1, 2)))

    def crop(self, picture_FYX: np.ndarray) -> np.ndarray:
        """Return the box of a whole picture."""
        _, height, width = self.mask.shape
        return picture_FYX[:, self.top : self.top + height, self.left : self.left + width]

    def whole(self, size: tuple[int, ...]) -> np.ndarray:
        """Return the mask of the whole picture, ``[F,Y,X]``."""
        mask = np.zeros(size, dtype=bool)
        self.crop(mask)[:] = self.mask
        return mask


@dataclass(frozen=True)
class Track:
    """One object, followed through the clip.

    shape … speed: the attributes; None where nothing in the vocabulary is near.
    present_F: in which frames it was seen.
    centre_F2: its centroid (y, x) in pixels; NaN where it was not seen.
    area_F: its area in pixels, 0 where it was not seen.
    displacement: (y, x) from the first to the last frame, by a straight line through the centroids.
    part: its pixels.
    """

    shape: str | None
    colour: str
    size: str | None
    direction: str | None
    speed: str | None
    present_F: np.ndarray
    centre_F2: np.ndarray
    area_F: np.ndarray
    displacement: tuple[float, float]
    part: Part


@dataclass(frozen=True)
class Reading:
    """The content of one video. ``covered_FYX`` is the share of each pixel that is not background."""

    background: str | None
    tracks: tuple[Track, ...]
    covered_FYX: np.ndarray


def read(video_FYX3: np.ndarray, world: Mapping[str, Any]) -> Reading:
    """Read a video ``[F,Y,X,3]`` uint8."""
    # Channels first: NumPy reduces a short last axis slowly.
    pixels_3N = np.ascontiguousarray(video_FYX3.reshape(-1, 3).T, dtype=np.float32)
    background = _background(pixels_3N, world)
    if background is None:
        return Reading(None, (), np.ones(video_FYX3.shape[:3], dtype=np.float32))
    coverage_N, colour_N = _separate(pixels_3N, world["backgrounds"][background], world)
    coverage, colour = (found.reshape(video_FYX3.shape[:3]) for found in (coverage_N, colour_N))
    tracks = []
    for index, name in enumerate(world["colours"]):
        mask = (colour == index) & (coverage > 0.5)
        tracks += [_track(coverage, part, name, world) for part in _objects(mask, world)]
    return Reading(background, tuple(tracks), coverage)


# ------------------------------------------------------------------ pixels


def _background(pixels_3N: np.ndarray, world: Mapping[str, Any]) -> str | None:
    """Return the background that most pixels are nearest to, if they are a good part of the picture."""
    names = list(world["backgrounds"])
    palette_M3 = np.asarray([*world["backgrounds"].values(), *world["colours"].values()], dtype=np.float32)
    squared_MN = np.square(palette_M3).sum(axis=1, keepdims=True) - 2 * _product(palette_M3, pixels_3N)
    nearest = _nearest_row(squared_MN + np.square(pixels_3N).sum(axis=0))
    counts = [int((nearest == index).sum()) for index in range(len(names))]
    best = int(np.argmax(counts))
    return names[best] if counts[best] > nearest.size / 4 else None


def _separate(
    pixels_3N: np.ndarray,
    background: Sequence[int],
    world: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Describe each pixel as a mixture of the background and its best colour.

    Returns:
        coverage ``[N]`` in 0 … 1, and the colour's index ``[N]``; 1 and -1 where no mixture comes near.
    """
    base_31 = np.asarray(background, dtype=np.float32)[:, None]
    offset_3N = pixels_3N - base_31
    line_K3 = np.asarray(list(world["colours"].values()), dtype=np.float32) - base_31.T
    length_K1 = np.square(line_K3).sum(axis=1, keepdims=True)
    along_KN = _product(line_K3, offset_3N)
    share_KN = np.clip(along_KN / length_K1, 0.0, 1.0)
    misfit_KN = np.square(offset_3N).sum(axis=0) - share_KN * (2 * along_KN - share_KN * length_K1)
    best_N = _nearest_row(misfit_KN)
    share_N = np.ones_like(share_KN[0])
    for index, share in enumerate(share_KN):
        np.copyto(share_N, share, where=best_N == index)
    return share_N, best_N


def _product(rows_K3: np.ndarray, pixels_3N: np.ndarray) -> np.ndarray:
    """Multiply ``rows @ pixels`` without BLAS, whose threads cost more here than they give."""
    return np.einsum("kc,cn->kn", rows_K3, pixels_3N)


def _nearest_row(squared_KN: np.ndarray) -> np.ndarray:
    """Return the index of the least squared distance in each column, -1 where even that is far; beats ``argmin``."""
    least_N = np.full_like(squared_KN[0], _FAR**2)
    nearest_N = np.full(len(least_N), -1, dtype=np.int8)
    for index, squared_N in enumerate(squared_KN):
        nearest_N[squared_N < least_N] = index
        np.minimum(least_N, squared_N, out=least_N)
    return nearest_N


# ------------------------------------------------------------------ objects


def _objects(mask_FYX: np.ndarray, world: Mapping[str, Any]) -> list[Part]:
    """Find the objects of one colour: what is connected in space and time, joined over gaps in time."""
    if not mask_FYX.any():
        return []
    rows, columns = np.flatnonzero(mask_FYX.any(axis=(0, 2))), np.flatnonzero(mask_FYX.any(axis=(0, 1)))
    box = Part(np.zeros((len(mask_FYX), np.ptp(rows) + 1, np.ptp(columns) + 1)), int(rows[0]), int(columns[0]))
    mask = box.crop(mask_FYX)
    cross = ndimage.generate_binary_structure(2, 1)[None]
    labels, count = ndimage.label(ndimage.binary_opening(mask, cross))
    enough = _MIN_AREA * min(world["sizes"].values()) ** 2
    counts_LF = np.stack([np.bincount(frame.ravel(), minlength=count + 1) for frame in labels], axis=1)
    parts = [
        (labels == index) & (counts_LF[index] > enough)[:, None, None]
        for index in range(1, count + 1)
        if counts_LF[index].max() > enough
    ]
    # Opening takes the corners off; give back what touches.
    grown = [ndimage.binary_dilation(part, cross) & mask for part in _join(parts)]
    return [Part(part, box.top, box.left) for part in grown if part.any(axis=(1, 2)).mean() >= _MIN_FRAMES]


def _join(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Join parts that are never seen in the same frame: they are one object that comes and goes."""
    objects: list[np.ndarray] = []
    for part in sorted(parts, key=lambda mask: -int(mask.sum())):
        when = part.any(axis=(1, 2))
        for index, other in enumerate(objects):
            if not (other.any(axis=(1, 2)) & when).any():
                objects[index] = other | part
                break
        else:
            objects.append(part)
    return objects


def _track(coverage_FYX: np.ndarray, part: Part, colour: str, world: Mapping[str, Any]) -> Track:
    """Measure one object's attributes, from its mask."""
    present = part.present_F
    centre, area = _moments(part.crop(coverage_FYX) * part.mask)
    shape = _shape(part.mask[present], centre[present], world)
    moved = _displacement(centre, present)
    length = math.hypot(*moved)
    speed = _nearest(length, world["speeds"])
    direction = None
    if length * _MAX_FACTOR >= min(world["speeds"].values()):
        direction = max(world["directions"], key=lambda name: float(np.dot(world["directions"][name], moved)))
    size = _nearest(float(np.sqrt(np.median(area[present]))), world["sizes"])
    middle = centre + np.array((part.top, part.left))
    return Track(shape, colour, size, direction, speed, present, middle, area, moved, part)


def _moments(weight_FYX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centroid ``[F,2]`` (NaN where empty) and area ``[F]`` of each frame, pixel centres at one half."""
    area = weight_FYX.sum(axis=(1, 2), dtype=np.float64)
    y = np.arange(weight_FYX.shape[1]) + 0.5
    x = np.arange(weight_FYX.shape[2]) + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.stack([weight_FYX.sum(axis=2) @ y / area, weight_FYX.sum(axis=1) @ x / area], axis=1)
    return centre, area


def _displacement(centre_F2: np.ndarray, present_F: np.ndarray) -> tuple[float, float]:
    """Return the slope of the least-squares line through the centroids, times the length of the clip."""
    if present_F.sum() < 2:
        return (0.0, 0.0)
    time = np.flatnonzero(present_F) / (len(present_F) - 1)
    slope = np.polyfit(time, centre_F2[present_F], 1)[0]
    return (float(slope[0]), float(slope[1]))


def _nearest(value: float, names: Mapping[str, float]) -> str | None:
    """Return the name whose value is nearest by ratio, unless even that one is far."""
    factor = {name: abs(math.log(max(value, 1e-6) / wanted)) for name, wanted in names.items()}
    best = min(factor, key=lambda name: factor[name])
    return best if factor[best] <= math.log(_MAX_FACTOR) else None


# ------------------------------------------------------------------ shape


def _shape(mask_FYX: np.ndarray, centre_F2: np.ndarray, world: Mapping[str, Any]) -> str | None:
    """Return the polygon of equal area and centre that overlaps the mask best, over all frames."""
    area_F = mask_FYX.sum(axis=(1, 2))
    overlap = {}
    for name, corners in world["shapes"].items():
        drawn = _polygon(mask_FYX.shape, centre_F2, area_F, corners)
        overlap[name] = (drawn & mask_FYX).sum() / max(1, (drawn | mask_FYX).sum())
    best = max(overlap, key=lambda name: overlap[name])
    return best if overlap[best] >= _MIN_OVERLAP else None


def _polygon(shape: tuple[int, ...], centre_F2: np.ndarray, area_F: np.ndarray, corners: int) -> np.ndarray:
    """Draw regular polygons with a flat base, ``[F,Y,X]`` bool; a regular n-gon has the area n·a²·tan(π/n)."""
    apothem_F = np.sqrt(area_F / (corners * math.tan(math.pi / corners))).astype(np.float32)
    y_FY = (np.arange(shape[1]) + 0.5 - centre_F2[:, :1]).astype(np.float32)
    x_FX = np.abs(np.arange(shape[2]) + 0.5 - centre_F2[:, 1:]).astype(np.float32)
    inside = np.ones((len(centre_F2), *shape[1:]), dtype=bool)
    for side in range(corners):
        angle = math.pi / 2 + 2 * math.pi * side / corners
        normal_y, normal_x = math.sin(angle), math.cos(angle)
        if normal_x > -1e-6:  # left is right mirrored
            inside &= (normal_y * y_FY)[:, :, None] + (normal_x * x_FX)[:, None, :] <= apothem_F[:, None, None]
    return inside
