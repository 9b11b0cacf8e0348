"""Width of attention: heads of self- and cross-attention (tri-level pruning, level 2)."""

from pydantic import Field

from dit_compress.hooks import Options, Plugin, hookimpl


class HeadOptions(Options):
    """The number of heads to remove from every attention."""

    remove: int | None = Field(None, ge=0, description="Heads to remove per attention; left to the budget if absent.")


@hookimpl
def granularity() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="head",
        options=HeadOptions,
        load="dit_compress_plugins.granularity_head.axes:HeadGranularity",
        units="Heads",
        summary="attention heads, self and cross",
    )
