"""Which pixels are to change: the smallest objects of too many, squares for what is missing.

Shapes: F frames of Y × X pixels; T H W latent frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

if TYPE_CHECKING:
    from collections.abc import Sequence


def smallest(masks_NFYX: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return the union of the ``count`` smallest masks; all, where so many must go."""
    chosen = sorted(masks_NFYX, key=lambda mask: int(mask.sum()))[:count]
    return np.any(chosen, axis=0)


def squares(
    masks_NFYX: Sequence[np.ndarray], occupied_NFYX: Sequence[np.ndarray], count: int, factor: float
) -> np.ndarray:
    """Return ``count`` squares where nothing is, each of the side ``factor·sqrt(smallest area)``.

    Differs from the paper, which has no frames: they move as the smallest object does.
    """
    model = min(masks_NFYX, key=lambda mask: int(mask.sum()))
    areas_F = model.sum(axis=(1, 2))
    side = max(1, round(factor * float(np.sqrt(areas_F[areas_F > 0].mean()))))
    taken_YX = np.any(occupied_NFYX, axis=(0, 1))
    made = np.zeros_like(model)
    for _ in range(count):
        middle = emptiest(taken_YX)
        square = np.zeros_like(model)
        for frame, shift in zip(square, movement(model), strict=True):
            top, left = (max(0, round(at + by - side / 2)) for at, by in zip(middle, shift, strict=True))
            frame[top : top + side, left : left + side] = True
        made |= square
        taken_YX = taken_YX | square.any(axis=0)
    return made


def emptiest(taken_YX: np.ndarray) -> tuple[int, int]:
    """Return the pixel that is farthest from what is taken and from the frame's edges."""
    distance = ndimage.distance_transform_edt(np.pad(~taken_YX, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(y), int(x)


def movement(mask_FYX: np.ndarray) -> np.ndarray:
    """Return how far from its mean place an object is in each frame, ``[F,2]`` (y, x); between, where it isn't seen."""
    frames = np.arange(len(mask_FYX))
    seen = np.flatnonzero(mask_FYX.any(axis=(1, 2)))
    places = np.array([ndimage.center_of_mass(mask_FYX[frame]) for frame in seen])
    path_F2 = np.stack([np.interp(frames, seen, places[:, axis]) for axis in (0, 1)], axis=1)
    return path_F2 - path_F2.mean(axis=0)


def to_latent(mask_FYX: np.ndarray, size_THW: tuple[int, int, int], lead: int) -> Tensor:
    """Return the latent cells that show any of a mask, ``[T,H,W]`` bool. lead: frames of the first latent frame."""
    first, rest = mask_FYX[:lead].any(axis=0, keepdims=True), mask_FYX[lead:]
    later = rest.reshape(size_THW[0] - 1, -1, *rest.shape[1:]).any(axis=1) if len(rest) else rest
    frames = torch.from_numpy(np.concatenate([first, later])).float()
    return adaptive_max_pool2d(frames, size_THW[1:]) > 0


def to_tokens(mask_THW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Return the tokens whose latent cells are in a mask at all, ``[t,h,w]`` bool."""
    return torch.nn.functional.max_pool3d(mask_THW[None].float(), patch)[0] > 0
