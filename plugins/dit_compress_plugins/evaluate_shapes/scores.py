"""Scores: what was read from a video against what its caption asked for.

Every score but ``flicker``, ``displacement_ratio`` and ``diversity`` is a share in 0 … 1, 1 best. A missing
object has all its attributes wrong; one too many makes ``count`` wrong alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.optimize import linear_sum_assignment

from dit_compress_plugins.evaluate_shapes.counter import count_scores
from dit_compress_plugins.evaluate_shapes.reader import Reading, Track, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OBJECT_ATTRIBUTES = ("shape", "colour", "size", "direction", "speed")
ATTRIBUTES = ("count", *OBJECT_ATTRIBUTES, "background")
COUNTS = ("exact_count", "count_distance")

_COMPARED = 128
"""Truths that the floors are taken over, pair by pair."""
_INNER = 0.4
"""Radius of a disc inside every shape, as a share of the square root of its area (the triangle's is 0.44)."""


def score(video_FYX3: np.ndarray, truth: Mapping[str, Any], caption: str = "") -> dict[str, float]:
    """Score one video.

    Args:
        video_FYX3: ``[F,Y,X,3]`` uint8.
        truth: ``background``, ``objects`` and ``world``, as the data's ground truth gives them.
        caption: what its numbers say is judged, too (:func:`count_scores`).

    Returns:
        each of ``ATTRIBUTES``: share of the objects (or 0, 1) that have it right;
        ``exact_match``: 1 if all have; ``flicker`` and ``displacement_ratio``: see their functions.
    """
    reading = read(video_FYX3, truth["world"])
    pairs = match(truth["objects"], [vars(track) for track in reading.tracks])
    scores = {"count": float(len(reading.tracks) == len(truth["objects"]))}
    for name in OBJECT_ATTRIBUTES:
        right = [found is not None and found[name] == wanted[name] for wanted, found in pairs]
        scores[name] = float(np.mean(right))
    scores["background"] = float(reading.background == truth["background"])
    scores["exact_match"] = float(min(scores.values()) == 1.0)
    scores["flicker"] = flicker(video_FYX3, reading)
    scores["displacement_ratio"] = displacement_ratio(pairs, truth["world"])
    return scores | count_scores(reading, caption, truth["world"])


def match(
    objects: Sequence[Mapping[str, Any]], seen: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    """Match each wanted object with one seen, so that the fewest attributes are wrong; None for a missing one."""
    if not seen:
        return [(wanted, None) for wanted in objects]
    wrong = np.array(
        [[sum(each[name] != wanted[name] for name in OBJECT_ATTRIBUTES) for each in seen] for wanted in objects]
    )
    rows, columns = linear_sum_assignment(wrong)
    found = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [(wanted, seen[found[index]] if index in found else None) for index, wanted in enumerate(objects)]


def displacement_ratio(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]], world: Mapping[str, Any]
) -> float:
    """Compare movement along the wanted direction to the wanted one: 1 right, 0 still or missing; mean over objects."""
    ratios = [
        0.0
        if found is None
        else float(np.dot(found["displacement"], world["directions"][wanted["direction"]]))
        / world["speeds"][wanted["speed"]]
        for wanted, found in pairs
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


def summarise(scores: Sequence[Mapping[str, float]], each: int = 1) -> dict[str, float]:
    """Average over videos all that :func:`score` gives; ``attribute_accuracy`` is the mean of ``ATTRIBUTES``.

    ``attribute_accuracy_error`` is its standard error over captions, of which each ``each`` scores in a row are one;
    left out where there is a single caption. Counts are those of captions with a number.
    """
    numbered = [one for one in scores if "exact_count" in one]
    summary = {name: float(np.mean([one[name] for one in scores])) for name in scores[0] if name not in COUNTS}
    summary |= {name: float(np.mean([one[name] for one in numbered])) for name in COUNTS if numbered}
    of_videos = {"attribute_accuracy": [float(np.mean([one[name] for name in ATTRIBUTES])) for one in scores]}
    of_videos["exact_count"] = [one["exact_count"] for one in numbered]
    summary["attribute_accuracy"] = float(np.mean(of_videos["attribute_accuracy"]))
    for name, values in of_videos.items():
        per_caption = np.array(values).reshape(-1, each).mean(axis=1)
        if len(per_caption) > 1:
            summary[f"{name}_error"] = float(per_caption.std(ddof=1) / math.sqrt(len(per_caption)))
    return summary


# ------------------------------------------------------------------ floors


def floors(truths: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the attribute accuracy of two models that ignore the caption, over at most ``_COMPARED`` of the truths.

    Returns:
        ``chance``: of a real clip of another caption; ``best_constant``: of the one clip that does best when it is
        shown for every other caption. Empty where there is a single truth.
    """
    truths = truths[:_COMPARED]
    if len(truths) < 2:
        return {}
    right = np.array([[agreement(shown, wanted) for wanted in truths] for shown in truths])
    of_others = (right.sum(axis=1) - np.diag(right)) / (len(truths) - 1)
    return {"chance": float(of_others.mean()), "best_constant": float(of_others.max())}


def agreement(shown: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """Return the attribute accuracy of a clip that shows exactly one truth while another was wanted."""
    pairs = match(wanted["objects"], shown["objects"])
    whole = [len(shown["objects"]) == len(wanted["objects"]), shown["background"] == wanted["background"]]
    each = [
        np.mean([found is not None and found[name] == want[name] for want, found in pairs])
        for name in OBJECT_ATTRIBUTES
    ]
    return float(np.mean([*whole, *each]))
