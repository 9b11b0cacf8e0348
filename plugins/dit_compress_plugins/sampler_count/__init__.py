"""Counting: what was drawn is counted, and drawn again where it is not what the caption says."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl, hookspec


class CounterHooks:
    """Parts that count objects in videos."""

    @hookspec
    def counter(self) -> Plugin:
        """Count the objects that a caption numbers; see ``dit_compress_plugins.sampler_count.counters.CounterPart``."""


@hookimpl
def part_kinds() -> type:
    """Add the kind ``counter``."""
    return CounterHooks


class CountOptions(Options):
    """The counter, and how what it finds is corrected; defaults are CountDiffusion's where it has any."""

    counter: Annotated[PartField, Slot("counter")] = Field(description="Says what is wanted, and finds what is there.")
    scale: float = Field(
        0.1, gt=0, description="How far a step moves what is to change, in standard deviations of noise."
    )
    begin: float = Field(2 / 30, ge=0, lt=1, description="Share of the sampling steps after which corrections begin.")
    end: float = Field(14 / 30, gt=0, le=1, description="Share of them after which they end.")
    top: float = Field(0.8, gt=0, le=1, description="Share of a mask's largest attentions of which the mean is taken.")
    blur: float = Field(0.5, ge=0, description="Standard deviation of the blur of attention maps, in tokens.")
    square: float = Field(1.3, gt=0, description="Side of what is to be added, in those of the smallest object.")
    add_weight: float = Field(2.0, gt=0, description="How far adding moves, in what deleting does.")
    at: list[int | str] | None = Field(
        None, description="Cross-attentions: blocks, or module paths; every one that is found if absent."
    )

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"corrections begin at {self.begin:g} and end at {self.end:g}: give a larger 'end'")
        return self


@hookimpl
def sampler() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="count",
        options=CountOptions,
        load="dit_compress_plugins.sampler_count.sampler:CountSampler",
        requires=("scipy",),
        summary="counts what was drawn, and draws again what is too much or too little (CountDiffusion)",
    )
