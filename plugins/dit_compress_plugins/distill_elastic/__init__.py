"""Elastic training: a model and the nested widths inside it, all at once (SnapGen++)."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from dit_compress.hooks import Plugin, hookimpl
from dit_compress.train.options import FlowMatchingOptions


class ElasticOptions(FlowMatchingOptions):
    """Flow matching for the whole model and for drawn widths, which also follow the whole model."""

    subnets: int = Field(1, ge=1, description="Widths below 1 that are trained at each step, drawn anew, none twice.")
    sandwich: bool = Field(False, description="The smallest width is always one of them (OFA's sandwich rule).")
    kd_weight: float = Field(1.0, ge=0, description="Of a width's squared distance to the whole model's velocity.")

    no_objective: ClassVar[str] = "it trains the widths of a nested bundle, and a search has none"

    @property
    def knows_widths(self) -> bool:
        """True: it trains them."""
        return True

    @model_validator(mode="after")
    def _others_are_drawn(self) -> Self:
        if self.sandwich and self.subnets < 2:
            raise ValueError("'sandwich' with one of 'subnets' trains the smallest width alone: give 2 or more")
        return self

    @model_validator(mode="after")
    def _masks_stay(self) -> Self:
        if self.checkpoint_activations:
            raise ValueError(
                "'checkpoint_activations' computes blocks again when the masks of their width are gone: raise "
                "'accumulate' instead"
            )
        return self


@hookimpl
def distill() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="elastic",
        options=ElasticOptions,
        load="dit_compress_plugins.distill_elastic.distiller:ElasticDistiller",
        world="all",
        data=True,
        summary="a model and its nested widths together, KD to the whole one (SnapGen++)",
    )
