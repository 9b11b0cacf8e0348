"""Frames of several videos in one small picture, to look at while a model trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from dit_compress.core.files import disk_errors, whole_file
from dit_compress.data.samples import to_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FRAMES, SIDE, GAP = 6, 96, 2
"""The most frames of a video, the most pixels of a frame's longer side, and the white ones between frames."""
_QUALITY = 90


def write_sheet(path: Path, video_NCFYX: Tensor) -> None:
    """Write a JPEG with a row per video, in [-1, 1]: frames spread evenly over it, made smaller."""
    from matplotlib.image import imsave

    frames = video_NCFYX.shape[2]
    shown = torch.linspace(0, frames - 1, min(FRAMES, frames)).round().long()
    height, width = video_NCFYX.shape[-2:]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = torch.stack(
        [functional.interpolate(video[:, shown].transpose(0, 1), size, mode="area") for video in video_NCFYX]
    )
    padded = functional.pad(small, (GAP, 0, GAP, 0), value=1.0)
    rows = torch.cat([torch.cat(list(row), dim=-1) for row in padded], dim=-2)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        imsave(partial, to_pixels(rows[None, :, None])[0, 0], format="jpg", pil_kwargs={"quality": _QUALITY})
