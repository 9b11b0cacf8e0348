"""Tri-level pruning: blocks, heads and feed-forward channels together (section 4.2 of the paper)."""

from importlib.util import find_spec
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from dit_compress.hooks import File, Keyed, Options, PartField, Plugin, Slot, hookimpl
from dit_compress.plugin.options import PERCENT


class Latency(Options):
    """Seconds of one DiT call for one sample."""

    seconds: Annotated[float, *PERCENT] = Field(gt=0)
    table: Annotated[str | None, File()] = Field(
        None, description="A JSON file with seconds per piece; measured here if absent."
    )
    machine: str | None = Field(None, description="The machine the table is for; this one if absent.")


MEASURED = ("measured", "recovered")
"""Curves that look at data."""
CURVES = ("default", "each", *MEASURED)
"""Curves that are no file's."""


class Heal(Options):
    """A short training by flow matching, equal for all that is compared."""

    steps: int = Field(100, ge=1, description="Steps before a point of 'curves: recovered' is measured.")
    lora: int | None = Field(None, ge=1, description="Rank of LoRA on the blocks' linears; all weights if absent.")
    batch: int = Field(16, ge=1, description="Samples per step.")
    lr: float = Field(5e-4, gt=0, description="Learning rate.")
    muon_lr: float | None = Field(None, gt=0, description="Train the blocks' matrices with Muon at this rate.")

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if self.lora is not None and find_spec("peft") is None:
            raise ValueError("'lora' needs the package 'peft': run pip install \"dit-compress[lora]\"")
        return self


class Trials(Options):
    """The best few plans of each family of levels, tried whole, healed and halved until one stays."""

    plans: int = Field(12, ge=2, description="Plans that are tried.")
    steps: int = Field(100, ge=1, description="Steps of healing in each round, as 'heal' says.")


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
    curves: Annotated[str | None, File()] = Field(
        None,
        description="Sensitivity: 'measured' (at once, when the step runs), 'recovered' (after healing), 'default' or "
        "'each' (a formula, of levels or axes), or a path. If absent: measured where there is data, else the formula.",
    )
    blocks_by: Annotated[Literal["taylor", "removals"], Keyed("blocks_by")] = Field(
        "taylor",
        description="What ranks the blocks of points and plans: Taylor, or losses without them, one after another.",
    )
    heal: Heal = Field(Heal(), description="How 'curves: recovered' and 'trials' heal.")
    trials: Trials | None = Field(None, description="Try whole plans of each family of levels.")
    heterogeneous: bool = Field(False, description="Widths of each block, from curves of each axis.")

    @property
    def idle(self) -> dict[str, str]:
        """What heals nothing, and what ranks no blocks."""
        found = {}
        if self.trials is None and self.curves != "recovered":
            found["heal"] = "'curves: recovered' and 'trials'"
        if self.trials is None and self.curves not in (None, *MEASURED):
            found["blocks_by"] = "measured curves and 'trials'"
        return found

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in ("params", "flops", "latency") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of 'params', 'flops', 'latency', not {' and '.join(given) or 'none'}")
        if self.size is not None and self.params is not None:
            raise ValueError("'size' goes with 'flops' or 'latency': parameters do not depend on it")
        if self.heterogeneous and self.curves == "default":
            raise ValueError("'heterogeneous' needs curves of each axis: set 'curves' to 'measured' or to a report")
        if self.heterogeneous and self.trials is not None:
            raise ValueError("'trials' are of plans with equal widths: leave out 'heterogeneous'")
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

    @property
    def reads_data(self) -> Literal["no", "if any", "yes"]:
        """Measuring does; of what is measured where there is data, the key has the data."""
        if self.budget is None:
            return "no"
        if self.budget.trials is not None or self.budget.curves in MEASURED:
            return "yes"
        return "if any" if self.budget.curves is None else "no"

    @property
    def held_out(self) -> bool:
        """True where losses after healing are compared."""
        return self.budget is not None and (self.budget.trials is not None or self.budget.curves == "recovered")

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
        revision=3,
        summary="blocks, heads and FFN channels together",
    )
