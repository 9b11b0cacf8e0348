"""Knowledge distillation through affine maps (Eq. 5–6)."""

from typing import Literal

from pydantic import Field

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import DistillOptions


class AffineOptions(DistillOptions):
    """Feature KD from the model the student was pruned from."""

    alpha: float = Field(0.01, ge=0, description="Weight of the feature loss (Eq. 6).")
    output_weight: float = Field(0.0, ge=0, description="Weight of the teacher's velocity as a second target.")
    groups: int = Field(4, ge=1, description="Block groups; the last block of each is compared.")
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    sigma: Literal["uniform", "logit_normal"] = "logit_normal"

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
        world="all",
        data=True,
        summary="feature KD through affine maps (Eq. 5-6)",
    )
