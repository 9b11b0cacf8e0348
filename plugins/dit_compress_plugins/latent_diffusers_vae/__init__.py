"""``latent: {use: diffusers_vae}``: a video VAE of diffusers from a local folder, as it is or fine-tuned."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import File, Options, Plugin, hookimpl
from dit_compress.plugin.options import Keyed
from dit_compress.train.codec.options import CodecTraining, LossWeights, Scale


class FineTuneWeights(LossWeights):
    """The same weights; by default L1, and scale equivariance, whose options therefore count in every key."""

    temporal: float = Field(default=0.0, ge=0)
    kl: float = Field(default=0.0, ge=0)
    epsilon: float = Field(default=0.0, ge=0)
    scale: float = Field(default=0.25, ge=0)
    scale_target: Literal["video", "decoded"] = "video"
    scales: tuple[Scale, ...] = Field(default=(2,), min_length=1, max_length=4)


class FineTune(CodecTraining):
    """The training of somebody else's VAE, on the recipe's clips.

    train: all of it, or the decoder alone, whose latents stay what they were.
    latents: ``changed`` says that they may move although the bundle has a denoiser, which is to be trained anew.
    """

    train: Literal["all", "decoder"] = "all"
    latents: Literal["kept", "changed"] = "kept"
    lr: float = Field(default=1e-5, gt=0)
    noise: float = Field(default=0.01, gt=0)
    losses: FineTuneWeights = FineTuneWeights()

    @property
    def idle(self) -> dict[str, str]:
        """What says that latents move, where they can't."""
        return super().idle | ({} if self.train == "all" else {"latents": "'train: all'"})

    @model_validator(mode="after")
    def _has_no_teacher(self) -> Self:
        if self.losses.features:
            raise ValueError("a fine-tuned VAE has no teacher whose 'features' it could learn: leave them out")
        return self


class DiffusersVAEOptions(Options):
    """The VAE, and its convention. Nothing is trained unless ``finetune`` says so.

    path: a local folder with config.json and safetensors, or a pipeline's folder with ``vae/`` in it.
    scaling_factor: what normalised latents are multiplied by. Not given: the config's, 1 where it has none.
        (Cosmos 1 multiplies by its scheduler's ``sigma_data``, 0.5, which the VAE's config does not hold.)
    tile: encode and decode large frames in the VAE's own overlapping tiles.
    decode_timestep: the noise level given to decoders that are conditioned on one (LTX 0.9.1 and later).
    finetune: how it is trained further.
    """

    path: Annotated[str, File(("vae",))]
    scaling_factor: float | None = Field(default=None, gt=0)
    tile: bool = False
    decode_timestep: float = Field(default=0.0, ge=0, le=1)
    finetune: Annotated[FineTune | None, Keyed("finetune")] = None

    @property
    def reads_data(self) -> Literal["no", "if any", "yes"]:
        """It looks at clips where it is trained."""
        return "no" if self.finetune is None else "yes"

    @property
    def of_latents(self) -> Self:
        """Latents are those of the folder where the decoder alone is trained."""
        decodes = self.finetune is not None and self.finetune.train == "decoder"
        return self.model_copy(update={"finetune": None}) if decodes else self

    @property
    def any_size(self) -> bool:
        """True: the loop draws each batch of one size."""
        return True

    @property
    def held_out(self) -> bool:
        """Its quality is measured where it is trained."""
        return self.finetune is not None


@hookimpl
def latent() -> Plugin:
    """Describe the step that wraps the VAE."""
    return Plugin(
        name="diffusers_vae",
        options=DiffusersVAEOptions,
        load="dit_compress_plugins.latent_diffusers_vae.step:DiffusersVAEStep",
        revision=2,
        requires=("diffusers",),
        world="all",
        summary="wraps any video VAE of diffusers, from a local folder, or fine-tunes it",
    )
