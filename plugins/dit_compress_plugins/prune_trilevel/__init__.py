"""Tri-level pruning: blocks, heads and feed-forward channels together (section 4.2 of the paper)."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import Field, PlainSerializer, PositiveInt, WrapValidator, model_validator

from dit_compress.hooks import File, Options, PartField, Plugin, Slot, hookimpl


def _or_percent(value: Any, number: Callable[[Any], Any]) -> Any:
    """Take ``50%`` as it is, anything else as a number."""
    if not isinstance(value, str) or not re.fullmatch(r"\d+(\.\d+)?%", value):
        return number(value)
    if not 0 < float(value[:-1]) <= 100:
        raise ValueError(f"{value} is no share of the model: write more than 0% and at most 100%")
    return value


PERCENT = (WrapValidator(_or_percent), PlainSerializer(lambda value: value))
"""Marks a number that may also be a share of the whole model's figure: ``50%``."""


class Latency(Options):
    """Seconds of one DiT call for one sample."""

    seconds: Annotated[float, *PERCENT] = Field(gt=0)
    table: Annotated[str | None, File()] = Field(
        None, description="A JSON file with seconds per piece; measured here if absent."
    )
    machine: str | None = Field(None, description="The machine the table is for; this one if absent.")


class Budget(Options):
    """A size, in one of three units; how it is shared between levels."""

    params: Annotated[int | None, *PERCENT] = Field(None, gt=0, description="Parameters of the denoiser.")
    flops: Annotated[float | None, *PERCENT] = Field(
        None, gt=0, description="FLOPs of one call at the recipe's video size."
    )
    latency: Latency | None = Field(None, description="Seconds of one call, by a table.")
    levels: list[str] = Field(["block", "head", "ffn"], min_length=1, description="What may be cut.")
    size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None, description="Latent cells (T, H, W) of the call; those of the recipe's video if absent."
    )
    curves: Annotated[str, File()] = Field(
        "default",
        description="Sensitivity: 'default', 'each' (that of each axis), 'measured' (when the step runs), or a path.",
    )
    heterogeneous: bool = Field(False, description="Widths of each block, from curves of each axis.")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in ("params", "flops", "latency") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of 'params', 'flops', 'latency', not {' and '.join(given) or 'none'}")
        if self.size is not None and self.params is not None:
            raise ValueError("'size' goes with 'flops' or 'latency': parameters do not depend on it")
        if self.heterogeneous and self.curves == "default":
            raise ValueError("'heterogeneous' needs curves of each axis: set 'curves' to 'measured' or to a report")
        return self


class Limit(Options):
    """An upper bound to check."""

    params: int = Field(gt=0, description="Parameters of the denoiser.")


class TrilevelOptions(Options):
    """Explicit counts (``levels``) or a size (``budget``); a search chooses the units."""

    levels: Annotated[dict[str, PartField] | None, Slot("granularity", many=True)] = None
    budget: Budget | None = Field(None, description="The toolkit chooses the counts; met within 1% from below.")
    limit: Limit | None = Field(None, description="An upper bound to check.")
    search: Annotated[PartField, Slot("search")]

    @model_validator(mode="after")
    def _levels_or_budget(self) -> Self:
        if self.levels is not None and self.budget is not None:
            raise ValueError(
                "'levels' and 'budget' exclude each other: give the counts, or let the toolkit choose them"
            )
        if self.levels is None and self.budget is None:
            raise ValueError("give 'levels' (explicit counts) or 'budget'")
        if self.levels == {}:
            raise ValueError("'levels' is empty: name at least one, such as block: {remove: 1}")
        return self


@hookimpl
def prune() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="trilevel",
        options=TrilevelOptions,
        load="dit_compress_plugins.prune_trilevel.step:TrilevelPruning",
        revision=2,
        summary="blocks, heads and FFN channels together",
    )
