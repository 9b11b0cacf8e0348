"""Flow matching (Eq. 2): pre-training, or fine-tuning a pruned model without a teacher."""

from typing import ClassVar

from pydantic import Field

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import FlowMatchingOptions


class FlowOptions(FlowMatchingOptions):
    """Velocity regression on cached latents."""

    shift: float = Field(3.0, gt=0, description="Moves sigmas towards noise, in training and sampling alike.")
    sampling_steps: int = Field(40, ge=1)
    guidance: float = Field(4.0, ge=1)

    around: ClassVar[frozenset[str]] = frozenset({"sampling_steps", "guidance"})


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="flow",
        options=FlowOptions,
        load="dit_compress_plugins.distill_flow.distiller:FlowDistiller",
        world="all",
        data=True,
        summary="flow matching (Eq. 2)",
    )
