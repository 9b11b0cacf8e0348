"""Self-attention replaced, block by block, by one that costs less (S2DiT's LCHA and SSA, SnapGen++'s ASSA)."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from dit_compress.hooks import File, Options, PartField, Plugin, Slot, hookimpl, hookspec
from dit_compress.plugin.options import PERCENT

Kind = Literal["full", "linconv", "stride", "global_local"]
"""What a block's attention becomes; ``full`` leaves it as it is."""


class LinearConvolutionOptions(Options):
    """LCHA: linear attention beside a depthwise 3D convolution."""

    causal: bool = Field(False, description="The convolution sees no later latent frame.")


class StrideOptions(Options):
    """SSA: attention among every so many tokens."""

    stride: tuple[int, int, int] = Field((1, 2, 2), description="Tokens from one to the next along T, H, W.")


class GlobalLocalOptions(Options):
    """ASSA: attention to coarse keys, and to neighbouring tokens."""

    blocks: int = Field(16, ge=1, description="Blocks into which the tokens are cut, for the local branch.")
    radius: int = Field(1, ge=0, description="Blocks to either side that a block sees.")


class LayoutHooks:
    """Parts that choose the kind of every block."""

    @hookspec
    def layout(self) -> Plugin:
        """Choose the kind of every block; see ``dit_compress_plugins.transform_attention.search.LayoutPart``."""


@hookimpl
def part_kinds() -> type:
    """Add the kind ``layout``."""
    return LayoutHooks


class Budget(Options):
    """Upper bounds of one call of the whole denoiser for one sample; a share of what it takes now: ``70%``."""

    params: Annotated[int | None, *PERCENT] = Field(None, gt=0, description="Parameters.")
    flops: Annotated[float | None, *PERCENT] = Field(None, gt=0, description="FLOPs.")
    seconds: Annotated[float | None, *PERCENT] = Field(None, gt=0, description="Seconds, by 'table'.")
    memory: Annotated[float | None, *PERCENT] = Field(
        None, gt=0, description="Bytes of weights and of what lives at the fullest moment, in bf16."
    )
    table: Annotated[str | None, File()] = Field(
        None, description="JSON: seconds of each kind in each block; timed here when the step runs, if absent."
    )
    machine: str | None = Field(None, description="The machine the table is for; this one if absent.")
    size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None, description="Latent cells (T, H, W) of the call; those of the recipe's video if absent."
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not self.bounds:
            raise ValueError("give at least one of 'params', 'flops', 'seconds', 'memory'")
        return self

    @property
    def bounds(self) -> dict[str, float | str]:
        """The bounds that are given."""
        given = {name: getattr(self, name) for name in ("params", "flops", "seconds", "memory")}
        return {name: value for name, value in given.items() if value is not None}


class Trial(Options):
    """A short training by flow matching before a layout's held-out loss is measured, equal for all."""

    steps: int = Field(100, ge=1, description="Optimiser steps.")
    batch: int = Field(16, ge=1, description="Samples per step.")
    lr: float = Field(5e-4, gt=0, description="Learning rate.")
    samples: int = Field(128, ge=1, description="Held-out clips, each at eight noise levels.")


class AttentionOptions(Options):
    """Which blocks, and what their self-attention becomes."""

    blocks: dict[str, Kind] = Field(
        {}, description="Path of a block, or a pattern of paths, and the kind; the first that fits counts."
    )
    layout: Annotated[PartField | None, Slot("layout")] = Field(
        None, description="Chooses the kind of every block, instead of 'blocks': a search within 'budget', or a file."
    )
    budget: Budget | None = Field(None, description="What the layout may cost.")
    offer: tuple[Kind, ...] = Field(
        ("linconv", "stride", "global_local"), min_length=1, description="Kinds a layout chooses from, beside 'full'."
    )
    trial: Trial = Field(default_factory=Trial, description="How a search measures a layout.")
    linconv: LinearConvolutionOptions = Field(default_factory=LinearConvolutionOptions)
    stride: StrideOptions = Field(default_factory=StrideOptions)
    global_local: GlobalLocalOptions = Field(default_factory=GlobalLocalOptions)
    fit: int = Field(100, ge=0, description="Updates that bring each new attention nearer to the old one, by itself.")

    @property
    def idle(self) -> dict[str, str]:
        """What belongs to a layout."""
        return {} if self.layout is not None else dict.fromkeys(("budget", "offer", "trial"), "'layout'")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.blocks) == (self.layout is not None):
            raise ValueError("give either 'blocks' or 'layout'")
        return self

    @property
    def reads_data(self) -> Literal["no", "if any", "yes"]:
        """Clips, where there are any: attentions are fitted and compared on them."""
        return "if any"


@hookimpl
def transform() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="attention",
        options=AttentionOptions,
        load="dit_compress_plugins.transform_attention.step:AttentionTransform",
        summary="self-attention by linear with convolution, strided, or global and local (S2DiT, SnapGen++)",
    )
