"""Peak signal-to-noise ratio of clips.

The peak is the whole range of a value: 255 for uint8, 2 for video in [-1, 1]; both give the same number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

PEAK_UINT8 = 255.0
PEAK_SIGNED = 2.0
CEILING = 100.0
"""Decibels given to equal clips, whose ratio has no bound."""


def psnr(decoded: np.ndarray, clip: np.ndarray, peak: float) -> float:
    """Return ``10·log10(peak² / mean squared error)`` of one clip, in dB, at most ``CEILING``.

    Args:
        decoded, clip: equal shapes, values in the same range; uint8 or float. Clip ``decoded`` to the range first.
        peak: ``PEAK_UINT8`` for 0 … 255, ``PEAK_SIGNED`` for [-1, 1].
    """
    if decoded.shape != clip.shape:
        raise ValueError(f"decoded {decoded.shape}, clip {clip.shape}: PSNR needs equal shapes")
    error = float(np.square(decoded.astype(np.float64) - clip.astype(np.float64)).mean())
    return min(CEILING, 10.0 * float(np.log10(peak**2 / error))) if error > 0 else CEILING


def psnr_per_clip(decoded_B: np.ndarray, clips_B: np.ndarray, peak: float) -> list[float]:
    """Return the PSNR of each clip of a batch ``[B, …]``."""
    return [psnr(decoded, clip, peak) for decoded, clip in zip(decoded_B, clips_B, strict=True)]


def summarise(decibels: Sequence[float]) -> dict[str, float]:
    """Average the decibels over clips (not the errors); with the worst clip and how many there are."""
    return {"psnr_db": float(np.mean(decibels)), "psnr_worst_db": float(min(decibels)), "num_clips": len(decibels)}
