"""The modulation of every block: linears of low rank, or a table over the sigmas of a schedule."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl


class ModulationOptions(Options):
    """Either ``rank`` (approximate, for any schedule) or ``table`` (exact, for one)."""

    rank: int | None = Field(None, ge=1, description="Features between the two linears that stand for one.")
    table: Annotated[list[float], Field(min_length=1)] | Literal["schedule"] | None = Field(
        None, description="Sigmas of the table's rows; 'schedule': those at which the bundle is sampled."
    )
    sigmas: int = Field(32, ge=1, description="Noise levels on which 'rank' looks at the inputs.")

    @property
    def one_schedule(self) -> bool:
        """True of a table."""
        return self.table is not None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.rank is None) == (self.table is None):
            raise ValueError("give either 'rank' or 'table'")
        return self


@hookimpl
def prune() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="modulation",
        options=ModulationOptions,
        load="dit_compress_plugins.prune_modulation.step:ModulationPruning",
        summary="per-block modulation (AdaLN) as a table over sigmas, or of low rank",
    )
