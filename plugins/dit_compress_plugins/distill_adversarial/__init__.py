"""Adversarial distillation to a few steps (Eq. 7–9)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import DistillOptions

_LOSE_MOTION = "Add 'teacher_samples', lower 'adversarial_weight' or 'lr', or end earlier (validation: {result: best})"


class AdversarialOptions(DistillOptions):
    """A generator that jumps between the sampling sigmas, judged by a discriminator on noised latents."""

    lr: float = Field(1e-6, gt=0, description="Learning rate of the generator.")
    discriminator_lr: float = Field(1e-4, gt=0)
    warmup: int = Field(0, ge=0)
    ema: float = Field(0.95, ge=0, lt=1)
    sampling_steps: int = Field(4, ge=1)
    discriminator: Annotated[PartField | None, Slot("discriminator")] = None
    frozen_blocks: int | None = Field(
        None, ge=1, description="K of the default discriminator; half the depth if absent."
    )
    discriminator_warmup: int = Field(20, ge=0, description="Steps in which the discriminator trains alone.")
    adversarial_weight: float = Field(1.0, ge=0)
    reconstruction_weight: float = Field(1.0, ge=0)
    huber: float = Field(1e-3, gt=0, description="c of the pseudo-Huber loss.")
    grid: Literal["with_zero", "literal"] = Field(
        "with_zero", description="t' from {T2..TN, 0}; 'literal' leaves 0 out, and T_N is then never trained."
    )
    renoise: Literal["grid", "logit_normal"] = Field(
        "grid",
        description="Judge at t' of Eq. 7, or what x0 is predicted to be at a sigma drawn logit-normally (SF-V).",
    )
    renoise_mean: float = Field(-1.0, description="Of the logit; lower judges finer detail.")
    renoise_std: float = Field(1.0, gt=0)
    huber_over: Literal["sample", "element"] = "sample"
    r1: float = Field(
        0.0, ge=0, description="Weight of R1, half the squared slope of the discriminator on real samples."
    )
    r1_kind: Literal["exact", "approximate"] = Field(
        "exact", description="By the feature the learnable part begins at, or by two calls on nearby latents."
    )
    r1_scale: float = Field(0.01, gt=0, description="Noise between the nearby latents.")
    teacher_samples: int = Field(
        0, ge=0, description="Clean latents sampled by the guided teacher instead of data; teaches what guidance did."
    )
    teacher_steps: int | None = Field(None, ge=1, description="Sampling steps of the teacher; the bundle's if absent.")

    mends: ClassVar[Mapping[str, str]] = {
        "sure": "Lower 'discriminator_lr', set 'r1', or judge noisier latents (renoise: logit_normal)",
        "blind": "Raise 'discriminator_lr' or 'discriminator_warmup', or lower 'r1'",
        "static": _LOSE_MOTION,
        "slow": _LOSE_MOTION,
        "alike": "Lower 'adversarial_weight', or give the generator real clips again (reconstruction_weight)",
    }

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, where it samples."""
        return ("teacher",) if self.teacher_samples else ()

    @model_validator(mode="after")
    def _one_depth(self) -> Self:
        if self.discriminator is not None and self.frozen_blocks is not None:
            raise ValueError("'frozen_blocks' belongs to the default discriminator; say it inside 'discriminator'")
        return self

    @model_validator(mode="after")
    def _trains_the_generator(self) -> Self:
        if self.discriminator_warmup >= self.steps:
            raise ValueError(
                f"the discriminator warms up for {self.discriminator_warmup} of {self.steps} steps, and the generator "
                "is never trained: lower 'discriminator_warmup' or raise 'steps'"
            )
        first = self.discriminator_warmup + 1
        if self.validation is not None and self.steps // self.validation.every * self.validation.every < first:
            raise ValueError("no validation comes after 'discriminator_warmup': lower 'every' in 'validation'")
        if self.grid == "literal" and self.sampling_steps == 1:
            raise ValueError("with one sampling step the literal grid has no t': take 'grid: with_zero'")
        return self


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="adversarial",
        options=AdversarialOptions,
        load="dit_compress_plugins.distill_adversarial.distiller:AdversarialDistiller",
        slots=("teacher",),
        world="all",
        data=True,
        summary="few-step adversarial distillation (Eq. 7-9)",
    )
