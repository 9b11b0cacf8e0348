"""Decibels of a decoder: to the clip, and to what the original makes of the same latent.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.train.codec.step import psnr_8_bits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@torch.no_grad()
def decibels(codec: Any, original: Any, videos: Iterable[Tensor]) -> dict[str, float]:
    """Return mean PSNR in dB: of the codec and of the original to the clips, of the codec to the original."""
    found: dict[str, list[Tensor]] = {"psnr_db": [], "original_psnr_db": [], "to_original_db": []}
    for video in videos:
        latent = original.encode(video)
        ours, theirs = codec.decode(latent), original.decode(latent)
        for name, one, other in zip(found, (ours, theirs, ours), (video, video, theirs), strict=True):
            found[name].append(psnr_8_bits(one, other))
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}
