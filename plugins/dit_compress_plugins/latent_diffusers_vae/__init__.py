"""``latent: {use: diffusers_vae}``: a video VAE of diffusers from a local folder, as it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import File, Options, Plugin, hookimpl


class DiffusersVAEOptions(Options):
    """The VAE, and its convention. Nothing is trained.

    path: a local folder with config.json and safetensors, or a pipeline's folder with ``vae/`` in it.
    scaling_factor: what normalised latents are multiplied by. Not given: the config's, 1 where it has none.
        (Cosmos 1 multiplies by its scheduler's ``sigma_data``, 0.5, which the VAE's config does not hold.)
    tile: encode and decode large frames in the VAE's own overlapping tiles.
    decode_timestep: the noise level given to decoders that are conditioned on one (LTX 0.9.1 and later).
    """

    path: Annotated[str, File(("vae",))]
    scaling_factor: float | None = Field(default=None, gt=0)
    tile: bool = False
    decode_timestep: float = Field(default=0.0, ge=0, le=1)


@hookimpl
def latent() -> Plugin:
    """Describe the step that wraps the VAE."""
    return Plugin(
        name="diffusers_vae",
        options=DiffusersVAEOptions,
        load="dit_compress_plugins.latent_diffusers_vae.step:DiffusersVAEStep",
        requires=("diffusers",),
        summary="wraps any video VAE of diffusers, from a local folder",
    )
