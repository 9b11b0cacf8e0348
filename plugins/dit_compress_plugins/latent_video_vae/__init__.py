"""``latent: {use: video_vae}``: a causal video VAE, trained here, that starts as PCA."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl
from dit_compress.train.options import TrainOptions


class LossWeights(Options):
    """Weights of the training loss, and the error below which it is quadratic (of pixels in -1 … 1).

    A small epsilon makes errors count by their size alone: corners, large errors of few pixels, are given up.
    0 is plain L1.

    pixel: of smooth L1. temporal: of the differences of successive frames. haar: of spatial detail bands.
    multiscale: of frames averaged over 2x2, 4x4 … pixels. kl: of the distance of the posterior to a standard normal.
    features: of the distance of the decoder's streams to those of the VAE in the slot ``teacher``.
    levels: of the Haar bands, and of the averages.
    """

    pixel: float = Field(default=1.0, ge=0)
    temporal: float = Field(default=0.25, ge=0)
    haar: float = Field(default=0.0, ge=0)
    multiscale: float = Field(default=0.0, ge=0)
    kl: float = Field(default=1e-5, ge=0)
    features: float = Field(default=0.0, ge=0)
    epsilon: float = Field(default=1.0, ge=0)
    levels: int = Field(default=1, ge=1, le=3)


class VideoVAEOptions(TrainOptions):
    """Options of ``video_vae``, besides those every training step shares.

    ratio: pixels per latent cell along time, height, width: 4x16x16, 4x32x32, 8x32x32, 8x64x64.
    channels: of the latent.
    widths: of the residual networks: on single frames, then on latent frames at cells of 8, 16, 32 … pixels.
    blocks: residual blocks per resolution of the decoder; the encoder has one.
    whitening: 0 keeps the latent's distances those of pixels, 1 gives all principal components one variance.
    noise: largest std of the posterior in training; the decoder learns to forgive a generator so much.
    lr: of weights of unit size (see ``blocks.EqualConv``), hence larger than is usual.
    pca_clips: clips that the PCA is fitted to.
    tile: frames of more latent cells a side are encoded and decoded in tiles of so many.
    chunk: videos of more latent frames are encoded and decoded in chunks of so many.
    """

    ratio: str = Field(default="8x32x32", pattern=r"^[1-9]\d{0,2}x[1-9]\d{0,2}x[1-9]\d{0,2}$")
    channels: int = Field(default=64, ge=1, le=16384)
    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(32, 96, 160, 192), min_length=1, max_length=16
    )
    blocks: int = Field(default=2, ge=1, le=100)
    whitening: float = Field(default=0.5, ge=0, le=1)
    noise: float = Field(default=0.1, gt=0)
    steps: int = Field(default=3000, ge=1)
    batch: int = Field(default=4, ge=1)
    lr: float = Field(default=2e-2, gt=0)
    decay: float = Field(default=0.02, gt=0, le=1)
    ema: float = Field(default=0.99, ge=0, lt=1)
    pca_clips: int = Field(default=512, ge=1)
    bf16: bool = True
    losses: LossWeights = LossWeights()
    tile: int = Field(default=24, ge=4)
    chunk: int = Field(default=16, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, where its features are learnt."""
        return ("teacher",) if self.losses.features else ()

    @property
    def held_out(self) -> bool:
        """Its quality is measured on held-out clips."""
        return True

    @model_validator(mode="after")
    def _has_no_denoiser(self) -> Self:
        given = [name for name in ("compile", "shard", "bf16_gather", "muon_lr") if getattr(self, name)]
        if given:
            raise ValueError(f"a VAE's step trains no denoiser, whose blocks {given[0]!r} is about: take it out")
        return self

    def ratio_numbers(self) -> tuple[int, int, int]:
        """Return the ratio as numbers."""
        time, height, width = map(int, self.ratio.split("x"))
        return time, height, width


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
