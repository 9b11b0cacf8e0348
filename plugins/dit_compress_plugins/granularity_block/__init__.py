"""Depth: whole blocks of a stack (tri-level pruning, level 1)."""

from pydantic import Field

from dit_compress.plugin.kinds import hookimpl
from dit_compress.plugin.options import Options, Plugin


class BlockOptions(Options):
    """How many blocks to remove from every stack of the denoiser."""

    remove: int | None = Field(None, ge=0, description="Blocks to remove; left to the budget if absent.")


@hookimpl
def granularity() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="block",
        options=BlockOptions,
        load="dit_compress_plugins.granularity_block.axes:BlockGranularity",
        units="Blocks",
        summary="whole blocks (depth)",
    )
