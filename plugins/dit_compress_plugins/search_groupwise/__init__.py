"""Group-wise learned binary masks (after TinyFusion; section 4.2 of the paper)."""

from importlib.util import find_spec
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import TrainOptions

GROUPS = {"block": 4, "head": 4, "ffn": 8}
"""Groups per axis, by level, by default."""


class Lora(Options):
    """Low-rank updates of the linears inside the blocks, trained together with the masks."""

    rank: int = Field(8, ge=1)
    lr: float | None = Field(None, gt=0, description="Learning rate; a tenth of the masks' if absent.")
    after: Literal["discard", "merge"] = Field("discard", description="What becomes of them when the search is done.")

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if find_spec("peft") is None:
            raise ValueError("'lora' needs the package 'peft': run pip install \"dit-compress[lora]\"")
        return self


class GroupwiseOptions(TrainOptions):
    """Masks are trained on a distiller's loss; the weights stay frozen, or give way by LoRA."""

    steps: int = Field(200, ge=1)
    lr: float = Field(5e-2, gt=0, description="Learning rate of the candidates' logits.")
    warmup: int = Field(0, ge=0)
    ema: float = Field(0.9, ge=0, lt=1, description="Averaging of the logits; the argmax of the average is kept.")
    groups: Annotated[dict[str, PositiveInt], AfterValidator(lambda given: {**GROUPS, **given})] = Field(
        default=GROUPS, description="Groups per axis, by level; as few as can be for levels that are not named."
    )
    init: float = Field(0.02, ge=0, description="Scale of the first logits.")
    temperature: tuple[PositiveFloat, PositiveFloat] = Field(
        (4.0, 0.1), description="Gumbel-softmax temperature, first and last."
    )
    lora: Lora | None = Field(None, description="Co-optimise the weights; frozen if absent.")
    objective: Annotated[PartField, Slot("distill")]


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="groupwise",
        options=GroupwiseOptions,
        load="dit_compress_plugins.search_groupwise.search:GroupwiseSearch",
        revision=2,
        data=True,
        world="all",
        summary="learned binary masks over candidate sets",
    )
