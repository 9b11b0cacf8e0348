"""Latent: those that the data holds, in a world without pixels."""

from __future__ import annotations

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class GivenOptions(Options):
    """channels: of the latents. A cell of a latent counts as a pixel of the data's ``frames`` and ``size``."""

    channels: int = Field(16, ge=1, le=16384)


@hookimpl
def latent() -> Plugin:
    """Register the plugin."""
    return Plugin(
        name="given",
        options=GivenOptions,
        load="dit_compress_plugins.latent_given.codec:GivenStep",
        summary="no VAE: latents as the data gives them, in a world without pixels",
    )
