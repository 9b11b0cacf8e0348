"""Latents into the shape a module takes, and back.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens; ``P`` channels of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Patch = tuple[int, int, int]


def pack(latent_BCTHW: Tensor, layout: str, patch: Patch) -> Tensor:
    """Turn a latent into the module's ``hidden_states``."""
    if layout == "BCTHW":
        return latent_BCTHW
    frames_BTCHW = latent_BCTHW.transpose(1, 2)
    if layout == "BTCHW":
        return frames_BTCHW
    if layout == "BCHW":
        return frames_BTCHW.flatten(0, 1)
    if layout == "packed_image":
        return _to_tokens(frames_BTCHW.flatten(0, 1).unsqueeze(2), patch)
    return _to_tokens(latent_BCTHW, patch)


def unpack(output: Tensor, layout: str, patch: Patch, size_BTHW: tuple[int, int, int, int]) -> Tensor:
    """Turn the module's output into ``[B,C,T,H,W]``."""
    b, t, h, w = size_BTHW
    if layout == "BCTHW":
        return output
    if layout == "BTCHW":
        return output.transpose(1, 2)
    if layout == "BCHW":
        return output.unflatten(0, (b, t)).transpose(1, 2)
    if layout == "packed_image":
        return _to_latent(output, patch, (1, h, w)).squeeze(2).unflatten(0, (b, t)).transpose(1, 2)
    return _to_latent(output, patch, (t, h, w))


def folds_frames(layout: str) -> bool:
    """Tell whether each latent frame is an image of its own, in the batch."""
    return layout in ("BCHW", "packed_image")


def _to_tokens(latent_BCTHW: Tensor, patch: Patch) -> Tensor:
    """Cut into tokens ``[B,S,P]``, P ordered C, T, H, W as the pipelines of LTX and Flux have it."""
    x = latent_BCTHW
    for axis, step in zip((2, 4, 6), patch, strict=True):
        x = x.unflatten(axis, (-1, step))
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def _to_latent(tokens_BSP: Tensor, patch: Patch, size_THW: tuple[int, int, int]) -> Tensor:
    grid = [size // step for size, step in zip(size_THW, patch, strict=True)]
    x = tokens_BSP.unflatten(1, grid).unflatten(4, (-1, *patch))
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)
