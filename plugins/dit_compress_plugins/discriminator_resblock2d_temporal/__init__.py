"""A residual block of 2D convolutions per frame and attention over time (SnapGen-V; row 2 of Table 5)."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class ResBlock2DTemporalOptions(Options):
    """The depth of the frozen part, and the width of the head."""

    frozen_blocks: int | None = Field(None, ge=1, description="K; half of the generator's depth if absent.")
    width: int | None = Field(
        None, ge=8, multiple_of=8, description="Channels of the head; as many parameters as dit_block's if absent."
    )


@hookimpl
def discriminator() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="resblock2d_temporal",
        options=ResBlock2DTemporalOptions,
        load="dit_compress_plugins.discriminator_resblock2d_temporal.discriminator:ResBlock2DTemporalPart",
        summary="frozen generator blocks, a 2D residual block, attention over time",
    )
