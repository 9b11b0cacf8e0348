"""Knowledge distillation through affine maps (Eq. 5–6)."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import FlowMatchingOptions


class AffineOptions(FlowMatchingOptions):
    """Feature KD from the model the student was pruned from."""

    alpha: float | None = Field(0.01, ge=0, description="Weight of the feature loss (Eq. 6).")
    kd_share: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Instead of 'alpha': norm of the feature loss' gradient over the flow's.",
    )
    share_every: int = Field(100, ge=1, description="Steps between two measurements of that share.")
    sim: Literal["cosine", "mse", "relative_mse"] = "cosine"
    output_weight: float = Field(0.0, ge=0, description="Weight of the teacher's velocity as a second target.")
    guidance: float | None = Field(
        None,
        gt=1,
        description="Teach what guidance does, too: the second target is guided so much, and the student needs none.",
    )
    groups: int = Field(4, ge=1, description="Groups of the teacher's blocks; their outputs are compared.")
    pairs: Literal["ends", "origins"] = Field(
        "ends", description="The student's output of a group learns the teacher's, or the block it came from."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_weight(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("kd_share") is None:
            return given
        if given.get("alpha") is not None:
            raise ValueError("'alpha' and 'kd_share' both set the weight of the feature loss: give one of them")
        return {**given, "alpha": None}

    @model_validator(mode="after")
    def _a_weight(self) -> Self:
        if self.alpha is None and self.kd_share is None:
            raise ValueError("nothing sets the weight of the feature loss: give 'alpha' or 'kd_share'")
        return self

    @model_validator(mode="after")
    def _a_target_to_guide(self) -> Self:
        if self.guidance is not None and not self.output_weight:
            raise ValueError(
                "'guidance' is learnt from the teacher's velocity: set 'output_weight' (4 is a good start)"
            )
        return self

    @property
    def balanced_by(self) -> str:
        """The share of its gradient, where that is given."""
        return "" if self.kd_share is None else "'kd_share'"

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher, whose features are learnt."""
        return ("teacher",)


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="affine",
        options=AffineOptions,
        load="dit_compress_plugins.distill_affine.distiller:AffineDistiller",
        slots=("teacher",),
        revision=2,
        world="all",
        data=True,
        summary="feature KD through affine maps (Eq. 5-6)",
    )
