"""``latent: {use: decoder}``: a small decoder for a phone, onto the latents of a VAE that stays as it is."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import DistillOptions, File, Options, Plugin, hookimpl
from dit_compress.train.codec.options import NOT_FOR_A_VAE
from dit_compress.train.options import Validation

NOT_FOR_A_DECODER = (*NOT_FOR_A_VAE, "images", "watch")
"""Options of a distillation that are about a denoiser."""
OF_A_NEW_ONE = ("widths", "blocks", "frame_width", "start_clips", "chunk")
"""Options that say what a new decoder is like, and how it begins."""
Width = Annotated[int, Field(ge=1, le=4096)]


class Targets(Options):
    """Weights of the two targets of L1: the clip's own pixels, and what the original decoder makes of its latent."""

    pixel: float = Field(1.0, ge=0)
    teacher: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if not self.pixel and not self.teacher:
            raise ValueError("nothing to learn: give 'pixel' or 'teacher' a weight")
        return self


class DecoderOptions(DistillOptions):
    """Whose latents, and how small a decoder."""

    of: Annotated[str | None, File(("vae", "latent"))] = Field(
        None,
        description="The VAE whose encoder stays: a bundle, or a folder of a diffusers VAE; the input's if absent.",
    )
    student: Literal["small", "input"] = Field(
        "small", description="What is trained: a new small decoder, or the input's own, as pruning has left it."
    )
    widths: tuple[Width, ...] = Field(
        (96, 64, 48),
        min_length=1,
        max_length=8,
        description="Of the network on latent frames, by resolution: at latent cells, at half of one, at a quarter …",
    )
    blocks: int = Field(1, ge=1, le=100, description="Residual blocks a resolution; the first of each looks back once.")
    frame_width: int = Field(
        24, ge=0, le=4096, description="Of the network on single frames, at cells of 4 pixels; 0: there is none."
    )
    start_clips: int = Field(64, ge=1, description="Clips to which the linear part is fitted before training.")
    chunk: int = Field(16, ge=1, description="Longer videos are decoded in chunks of so many latent frames.")
    targets: Targets = Targets()
    steps: int = Field(2000, ge=1)
    batch: int = Field(4, ge=1)
    lr: float = Field(2e-3, gt=0)
    decay: float = Field(0.02, gt=0, le=1)
    ema: float = Field(0.99, ge=0, lt=1)
    validation: Validation | None = Field(
        Validation(every=100, samples=16, result="best"),
        description="Held-out loss, measured after the last step, too; the step gives the decoder that was best by it.",
    )

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, where a pruned decoder learns from the whole one."""
        return ("teacher",) if self.student == "input" and self.targets.teacher else ()

    @property
    def idle(self) -> dict[str, str]:
        """What a new decoder would be like, where there is none."""
        return super().idle | (dict.fromkeys(OF_A_NEW_ONE, "'student: small'") if self.student == "input" else {})

    @property
    def held_out(self) -> bool:
        """Its quality is measured on held-out clips."""
        return True

    @property
    def any_size(self) -> bool:
        """True: everything is of the batch's size."""
        return True

    @property
    def keeps_latents(self) -> bool:
        """That is what it is for."""
        return True

    @model_validator(mode="after")
    def _has_no_denoiser(self) -> Self:
        fields = type(self).model_fields
        for name in NOT_FOR_A_DECODER:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"a decoder's step trains no denoiser, which {name!r} is about: take it out")
        return self

    @model_validator(mode="after")
    def _goes_on_with_the_input(self) -> Self:
        if self.student == "input" and self.of is not None:
            raise ValueError("'student: input' trains the decoder of the step's input: take 'of' out, name a 'teacher'")
        return self


@hookimpl
def latent() -> Plugin:
    """Describe the step that trains the decoder."""
    return Plugin(
        name="decoder",
        options=DecoderOptions,
        load="dit_compress_plugins.latent_decoder.step:DecoderStep",
        revision=2,
        slots=("teacher",),
        world="all",
        data=True,
        summary="a small decoder onto the latents of a VAE that stays as it is",
    )
