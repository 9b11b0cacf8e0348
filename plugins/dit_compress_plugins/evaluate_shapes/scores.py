"""Scores: what was read from a video against what its caption asked for.

Every score but ``flicker``, ``displacement_ratio`` and ``diversity`` is a share in 0 … 1, 1 best. A missing
object has all its attributes wrong; one too many makes ``count`` wrong alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.optimize import linear_sum_assignment

from dit_compress_plugins.evaluate_shapes.reader import Reading, Track, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OBJECT_ATTRIBUTES = ("shape", "colour", "size", "direction", "speed")
ATTRIBUTES = ("count", *OBJECT_ATTRIBUTES, "background")

_INNER = 0.4
"""Radius of a disc inside every shape, as a share of the square root of its area (the triangle's is 0.44)."""


def score(video_FYX3: np.ndarray, truth: Mapping[str, Any]) -> dict[str, float]:
    """Score one video.

    Args:
        video_FYX3: ``[F,Y,X,3]`` uint8.
        truth: ``background``, ``objects`` and ``world``, as the data's ground truth gives them.

    Returns:
        each of ``ATTRIBUTES``: share of the objects (or 0, 1) that have it right;
        ``exact_match``: 1 if all have; ``flicker`` and ``displacement_ratio``: see their functions.
    """
    reading = read(video_FYX3, truth["world"])
    pairs = match(truth["objects"], reading.tracks)
    scores = {"count": float(len(reading.tracks) == len(truth["objects"]))}
    for name in OBJECT_ATTRIBUTES:
        right = [track is not None and getattr(track, name) == wanted[name] for wanted, track in pairs]
        scores[name] = float(np.mean(right))
    scores["background"] = float(reading.background == truth["background"])
    scores["exact_match"] = float(min(scores.values()) == 1.0)
    scores["flicker"] = flicker(video_FYX3, reading)
    scores["displacement_ratio"] = displacement_ratio(pairs, truth["world"])
    return scores


def match(
    objects: Sequence[Mapping[str, Any]],
    tracks: Sequence[Track],
) -> list[tuple[Mapping[str, Any], Track | None]]:
    """Match each wanted object with its track, so that the fewest attributes are wrong; None for a missing one."""
    if not tracks:
        return [(wanted, None) for wanted in objects]
    wrong = np.array(
        [
            [sum(getattr(track, name) != wanted[name] for name in OBJECT_ATTRIBUTES) for track in tracks]
            for wanted in objects
        ]
    )
    rows, columns = linear_sum_assignment(wrong)
    found = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [(wanted, tracks[found[index]] if index in found else None) for index, wanted in enumerate(objects)]


def displacement_ratio(pairs: Sequence[tuple[Mapping[str, Any], Track | None]], world: Mapping[str, Any]) -> float:
    """Compare movement along the wanted direction to the wanted one: 1 right, 0 still or missing; mean over objects."""
    ratios = [
        0.0
        if track is None
        else float(np.dot(track.displacement, world["directions"][wanted["direction"]]))
        / world["speeds"][wanted["speed"]]
        for wanted, track in pairs
    ]
    return float(np.mean(ratios))


def flicker(video_FYX3: np.ndarray, reading: Reading) -> float:
    """Return the mean change of a pixel from frame to frame, in 0 … 1, after following each object's movement.

    Counted are the background, where it is visible in both frames, and a disc inside each object, sampled
    around its centroid. A video in which nothing can be read is compared pixel by pixel.
    """
    change_FYX = np.abs(np.diff(video_FYX3.astype(np.float32), axis=0)).mean(axis=-1)
    bare_FYX = reading.covered_FYX < 0.1
    changes = [change_FYX[bare_FYX[1:] & bare_FYX[:-1]]]
    for track in reading.tracks:
        inside_FN3 = _follow(video_FYX3, track)
        both = track.present_F[1:] & track.present_F[:-1]
        changes.append(np.abs(np.diff(inside_FN3, axis=0)).mean(axis=-1)[both].ravel())
    counted = np.concatenate(changes)
    return float((counted if counted.size else change_FYX).mean() / 255.0)


def _follow(video_FYX3: np.ndarray, track: Track) -> np.ndarray:
    """Return the pixels of a disc around the object's centroid in each frame, ``[F,N,3]``."""
    radius = _INNER * float(np.sqrt(np.median(track.area_F[track.present_F])))
    steps = np.arange(-np.floor(radius), np.floor(radius) + 1)
    disc_2N = np.stack([grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij")])
    disc_2N = disc_2N[:, np.hypot(*disc_2N) <= radius]
    centre_F2 = np.nan_to_num(track.centre_F2) - 0.5  # array indices stand at pixel centres
    y_FN, x_FN = centre_F2[:, :1] + disc_2N[0], centre_F2[:, 1:] + disc_2N[1]
    frame_FN = np.broadcast_to(np.arange(len(video_FYX3))[:, None], y_FN.shape)
    channels = [
        map_coordinates(video_FYX3[..., channel].astype(np.float32), [frame_FN, y_FN, x_FN], order=1, mode="nearest")
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1)


def diversity(videos_NFYX3: np.ndarray) -> float:
    """Return the variance between videos of one caption, pixels in 0 … 1, mean over pixels; 0 for a single video."""
    return float((videos_NFYX3.astype(np.float32) / 255.0).var(axis=0).mean())


def summarise(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average over videos all that :func:`score` gives; ``attribute_accuracy`` is the mean of ``ATTRIBUTES``."""
    summary = {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
    summary["attribute_accuracy"] = float(np.mean([summary[name] for name in ATTRIBUTES]))
    return summary
