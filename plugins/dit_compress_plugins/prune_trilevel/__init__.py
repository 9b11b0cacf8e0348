"""Tri-level pruning: blocks, heads and feed-forward channels together (section 3.2 of the paper)."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl


class Budget(Options):
    """A size."""

    params: int = Field(gt=0, description="Parameters of the denoiser.")


class TrilevelOptions(Options):
    """Explicit counts (``levels``) or a size (``budget``); a search chooses the units."""

    levels: Annotated[dict[str, PartField] | None, Slot("granularity", many=True)] = None
    budget: Budget | None = Field(None, description="The toolkit chooses the counts; met within 1% from below.")
    limit: Budget | None = Field(None, description="An upper bound to check.")
    search: Annotated[PartField, Slot("search")]

    @model_validator(mode="after")
    def _levels_or_budget(self) -> Self:
        if self.levels is not None and self.budget is not None:
            raise ValueError(
                "'levels' and 'budget' exclude each other: give the counts, or let the toolkit choose them"
            )
        if self.levels is None and self.budget is None:
            raise ValueError("give 'levels' (explicit counts) or 'budget'")
        return self


@hookimpl
def prune() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="trilevel",
        options=TrilevelOptions,
        load="dit_compress_plugins.prune_trilevel.step:TrilevelPruning",
        summary="blocks, heads and FFN channels together",
    )
