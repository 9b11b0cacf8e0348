"""The video VAE: causal, deterministic, with its latent statistics in its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers.configuration_utils import register_to_config

from dit_compress.model.codec.causal import CausalCodec, check_ratio
from dit_compress_plugins.latent_video_vae.coders import Decoder, Encoder

if TYPE_CHECKING:
    from collections.abc import Sequence


class VideoVAE(CausalCodec):
    """A video VAE ``[B,3,F,Y,X] ↔ [B,C,T,H,W]``; latent frame t depends on frames ≤ ratio[0]·t only.

    Args:
        ratio: pixels per latent cell along time, height, width; height and width alike, a power of two ≥ 8.
        channels: C.
        widths: network widths on single frames, then on latent frames at cells of 8, 16, 32 … pixels.
        num_blocks: residual blocks per resolution of the decoder; the encoder has one.
        latent_mean: per channel, of the raw latent; ``set_statistics`` writes it.
        latent_std: likewise.
        tile: frames of more cells a side are encoded and decoded in tiles of so many.
        tile_overlap: cells that neighbouring tiles share; None for so many that tiles join exactly, up to half of one.
        chunk: longer videos are encoded and decoded in chunks of so many latent frames, which join exactly.
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
        tile_overlap: int | None = None,
        chunk: int = 16,
    ) -> None:
        super().__init__()
        check_ratio(ratio, "video_vae")
        self.encoder = Encoder(ratio, channels, widths)
        self.decoder = Decoder(ratio, channels, widths, num_blocks)
        self.settle(ratio, channels, (latent_mean, latent_std), (tile, tile_overlap), chunk)
