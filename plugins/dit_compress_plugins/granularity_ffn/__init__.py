"""Width of the feed-forward: its channels (tri-level pruning, level 3)."""

from typing import Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl


class FfnOptions(Options):
    """The share of every feed-forward's channels that stays."""

    keep: float | None = Field(
        None, gt=0, le=1, description="Share of channels that stays; left to the budget if absent."
    )
    remove: int | None = Field(None, ge=0, description="Channels to remove per feed-forward.")
    units: int = Field(32, ge=1, description="Equal parts a learned search cuts each feed-forward into.")
    multiple_of: int = Field(8, ge=1, description="Channel counts a budget may choose.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.keep is not None and self.remove is not None:
            raise ValueError("'keep' and 'remove' exclude each other; give one of them")
        return self


@hookimpl
def granularity() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="ffn",
        options=FfnOptions,
        load="dit_compress_plugins.granularity_ffn.axes:FfnGranularity",
        units="Channels",
        summary="feed-forward channels, gate/value pairs as one",
    )
