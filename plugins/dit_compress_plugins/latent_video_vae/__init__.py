"""``latent: {use: video_vae}``: a causal video VAE, trained here, that starts as PCA."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.codec.options import CodecOptions


class VideoVAEOptions(CodecOptions):
    """Options of ``video_vae``, besides those that every codec trained here shares.

    widths: of the residual networks: on single frames, then on latent frames at cells of 8, 16, 32 … pixels.
    blocks: residual blocks per resolution of the decoder; the encoder has one.
    whitening: 0 keeps the latent's distances those of pixels, 1 gives all principal components one variance.
    lr: of weights of unit size (see ``layers.EqualConv``), hence larger than is usual.
    pca_clips: clips that the PCA is fitted to.
    """

    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(32, 96, 160, 192), min_length=1, max_length=16
    )
    blocks: int = Field(default=2, ge=1, le=100)
    whitening: float = Field(default=0.5, ge=0, le=1)
    pca_clips: int = Field(default=512, ge=1)


@hookimpl
def latent() -> Plugin:
    """Describe the step that trains the VAE."""
    return Plugin(
        name="video_vae",
        options=VideoVAEOptions,
        load="dit_compress_plugins.latent_video_vae.step:VideoVAEStep",
        slots=("teacher",),
        world="all",
        data=True,
        summary="trains a causal video VAE, from PCA",
    )
