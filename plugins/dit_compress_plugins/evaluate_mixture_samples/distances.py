"""How far samples are from a mixture: by sliced Wasserstein distance to exact samples, and by its modes.

Modes of a caption are equally likely, each ``N(mean, spread²)`` in all directions.

Shapes: G captions, N samples of each, M modes of each, D numbers of a latent, P directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

FAIR = 4
"""A mode is covered where it has a fourth of the samples near it that it would have among equally likely ones."""


def sliced_wasserstein(one_GND: Tensor, other_GND: Tensor, directions_DP: Tensor) -> Tensor:
    """Return the 2-Wasserstein distance on each line, root mean square over lines, ``[G]``; as many samples of both.

    On a line the best pairing is by rank (Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures").
    """
    ranked = [(points @ directions_DP).sort(dim=1).values for points in (one_GND, other_GND)]
    return (ranked[0] - ranked[1]).square().mean(dim=(1, 2)).sqrt()


def lines(draws_PD: Tensor) -> Tensor:
    """Return unit directions ``[D,P]`` of normal draws."""
    return (draws_PD / draws_PD.norm(dim=1, keepdim=True)).T


def near(spread: float, width: int, share: float) -> float:
    """Return the distance to a mode's mean within which so many of its exact samples lie: the chi distribution's."""
    from scipy.stats import chi2

    return spread * float(chi2.ppf(share, width)) ** 0.5


def by_modes(samples_GND: Tensor, means_GMD: Tensor, spread: float, radius: float) -> dict[str, float]:
    """Return the share of modes covered, that of samples within ``radius`` of a mode, and how wide the modes are.

    ``dispersion``: root mean square distance to the nearest mean over that of exact samples; 1 where each mode is as
    wide as it should be, less where samples are alike.
    """
    distance_GNM = torch.cdist(samples_GND, means_GMD)
    nearest_GN, mode_GN = distance_GNM.min(dim=2)
    within_GN = nearest_GN <= radius
    captions, modes, width = means_GMD.shape
    counts_GM = torch.zeros(captions, modes).scatter_add_(1, mode_GN, within_GN.float())
    covered = counts_GM >= max(1.0, samples_GND.shape[1] / (FAIR * modes))
    return {
        "covered": float(covered.float().mean()),
        "within": float(within_GN.float().mean()),
        "dispersion": float(nearest_GN.square().mean().sqrt()) / (spread * width**0.5),
    }
