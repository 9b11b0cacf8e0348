"""The latents of a first frame, given to a module as its own pipeline gives them.

What further channels mean, and that a clock may run per token, no call shows: the classes stand here by name.

Shapes: B batch, C channels, T H W latent frames, height, width, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.model.conditions import FIRST, FIRST_PADDED
from dit_compress.model.flow import expand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SMALLEST = 1e-4
"""Bound of sigma where the velocity of a known frame is divided by it."""


@dataclass(frozen=True)
class Channels:
    """Latents of the first frame as further channels, beside a mask that is 1 there.

    mask: its channels. mask_first: it stands before the latents. padded: they are those of the frame and grey ones
    after it, encoded together; else of the frame alone, and zeros.
    """

    mask: int
    mask_first: bool = False
    padded: bool = False

    @property
    def name(self) -> str:
        """The condition."""
        return FIRST_PADDED if self.padded else FIRST


CHANNELS = {
    "CogVideoXTransformer3DModel": Channels(mask=0),
    "HunyuanVideo15Transformer3DModel": Channels(mask=1),
    "WanTransformer3DModel": Channels(mask=4, mask_first=True, padded=True),
}
"""Classes of which some are built for further channels (``WanImageToVideoPipeline.prepare_latents`` and its like)."""
TOKENS = ("LTXVideoTransformer3DModel", "WanTransformer3DModel")
"""Classes that take a timestep per token: the first frame stands in the latent, its clock at 0 (LTX, Wan 2.2 5B)."""


def channels_way(module: Any) -> Channels | None:
    """Return what further channels the module was built for."""
    way, own = CHANNELS.get(type(module).__name__), latent_channels(module.config)
    return way if way and module.config["in_channels"] == 2 * own + way.mask else None


def takes_tokens(module: Any) -> bool:
    """Tell whether the first frame can stand in the module's latent."""
    config = module.config
    return type(module).__name__ in TOKENS and config["in_channels"] == latent_channels(config)


def latent_channels(config: Mapping[str, int]) -> int:
    """Return the channels that the module gives back."""
    return config.get("out_channels") or config["in_channels"]


def with_channels(latent_BCTHW: Tensor, given: Tensor | None, way: Channels) -> Tensor:
    """Join a latent with those of the first frame and their mask; zeros where none is given, as T2V pipelines do."""
    b, _, t, h, w = latent_BCTHW.shape
    image = torch.zeros_like(latent_BCTHW)
    mask = latent_BCTHW.new_zeros(b, way.mask, t, h, w)
    if given is not None:
        frames = min(t, given.shape[2])
        image[:, :, :frames] = given[:, :, :frames]
        mask[:, :, 0] = 1
    return torch.cat([latent_BCTHW, *([mask, image] if way.mask_first else [image, mask])], 1)


def in_place(latent_BCTHW: Tensor, first_BCTHW: Tensor) -> Tensor:
    """Put the known frame in the place of the first."""
    return torch.cat([first_BCTHW.to(latent_BCTHW.dtype), latent_BCTHW[:, :, 1:]], 2)


def per_token(timestep_B: Tensor, clean_B: Tensor, grid_THW: tuple[int, int, int]) -> Tensor:
    """Return timesteps ``[B,S]``: those of clean data at the first frame's tokens."""
    frames, rows, columns = grid_THW
    known = torch.arange(frames * rows * columns, device=timestep_B.device) < rows * columns
    return torch.where(known, clean_B[:, None], timestep_B[:, None])


def known_velocity(velocity: Tensor, latent_BCTHW: Tensor, first_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Let the velocity at the first frame be the one that ends in what is known there: ``(x - first) / sigma``.

    The pipelines step the other frames alone, and put the known one in at the end: the same.
    """
    there = (latent_BCTHW[:, :, :1] - first_BCTHW) / expand(sigma_B, latent_BCTHW).clamp(min=SMALLEST)
    return in_place(velocity, there)
