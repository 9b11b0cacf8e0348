"""Distribution matching to a few steps (DMD2 without its GAN head), and with a few-step guide (K-DMD of SnapGen++)."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import Beta, DistillOptions, Lora

_MODES = "Name a 'guide', raise 'critic_lr' or 'student_every', or end earlier (validation: {result: best})"


class DmdOptions(DistillOptions):
    """A student of few steps whose samples move from where a critic expects them to where the teacher does."""

    lr: float = Field(1e-6, gt=0, description="Learning rate of the student.")
    critic_lr: float = Field(1e-6, gt=0)
    betas: tuple[Beta, Beta] = Field((0.0, 0.99), description="Of Adam, for student and critic (SnapGen++).")
    warmup: int = Field(0, ge=0)
    ema: float = Field(0.95, ge=0, lt=1)
    sampling_steps: int = Field(4, ge=1)
    student_every: int = Field(5, ge=1, description="The student moves at each so-manieth step, the critic at all.")
    critic_warmup: int = Field(20, ge=0, description="Steps in which the critic trains alone.")
    guidance: float | None = Field(None, ge=1, description="Of the teacher alone; its bundle's if absent.")
    shift: float | None = Field(
        None, gt=0, description="Of the sigmas at which samples are noised again; the input's if absent."
    )
    lora: Lora | None = Field(None, description="Train low-rank updates of student and critic; 'lr: 1e-4' is usual.")
    output_weight: float = Field(1.0, ge=0, description="With a guide: weight of its velocity as a target.")
    feature_weight: float = Field(1.0, ge=0, description="With a guide: weight of its last feature as a target.")

    for_slots: ClassVar[dict[str, tuple[str, ...]]] = {
        **DistillOptions.for_slots,
        "guide": ("output_weight", "feature_weight"),
    }
    no_objective: ClassVar[str] = "it needs the bundle in the slot 'teacher' and a critic, and a search has neither"
    mends: ClassVar[Mapping[str, str]] = {"static": _MODES, "slow": _MODES, "alike": _MODES}

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, whose distribution is matched."""
        return ("teacher",)

    @model_validator(mode="after")
    def _trains_by_adam(self) -> Self:
        if self.muon_lr is not None:
            raise ValueError("student and critic have rates of their own, 'lr' and 'critic_lr': leave 'muon_lr' out")
        return self

    @model_validator(mode="after")
    def _trains_the_student(self) -> Self:
        if self.critic_warmup >= self.steps:
            raise ValueError(
                f"the critic warms up for {self.critic_warmup} of {self.steps} steps, and the student is never "
                "trained: lower 'critic_warmup' or raise 'steps'"
            )
        look = self.validation
        if look is not None and self.steps // look.every * look.every <= self.critic_warmup:
            raise ValueError("no validation comes after 'critic_warmup': lower 'every' in 'validation'")
        return self


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="dmd",
        options=DmdOptions,
        load="dit_compress_plugins.distill_dmd.distiller:DmdDistiller",
        slots=("teacher", "guide"),
        world="all",
        data=True,
        summary="few-step distribution matching, with a guide or without (DMD2, K-DMD)",
    )
