"""``latent: {use: h3ae}``: an autoencoder of high compression, trained here from random weights (H3AE)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.codec.options import CodecOptions, LossWeights


class H3AELossWeights(LossWeights):
    """The same weights; by default L1 of pixels, and latent consistency."""

    epsilon: float = Field(default=0.0, ge=0)
    consistency: float = Field(default=0.1, ge=0)


class H3AEOptions(CodecOptions):
    """Options of ``h3ae``, besides those that every codec trained here shares.

    widths: of the network at cells of 4, 8, 16 … pixels; the last serves all coarser cells.
    blocks: residual blocks per resolution, of encoder and decoder alike.
    heads: of the attention at the bottleneck.
    window: latent frames that a token sees, its own among them.
    radius: cells to each side that a token sees; none: the whole frame, where tiles can't join exactly.
    first_share: share of the samples whose first frame the decoder is given in training.
    statistics_clips: training clips that the latent's mean and deviation are measured on.
    """

    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(48, 96, 160, 192), min_length=1, max_length=16
    )
    blocks: int = Field(default=2, ge=1, le=100)
    heads: int = Field(default=4, ge=1)
    window: int = Field(default=3, ge=1, le=64)
    radius: int | None = Field(default=2, ge=1)
    first_share: float = Field(default=0.5, ge=0, le=1)
    statistics_clips: int = Field(default=512, ge=1)
    losses: H3AELossWeights = H3AELossWeights()
    tile: int = Field(default=32, ge=4)


@hookimpl
def latent() -> Plugin:
    """Describe the step that trains it."""
    return Plugin(
        name="h3ae",
        options=H3AEOptions,
        load="dit_compress_plugins.latent_h3ae.step:H3AEStep",
        slots=("teacher",),
        world="all",
        data=True,
        summary="trains an efficient autoencoder of high compression; decodes with or without the first frame",
    )
