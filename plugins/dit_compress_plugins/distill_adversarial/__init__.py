"""Adversarial distillation to a few steps (Eq. 7–9)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import DistillOptions

_LOSE_MOTION = "Add 'teacher_samples', lower 'adversarial_weight' or 'lr', or end earlier (validation: {result: best})"
_OF_THE_JUDGE = (
    "discriminator", "discriminator_lr", "discriminator_warmup", "frozen_blocks", "generator_every", "share_every",
    "renoise", "renoise_mean", "renoise_std", "r1", "r1_kind", "r1_scale",
)  # fmt: skip


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
    generator_every: int = Field(1, ge=1, description="The generator moves at each so-manieth step.")
    adversarial_weight: float = Field(1.0, ge=0, description="Of the loss; with 'balance: gradient' of its gradient.")
    reconstruction_weight: float = Field(1.0, ge=0)
    balance: Literal["fixed", "gradient"] = Field(
        "fixed", description="Weights as given, or the adversarial gradient so many times the reconstruction's."
    )
    share_every: int = Field(50, ge=1, description="Generator updates between two measurements of the gradients.")
    huber: float = Field(1e-3, gt=0, description="c of the pseudo-Huber loss.")
    huber_over: Literal["norm", "mean", "elements"] = Field(
        "mean", description="Of a sample's difference: its norm, the root of its mean square, or one by one."
    )
    renoise: Literal["logit_normal", "grid"] = Field(
        "logit_normal",
        description="Judge the predicted x0, noised anew at a logit-normal sigma, or the sample at t' of Eq. 7.",
    )
    renoise_mean: float = Field(-1.0, description="Of the logit; lower judges finer detail.")
    renoise_std: float = Field(1.0, gt=0)
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
    teacher_guidance: float | None = Field(None, ge=1, description="Its guidance; the bundle's if absent.")

    no_objective: ClassVar[str] = "a discriminator is trained first, and its losses say nothing of the student's units"
    mends: ClassVar[Mapping[str, str]] = {
        "sure": "Lower 'discriminator_lr', set 'r1', or judge noisier latents ('renoise_mean: 0')",
        "blind": "Raise 'discriminator_lr' or 'discriminator_warmup', or lower 'r1'",
        "static": _LOSE_MOTION,
        "slow": _LOSE_MOTION,
        "alike": "Lower 'adversarial_weight', or give the generator real clips again (reconstruction_weight)",
    }

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, where it samples."""
        return ("teacher",) if self.teacher_samples else ()

    @property
    def idle(self) -> dict[str, str]:
        """What the discriminator, the reconstruction and the teacher's samples would be like, where there are none."""
        found = dict.fromkeys(("renoise_mean", "renoise_std"), "'renoise: logit_normal'")
        found = found if self.renoise == "grid" else {}
        if not self.r1:
            found |= dict.fromkeys(("r1_kind", "r1_scale"), "'r1' above 0")
        elif self.r1_kind == "exact":
            found["r1_scale"] = "'r1_kind: approximate'"
        if not self.adversarial_weight:
            found |= dict.fromkeys(_OF_THE_JUDGE, "'adversarial_weight' above 0")
        if not self.reconstruction_weight:
            found |= dict.fromkeys(("huber", "huber_over", "share_every"), "'reconstruction_weight' above 0")
        if not self.teacher_samples:
            found |= dict.fromkeys(("teacher_steps", "teacher_guidance"), "'teacher_samples' above 0")
        return super().idle | found

    @property
    def idle_slots(self) -> dict[str, str]:
        """The teacher, where it samples nothing."""
        return {} if self.teacher_samples else {"teacher": "'teacher_samples' above 0"}

    @property
    def first_update(self) -> int:
        """The step of the generator's first update; without an adversarial loss no discriminator is trained before."""
        return self.discriminator_warmup if self.adversarial_weight else 0

    @model_validator(mode="after")
    def _one_depth(self) -> Self:
        if self.discriminator is not None and self.frozen_blocks is not None:
            raise ValueError("'frozen_blocks' belongs to the default discriminator; say it inside 'discriminator'")
        return self

    @model_validator(mode="after")
    def _trains_the_generator(self) -> Self:
        if self.first_update >= self.steps:
            raise ValueError(
                f"the discriminator warms up for {self.discriminator_warmup} of {self.steps} steps, and the generator "
                "is never trained: lower 'discriminator_warmup' or raise 'steps'"
            )
        every = self.validation.every if self.validation is not None else 1
        if self.steps // every * every <= self.first_update:
            raise ValueError("no validation comes after 'discriminator_warmup': lower 'every' in 'validation'")
        if self.renoise == "grid" and self.sampling_steps == 1:
            raise ValueError("with one sampling step the grid has no t' to judge at: take 'renoise: logit_normal'")
        return self

    @model_validator(mode="after")
    def _has_something_to_weigh(self) -> Self:
        if not self.adversarial_weight and not self.reconstruction_weight:
            raise ValueError(
                "'adversarial_weight' and 'reconstruction_weight' are both 0: nothing trains the generator"
            )
        if self.renoise == "grid" and not self.reconstruction_weight:
            raise ValueError(
                "on the grid the last sampling step is trained by its reconstruction alone: give "
                "'reconstruction_weight' above 0, or 'renoise: logit_normal'"
            )
        if self.balance == "gradient" and not (self.adversarial_weight and self.reconstruction_weight):
            raise ValueError(
                "'balance: gradient' weighs one gradient by the other: give 'adversarial_weight' and "
                "'reconstruction_weight' above 0, or 'balance: fixed'"
            )
        return self


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="adversarial",
        options=AdversarialOptions,
        load="dit_compress_plugins.distill_adversarial.distiller:AdversarialDistiller",
        slots=("teacher",),
        revision=3,
        world="all",
        data=True,
        summary="few-step adversarial distillation (Eq. 7-9)",
    )
