"""A light residual block of 1×1×1 convolutions (PCM, as Conv3D; row 3 of Table 5)."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class LightResBlock3DOptions(Options):
    """The depth of the frozen part, and the width of the head."""

    frozen_blocks: int | None = Field(None, ge=1, description="K; half of the generator's depth if absent.")
    width: int | None = Field(
        None, ge=8, multiple_of=8, description="Channels of the head; as many parameters as dit_block's if absent."
    )


@hookimpl
def discriminator() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="light_resblock3d",
        options=LightResBlock3DOptions,
        load="dit_compress_plugins.discriminator_light_resblock3d.discriminator:LightResBlock3DPart",
        summary="frozen generator blocks, a residual block of 1x1x1 convolutions",
    )
