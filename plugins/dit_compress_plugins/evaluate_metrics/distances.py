"""From features and scores to figures with their errors.

Shapes: N videos, K rows of each (1, or its frames), D features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUPS = 10
"""Parts of the videos that are left out in turn, for the error of a distance."""


class _Given(nn.Identity):
    """Features that are there already, as torchmetrics wants what makes them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet(ours_NKD: Tensor, theirs_NKD: Tensor) -> float:
    """Return ``|m - m'|² + tr(C + C' - 2 (C C')^½)`` of two sets of features (Heusel et al. 2017, Eq. 6)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(ours_NKD.shape[-1])).set_dtype(torch.float64)
    metric.update(theirs_NKD.flatten(0, 1).double(), real=True)
    metric.update(ours_NKD.flatten(0, 1).double(), real=False)
    return float(metric.compute())


def jackknife(ours_NKD: Tensor, theirs_NKD: Tensor) -> float:
    """Return the standard error of :func:`frechet` over videos: groups of both sets are left out in turn."""
    count = min(GROUPS, len(ours_NKD) // 2)
    if count < 2:
        return math.nan
    group_N = torch.arange(len(ours_NKD)) % count
    without = [frechet(ours_NKD[group_N != group], theirs_NKD[group_N != group]) for group in range(count)]
    return math.sqrt((count - 1) * float(torch.tensor(without, dtype=torch.float64).var(correction=0)))


def distance(name: str, features: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Return a distance to the real clips, its error, and what other real clips and noise come to.

    features: of ``made``, ``real``, ``noise``, ``other``; each a list of ``[K,D]``, a video each. ``other`` may be
    shorter: then all of the floor's sets are as short.
    """
    sets = {which: torch.stack(rows) for which, rows in features.items() if rows}
    found: dict[str, Any] = {
        name: frechet(sets["made"], sets["real"]),
        f"{name}_error": jackknife(sets["made"], sets["real"]),
        f"{name}_noise": frechet(sets["noise"], sets["real"]),
    }
    if len(sets.get("other", ())) > 1:
        found[f"{name}_floor"] = frechet(sets["other"], sets["real"][: len(sets["other"])])
    return found


def mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the mean over videos and its standard error."""
    scores = torch.tensor(values, dtype=torch.float64)
    return {name: float(scores.mean()), f"{name}_error": float(scores.std() / math.sqrt(len(scores)))}
