"""Training of gates alone, to a target ratio of skipped modules: LazyDiT."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import DistillOptions


class LazyOptions(DistillOptions):
    """Gates that learn which modules may give what they gave a step before; everything else is frozen."""

    steps: int = Field(500, ge=1, description="Optimiser steps.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of the gates; 1e-4 is usual with 'pool: sum'.")
    warmup: int = Field(0, ge=0)
    decay: float = Field(0.1, gt=0, le=1, description="Share of the peak rate left at the end (cosine).")
    ratio: float = Field(0.3, gt=0, lt=1, description="Share of all calls of gated modules that is to be skipped.")
    gain: float = Field(
        0.2, gt=0, description="How fast the penalty's weight follows the distance to 'ratio': of its log, per step."
    )
    rollouts: int = Field(32, ge=1, description="Held-out samples on which skipping is measured at the end.")

    no_objective: ClassVar[str] = "it trains gates, and a search looks for units"

    @property
    def any_size(self) -> bool:
        """True: everything is of the batch's size."""
        return True

    @model_validator(mode="after")
    def _runs_blocks_as_they_are(self) -> Self:
        for name in ("compile", "checkpoint_activations"):
            if getattr(self, name):
                raise ValueError(f"modules inside blocks are answered for while it trains: leave {name!r} out")
        return self

    @model_validator(mode="after")
    def _reaches_the_ratio(self) -> Self:
        if self.validation is not None and self.validation.result == "best":
            raise ValueError("the error is lowest where nothing is skipped: leave 'result: best' out")
        if self.watch is not None and self.watch.sampling_steps is not None:
            raise ValueError("gates are for all steps of their schedule: leave 'sampling_steps' of 'watch' out")
        if self.muon_lr is not None:
            raise ValueError("gates are no matrices of linears: leave 'muon_lr' out")
        return self


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="lazy",
        options=LazyOptions,
        load="dit_compress_plugins.distill_lazy.distiller:LazyDistiller",
        world="all",
        data=True,
        summary="gates that skip a target share of attention and FFN calls, trained alone (LazyDiT)",
    )
