"""The video VAE: causal, deterministic, with its latent statistics in its config.

Shapes: B batch, C channels, T H W latent frames, height, width; video ``[B,3,F,Y,X]`` in [-1, 1] with
F = 1 + ratio[0]·(T-1), Y = ratio[1]·H, X = ratio[2]·W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from dit_compress.errors import UserError
from dit_compress_plugins.latent_video_vae.coders import Decoder, Encoder
from dit_compress_plugins.latent_video_vae.tiles import blend_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class VideoVAE(ModelMixin, ConfigMixin):
    """A video VAE ``[B,3,F,Y,X] ↔ [B,C,T,H,W]``; latent frame t depends on frames ≤ ratio[0]·t only.

    Args:
        ratio: pixels per latent cell along time, height, width; height and width alike, a power of two ≥ 8.
        channels: C.
        widths: network widths on single frames, then on latent frames at cells of 8, 16, 32 … pixels.
        num_blocks: residual blocks per resolution of the decoder; the encoder has one.
        latent_mean: per channel, of the raw latent; :meth:`set_statistics` writes it.
        latent_std: likewise.
        tile: :meth:`decode` cuts larger latents into tiles of so many cells.
        tile_overlap: cells that neighbouring tiles share and blend over.
    """

    @register_to_config
    def __init__(
        self,
        ratio: Sequence[int] = (8, 32, 32),
        channels: int = 128,
        widths: Sequence[int] = (32, 96, 160, 192),
        num_blocks: int = 2,
        latent_mean: Sequence[float] | None = None,
        latent_std: Sequence[float] | None = None,
        tile: int = 24,
        tile_overlap: int = 6,
    ) -> None:
        super().__init__()
        check_ratio(ratio)
        self.ratio = (ratio[0], ratio[1], ratio[2])
        self.channels = channels
        self.tile, self.tile_overlap = tile, tile_overlap
        self.encoder = Encoder(ratio, channels, widths)
        self.decoder = Decoder(ratio, channels, widths, num_blocks)
        self._set_statistics(latent_mean or [0.0] * channels, latent_std or [1.0] * channels)

    def encode(self, video_BCFYX: Tensor) -> Tensor:
        """Video in [-1, 1] → normalised latent ``[B,C,T,H,W]`` (the posterior's mean)."""
        self.check_video(video_BCFYX.shape)
        raw_BCTHW = self.encoder(video_BCFYX)
        mean, std = self._statistics(raw_BCTHW)
        return (raw_BCTHW - mean) / std

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Normalised latent → video, unclipped; tiled where a side exceeds ``tile``."""
        if max(latent_BCTHW.shape[-2:]) <= self.tile:
            return self.forward(latent_BCTHW)
        return blend_tiles(self.forward, latent_BCTHW, self.ratio[1], self.tile, self.tile_overlap)

    def forward(self, latent_BCTHW: Tensor) -> Tensor:
        """Decode in one piece: what exporters trace."""
        mean, std = self._statistics(latent_BCTHW)
        return self.decoder(latent_BCTHW * std + mean)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Write the raw latent's mean and std per channel into the config."""
        self._set_statistics(mean, std)
        # diffusers' from_config drops what it believes to be a default of the constructor.
        defaults = set(self.config.get("_use_default_values", ())) - {"latent_mean", "latent_std"}
        self.register_to_config(
            latent_mean=list(self._mean), latent_std=list(self._std), _use_default_values=sorted(defaults)
        )

    def check_video(self, shape: Sequence[int]) -> None:
        """Raise unless the video's frames and size fit the ratio."""
        frames, height, width = shape[-3:]
        time, size, _ = self.ratio
        if (frames - 1) % time or height % size or width % size:
            what = f"a video of {frames} frames of {height}x{width} pixels does not fit a VAE of {time}x{size}x{size}"
            raise UserError(what, mend=f"Give 1 + {time}·k frames, and a height and width divisible by {size}.")

    def _set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = tuple(map(float, mean)), tuple(map(float, std))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, self.channels, 1, 1, 1)
        return like.new_tensor(self._mean).reshape(shape), like.new_tensor(self._std).reshape(shape)


def check_ratio(ratio: Sequence[int]) -> None:
    """Raise unless the ratio is one this VAE can be built for."""
    time, height, width = ratio
    if time < 1 or height != width or height < 8 or height & (height - 1):
        what = f"a video_vae can't be built with ratio {time}x{height}x{width}"
        raise UserError(what, mend="Give an equal height and width, a power of two from 8 on, such as 8x32x32.")


def channel_statistics(raw_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std per channel ``[C]``; std at least a hundredth of the largest."""
    values_CN = raw_BCTHW.float().transpose(0, 1).flatten(1)
    std_C = values_CN.std(1)
    return values_CN.mean(1), torch.maximum(std_C, std_C.max() * 0.01)
