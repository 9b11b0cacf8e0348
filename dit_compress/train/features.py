"""The last feature of two models, compared: one grid of tokens, one width.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Cond, Denoiser


def last_feature(denoiser: Denoiser, latent_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Return the velocity, and the stream ``[B,S,D]`` after the last block of the main stack."""
    last = denoiser.structure().main.length - 1
    velocity, taken = denoiser.features(latent_BCTHW, sigma_B, cond, [last])
    return velocity, taken[last]


def grid_of(denoiser: Denoiser, latent_BCTHW: Tensor) -> tuple[int, int, int]:
    """Return the tokens along T, H, W that the denoiser makes of a latent."""
    t, h, w = (cells // step for cells, step in zip(latent_BCTHW.shape[2:], denoiser.patch, strict=True))
    return t, h, w


def resampled(feature_BSD: Tensor, grid: tuple[int, int, int], to: tuple[int, int, int]) -> Tensor:
    """Interpolate the tokens of a grid (T, H, W) linearly to those of another, in float32; the same grid is left."""
    if grid == to:
        return feature_BSD
    feature_BDTHW = feature_BSD.float().transpose(1, 2).unflatten(2, grid)
    return F.interpolate(feature_BDTHW, size=to, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


def projection(width_S: int, width_T: int) -> nn.Linear:
    """Make a trainable map between the widths of two streams that have nothing to do with each other."""
    layer = nn.Linear(width_S, width_T)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def other_tokens(denoiser: Denoiser, whose: str, instead: str) -> list[UserError]:
    """Return what to say where the last feature holds other tokens than the latent's: text among them, perhaps.

    Works without weights. instead: the option that leaves the feature out, as a recipe says it.
    """
    latent, sigma_B, cond = denoiser.typical(1, denoiser.example_size)
    _, feature_BSD = last_feature(denoiser, latent, sigma_B, cond)
    count = denoiser.tokens(denoiser.example_size)
    if feature_BSD.shape[1] == count:
        return []
    what = f"the last feature of the {whose} has {feature_BSD.shape[1]} tokens where its latent has {count}"
    mend = f"Set '{instead}': where text stands among the tokens of the latent, they can't be compared"
    return [UserError(what, mend=mend)]
