"""Decibels of a decoder: to the clip, and to what the original makes of the same latent.

Shapes: video ``[B,3,F,Y,X]`` in [-1, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dit_compress.train.codec.step import to_8_bits

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
            found[name].append(psnr(one, other))
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def psnr(video: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB per clip ``[B]``, at 8 bits as every codec's ``psnr_db``."""
    error_B = (to_8_bits(video) - to_8_bits(target)).square().flatten(1).mean(1)
    return 10 * torch.log10(1 / error_B.clamp_min(1e-10))
