"""Depth: whole blocks of a stack (tri-level pruning, level 1)."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class BlockOptions(Options):
    """The number of blocks to remove from the longest stack, or from the one that the level names."""

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
