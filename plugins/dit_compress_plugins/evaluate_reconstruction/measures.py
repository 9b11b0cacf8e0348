"""Distances between a decoded clip and the clip, at 8 bits: values 0 … 255.

Shapes: F frames of Y × X pixels, ``[F,Y,X,3]`` uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np

PEAK = 255.0
CEILING = 100.0
"""Decibels given to equal frames and clips, whose ratio has no bound."""
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
_SHARES = [math.exp(-((place / 1.5) ** 2) / 2) for place in range(-5, 6)]
_WINDOW = [share / sum(_SHARES) for share in _SHARES]
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


def similarity(decoded_Ncyx: torch.Tensor, clip_Ncyx: torch.Tensor) -> torch.Tensor:
    """Return SSIM of each frame ``[N]``, a mean over pixels and colours (Wang et al. 2004, Eq. 13).

    A Gaussian window of 11x11 pixels around each, sigma 1.5; at the border the frame is reflected. As torchmetrics'
    does, whose convolution of all 121 pixels at once takes 40 times as long in float64. In float32 bright flat frames
    are 1e-3 off.
    """
    x, y = decoded_Ncyx.double(), clip_Ncyx.double()
    mean_x, mean_y, square_x, square_y, product = (_blurred(v) for v in (x, y, x * x, y * y, x * y))
    both, shared = mean_x * mean_y, product - mean_x * mean_y
    spread = square_x - mean_x.square() + square_y - mean_y.square()
    alike = (2 * both + _C1) * (2 * shared + _C2)
    return (alike / ((mean_x.square() + mean_y.square() + _C1) * (spread + _C2))).mean((1, 2, 3))


def _blurred(frames_Ncyx: torch.Tensor) -> torch.Tensor:
    """Average each pixel's window, along one axis and then the other."""
    half = len(_WINDOW) // 2
    values = functional.pad(frames_Ncyx, (half, half, half, half), mode="reflect")
    for axis in (-2, -1):
        size = frames_Ncyx.shape[axis]
        blurred = torch.zeros_like(values.narrow(axis, 0, size))
        for place, share in enumerate(_WINDOW):
            blurred.add_(values.narrow(axis, place, size), alpha=share)
        values = blurred
    return values


def temporal_difference_error(decoded_Fcyx: torch.Tensor, clip_Fcyx: torch.Tensor) -> float:
    """Return ``mean |(d[f+1] - d[f]) - (x[f+1] - x[f])|`` over frames f, pixels and colours, in 8-bit levels.

    ``d`` is the decoded clip, ``x`` the clip. 0 where every change in time is right, whatever stands still and is
    wrong; flicker and lost motion raise it.
    """
    error_Fcyx = decoded_Fcyx.double() - clip_Fcyx.double()
    return float(error_Fcyx.diff(dim=0).abs().mean())
