"""VBench's quality, semantic and total score from its sixteen (Vchitect/VBench, ``scripts/constant.py``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress_plugins.evaluate_vbench import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RANGES = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
"""What VBench takes for 0 and 1 of a dimension; 0 and 1 of any other."""

WEIGHTS = {"dynamic_degree": 0.5}
"""Weight within its group; 1 of any other."""

QUALITY, SEMANTIC = DIMENSIONS[:7], DIMENSIONS[7:]


def totals(scores: Mapping[str, float]) -> dict[str, float]:
    """Return ``vbench_quality``, ``vbench_semantic`` and ``vbench_total``, in percent as the leaderboard prints them.

    A score whose dimensions are not all there is left out: VBench's own script counts what is missing as 0.

    Args:
        scores: by dimension, between 0 and 1, as in VBench's result files.
    """
    found = {
        name: 100 * _mean(scores, group)
        for name, group in (("vbench_quality", QUALITY), ("vbench_semantic", SEMANTIC))
        if all(dimension in scores for dimension in group)
    }
    if len(found) == 2:
        found["vbench_total"] = total(found["vbench_quality"], found["vbench_semantic"])
    return found


def total(quality: float, semantic: float) -> float:
    """Return the total score: quality counts four times."""
    return (4 * quality + semantic) / 5


def read_results(place: Path) -> dict[str, float]:
    """Read the score of each dimension from a result file, or from all of a folder.

    Raises:
        UserError: there is none, one can't be read, or two files differ about a dimension.
    """
    files = sorted(place.rglob("*_eval_results.json")) if place.is_dir() else [place]
    if not files:
        mend = "Give the folder that 'vbench evaluate --output_path' wrote"
        raise UserError("no *_eval_results.json there", where=str(place), mend=mend)
    found: dict[str, float] = {}
    for file in files:
        for dimension, score in _scores(file).items():
            if found.setdefault(dimension, score) != score:
                mend = "Keep the results of one model in a folder"
                what = f"{dimension} is {score} here, {found[dimension]} in another"
                raise UserError(what, where=str(file), mend=mend)
    return found


def _mean(scores: Mapping[str, float], group: tuple[str, ...]) -> float:
    weights = {name: WEIGHTS.get(name, 1.0) for name in group}
    ends = {name: RANGES.get(name, (0.0, 1.0)) for name in group}
    scaled = (weights[name] * (scores[name] - low) / (high - low) for name, (low, high) in ends.items())
    return sum(scaled) / sum(weights.values())


def _scores(file: Path) -> dict[str, float]:
    mend = "Give a file that VBench wrote: {dimension: [score, [...]]}"
    try:
        data = json.loads(file.read_text("utf-8"))
        scores = {str(name): float(row[0]) for name, row in data.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise UserError(f"no result of VBench: {error}", where=str(file), mend=mend) from error
    if wrong := [name for name, score in scores.items() if name not in DIMENSIONS or not 0 <= score <= 1]:
        raise UserError(f"{wrong[0]}: {scores[wrong[0]]:g} is no score of VBench", where=str(file), mend=mend)
    return scores
