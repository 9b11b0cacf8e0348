"""Distances between a decoded clip and the clip, at 8 bits: values 0 … 255.

Shapes: F frames of Y × X pixels, ``[F,Y,X,3]`` uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange

from dit_compress.measure.similarity import PEAK, similarity

if TYPE_CHECKING:
    import numpy as np

CEILING = 100.0
"""Decibels given to equal frames and clips, whose ratio has no bound."""
_AT_ONCE = 8
"""Frames of which the similarity is computed together: its maps are several times as large."""


@dataclass(frozen=True)
class Distances:
    """Of one clip. frames_db: PSNR of each frame. psnr_db: of all of them together, by their mean squared error.

    ssim: structural similarity, a mean over frames. temporal: see :func:`temporal_difference_error`; None for an image.
    """

    psnr_db: float
    ssim: float
    temporal: float | None
    frames_db: tuple[float, ...]


def distances(decoded_FYXc: np.ndarray, clip_FYXc: np.ndarray) -> Distances:
    """Measure one clip."""
    if decoded_FYXc.shape != clip_FYXc.shape:
        raise ValueError(f"decoded {decoded_FYXc.shape}, clip {clip_FYXc.shape}: give equal shapes")
    decoded, clip = (rearrange(torch.from_numpy(video), "F Y X c -> F c Y X") for video in (decoded_FYXc, clip_FYXc))
    pairs = list(zip(decoded.split(_AT_ONCE), clip.split(_AT_ONCE), strict=True))
    return Distances(
        psnr_db=psnr(decoded.flatten()[None], clip.flatten()[None])[0],
        ssim=float(torch.cat([similarity(*pair) for pair in pairs]).mean()),
        temporal=temporal_difference_error(decoded, clip) if len(clip) > 1 else None,
        frames_db=tuple(value for pair in pairs for value in psnr(*pair)),
    )


def psnr(decoded_N: torch.Tensor, clip_N: torch.Tensor) -> list[float]:
    """Return ``10·log10(255² / mean squared error)`` of each row ``[N, …]`` in dB, at most ``CEILING``."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    given = decoded_N.flatten(1).double(), clip_N.flatten(1).double()
    found = peak_signal_noise_ratio(*given, data_range=PEAK, reduction="none", dim=1)
    return found.clamp(max=CEILING).tolist()


def temporal_difference_error(decoded_Fcyx: torch.Tensor, clip_Fcyx: torch.Tensor) -> float:
    """Return ``mean |(d[f+1] - d[f]) - (x[f+1] - x[f])|`` over frames f, pixels and colours, in 8-bit levels.

    ``d`` is the decoded clip, ``x`` the clip. 0 where every change in time is right, whatever stands still and is
    wrong; flicker and lost motion raise it.
    """
    error_Fcyx = decoded_Fcyx.double() - clip_Fcyx.double()
    return float(error_Fcyx.diff(dim=0).abs().mean())
