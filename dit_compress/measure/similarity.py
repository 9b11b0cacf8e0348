"""Structural similarity of frames at 8 bits: values 0 … 255.

Shapes: N frames of Y × X pixels, c colours.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

PEAK = 255.0
MIN_SIDE = 11
"""Pixels: the window's side."""
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
_SHARES = [math.exp(-((place / 1.5) ** 2) / 2) for place in range(-5, 6)]
_WINDOW = [share / sum(_SHARES) for share in _SHARES]


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
