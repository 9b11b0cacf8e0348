"""The paper's discriminator: frozen generator blocks, learnable DiT blocks, an MLP (section 4.3, Table 5)."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class DitBlockOptions(Options):
    """The depths of the frozen and of the learnable part."""

    frozen_blocks: int | None = Field(None, ge=1, description="K; half of the generator's depth if absent.")
    learnable_blocks: int = Field(2, ge=1)
    hidden: int | None = Field(None, ge=1, description="Width of the MLP; a quarter of the stream if absent.")


@hookimpl
def discriminator() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="dit_block",
        options=DitBlockOptions,
        load="dit_compress_plugins.discriminator_dit_block.discriminator:DitBlockDiscriminatorPart",
        summary="frozen generator blocks, learnable DiT blocks, SiLU MLP",
    )
