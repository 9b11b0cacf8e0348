"""Scenes to pixels, anti-aliased.

The coverage of a pixel is its signed distance to the polygon, cut to one pixel. Only a patch around each
object is touched. Suffixes: F frames, P side of the patch, n sides of the polygon.
"""

from __future__ import annotations

import math

import numpy as np

from dit_compress_plugins.data_shapes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    Thing,
    apothem,
    normals,
    path_of,
)


def render(scene: Scene, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Draw the clip of a scene, ``[F,Y,X,3]`` uint8."""
    video = np.tile(np.array(BACKGROUNDS[scene.background], dtype=np.uint8), (num_frames, *size, 1))
    for thing in scene.things:
        _draw(video, thing)
    return video


def _draw(video: np.ndarray, thing: Thing) -> None:
    num_frames, *size = video.shape[:3]
    inner = apothem(thing, tuple(size))
    corners = SHAPES[thing.shape]
    patch = min(2 * math.ceil(inner / math.cos(math.pi / corners)) + 4, *size)
    centre_F2 = path_of(thing, num_frames, tuple(size))
    corner_F2 = np.clip(np.round(centre_F2 - patch / 2).astype(int), 0, np.asarray(size) - patch)
    y_FP = corner_F2[:, :1] + np.arange(patch)
    x_FP = corner_F2[:, 1:] + np.arange(patch)
    coverage = _coverage(y_FP + 0.5 - centre_F2[:, :1], x_FP + 0.5 - centre_F2[:, 1:], corners, inner)
    colour = np.asarray(COLOURS[thing.colour], dtype=np.float32)
    for frame, (top, left), share in zip(video, corner_F2, coverage[..., None], strict=True):
        part = frame[top : top + patch, left : left + patch]
        part[:] = np.rint(part + share * (colour - part))


def _coverage(y_FP: np.ndarray, x_FP: np.ndarray, corners: int, inner: float) -> np.ndarray:
    """Return the share of each pixel inside the polygon, ``[F,P,P]``; y and x run from its centre to pixel centres."""
    y_FP, x_FP = y_FP.astype(np.float32), np.abs(x_FP, dtype=np.float32, casting="same_kind")
    beyond = np.full((len(y_FP), y_FP.shape[1], x_FP.shape[1]), -np.inf, dtype=np.float32)
    normal_n2 = normals(corners).astype(np.float32)
    for normal_y, normal_x in normal_n2[normal_n2[:, 1] > -1e-6]:  # left is right mirrored
        np.maximum(beyond, (normal_y * y_FP)[:, :, None] + (normal_x * x_FP)[:, None, :], out=beyond)
    return np.clip(0.5 + inner - beyond, 0.0, 1.0)
