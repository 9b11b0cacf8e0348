"""Torch-Pruning's importances that read weights and gradients, over the toolkit's own axes."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from dit_compress.hooks import PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import ProbeOptions

BY_GRADIENT = ("taylor", "hessian")
"""Importances that need a loss, and so data."""
GOES_WITH = {"p": ("magnitude", "lamp", "fpgm"), "multivariable": ("taylor",), "objective": BY_GRADIENT}
"""Options that only some importances read: for others they stay at their defaults."""


class TorchPruningOptions(ProbeOptions):
    """A unit is to the library what a channel is: one row with all that the unit owns of a tensor."""

    importance: Literal["magnitude", "taylor", "hessian", "lamp", "fpgm"] = "magnitude"
    p: PositiveInt = Field(2, description="Of the norm: the sum over a unit's weights of their p-th power.")
    reduction: Literal["mean", "sum", "max", "prod", "first", "gate"] = Field(
        "mean", description="Over the tensors of an axis; 'first' and 'gate': its first, its last alone."
    )
    normalizer: Literal["mean", "sum", "max", "standarization", "gaussian", "lamp"] | None = Field(
        "mean", description="Over the units of an axis, by the library's words; null: none."
    )
    multivariable: bool = Field(False, description="taylor: sum a unit's products before their absolute value.")
    bias: bool = Field(False, description="Score vectors (biases, weights of norms), too.")
    objective: Annotated[
        PartField | None,
        Slot("distill"),
        Field(default=None, description="The loss, for importances that read gradients: flow, say."),
    ]

    @model_validator(mode="after")
    def _apply(self) -> Self:
        own = self.importance
        if own in BY_GRADIENT and self.objective is None:
            raise ValueError(f"{own!r} reads gradients: give 'objective', a distill part such as flow")
        for name, importances in GOES_WITH.items():
            if own not in importances and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{own!r} takes no {name!r}: it goes with {', '.join(importances)}")
        if own == "lamp" and self.normalizer not in ("mean", "lamp"):
            raise ValueError("'lamp' is a normalizer itself: leave 'normalizer' out")
        return self


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="torch_pruning",
        options=TorchPruningOptions,
        load="dit_compress_plugins.search_torch_pruning.search:TorchPruningSearch",
        requires=("torch_pruning",),
        extra="pruning",
        summary="Torch-Pruning's importances over our axes",
    )
