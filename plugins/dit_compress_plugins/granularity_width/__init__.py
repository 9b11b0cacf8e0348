"""Width of the residual stream: its channels, through the whole network."""

from typing import Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl


class WidthOptions(Options):
    """The share of the stream's channels that stays."""

    keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of channels that stays, to the nearest multiple; left to the budget if absent.",
    )
    remove: int | None = Field(None, ge=0, description="Channels to remove.")
    units: int = Field(32, ge=1, description="Equal parts a learned search cuts the width into.")
    multiple_of: int = Field(8, ge=1, description="Widths that a share or a budget may choose.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.keep is not None and self.remove is not None:
            raise ValueError("'keep' and 'remove' exclude each other; give one of them")
        return self


@hookimpl
def granularity() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="width",
        options=WidthOptions,
        load="dit_compress_plugins.granularity_width.axes:WidthGranularity",
        units="Stream channels",
        summary="width of the residual stream, through the whole network",
    )
