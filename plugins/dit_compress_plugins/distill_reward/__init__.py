"""Rewards: a generator is trained through its decoder and last sampling steps by what a frozen critic answers."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from dit_compress.hooks import DistillOptions, PartField, Plugin, Slot, hookimpl, hookspec

_HACKED = (
    "End at the judge's best (validation: {result: best, patience: 2}), raise 'anchor_weight' or lower 'lr'; "
    "a critic that is deceived is no measure of the result"
)


class RewardHooks:
    """Parts that answer questions about videos."""

    @hookspec
    def reward(self) -> Plugin:
        """Judge videos by their captions; see ``dit_compress_plugins.distill_reward.rewards.RewardPart``."""


@hookimpl
def part_kinds() -> type:
    """Add the kind ``reward``."""
    return RewardHooks


class RewardOptions(DistillOptions):
    """The critic, how far gradients go, and what keeps the model from deceiving it."""

    reward: Annotated[PartField, Slot("reward")] = Field(description="The critic, which is trained for.")
    judge: Annotated[PartField | None, Slot("reward")] = Field(
        None, description="Judges validations, needs no gradient; if absent, the critic itself: then nobody checks it."
    )
    lr: float = Field(1e-5, gt=0, description="Learning rate of the student.")
    warmup: int = Field(0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)
    last_steps: int = Field(1, ge=1, description="K: gradients go through so many of the last sampling steps.")
    sampling_steps: int | None = Field(None, ge=1, description="Of training and of the result; the input's if absent.")
    guidance: float | None = Field(None, ge=1, description="Likewise.")
    anchor_weight: float = Field(
        1.0, ge=0, description="Weight of the squared distance to the velocities of the model it began with."
    )
    recompute: bool = Field(
        False,
        description="Compute the K sampling steps, decoder and critic again in the backward pass; less memory.",
    )

    mends: ClassVar[Mapping[str, str]] = {"hacked": _HACKED}

    @property
    def idle_slots(self) -> dict[str, str]:
        """Where it is anchored to, where it is not."""
        return {} if self.anchor_weight else {"start": "'anchor_weight' above 0"}

    @model_validator(mode="after")
    def _is_judged_by_another(self) -> Self:
        if self.judge == self.reward:
            raise ValueError(
                "the 'judge' is the critic itself, and sees nothing besides: name another, or leave it out"
            )
        return self


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="reward",
        options=RewardOptions,
        load="dit_compress_plugins.distill_reward.distiller:RewardDistiller",
        slots=("start",),
        world="all",
        data=True,
        summary="a frozen critic's answers, through decoder and last sampling steps (Diffusion-DRF)",
    )
