"""Group-wise learned binary masks (after TinyFusion; section 3.2 of the paper)."""

from typing import Annotated

from pydantic import Field

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import TrainOptions


class Groups(Options):
    """Into how many groups each axis is cut; candidates are the ways to keep n of a group."""

    block: int = Field(default=4, ge=1)
    head: int = Field(default=4, ge=1)
    ffn: int = Field(default=8, ge=1)


class GroupwiseOptions(TrainOptions):
    """Masks are trained on a distiller's loss while the weights stay frozen."""

    steps: int = Field(200, ge=1)
    lr: float = Field(5e-2, gt=0, description="Learning rate of the candidates' logits.")
    warmup: int = Field(0, ge=0)
    ema: float = Field(0.9, ge=0, lt=1, description="Averaging of the logits; the argmax of the average is kept.")
    groups: Groups = Groups()
    init: float = Field(0.02, ge=0, description="Scale of the first logits.")
    temperature: tuple[float, float] = Field((4.0, 0.1), description="Gumbel-softmax temperature, first and last.")
    objective: Annotated[PartField, Slot("distill")]


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="groupwise",
        options=GroupwiseOptions,
        load="dit_compress_plugins.search_groupwise.search:GroupwiseSearch",
        data=True,
        summary="learned binary masks over candidate sets",
    )
