"""Knowledge distillation scaled by the noise level, from any teacher of the same latents (SnapGen)."""

from typing import ClassVar

from pydantic import Field

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import FlowMatchingOptions


class ScaledOptions(FlowMatchingOptions):
    """Flow matching in the middle of the noise levels, the teacher at their ends, both of one size everywhere."""

    features: bool = Field(True, description="Compare the last features, too.")
    weight: float | None = Field(
        None, ge=0, description="Instead of the scaling: one fixed weight of the teacher's losses; 0 leaves them out."
    )
    bins: int = Field(8, ge=1, le=1000, description="Noise levels whose losses are balanced apart.")
    ratio_decay: float = Field(0.95, ge=0, lt=1, description="Decay of the averages that the balance is taken of.")

    no_objective: ClassVar[str] = "it learns from the bundle in the slot 'teacher', and a search has none"

    @property
    def idle(self) -> dict[str, str]:
        """The balance, where the weight is fixed."""
        return super().idle | (
            {}
            if self.weight is None
            else dict.fromkeys(("bins", "ratio_decay"), "the scaling, which 'weight' replaces")
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher."""
        return ("teacher",)


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="scaled",
        options=ScaledOptions,
        load="dit_compress_plugins.distill_scaled.distiller:ScaledDistiller",
        slots=("teacher",),
        world="all",
        data=True,
        summary="KD scaled by noise level, from any teacher of the same latents (SnapGen)",
    )
