"""Group-wise learned binary masks (after TinyFusion; section 4.2 of the paper), from another search's scores."""

from importlib.util import find_spec
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dit_compress.hooks import Options, Part, PartField, Plugin, Slot, hookimpl
from dit_compress.train.options import ProbeOptions, TrainOptions

GROUPS = {"block": 4, "head": 4, "ffn": 8}
"""Groups per axis, by level, by default."""


class Lora(Options):
    """Low-rank updates of the linears inside the blocks, trained together with the masks."""

    rank: int = Field(8, ge=1)
    lr: float | None = Field(None, gt=0, description="Learning rate; a tenth of the masks' if absent.")
    after: Literal["discard", "merge"] = Field("discard", description="What becomes of them when the search is done.")


class Compare(ProbeOptions):
    """Start and result on held-out data; the better stays."""

    heal: float = Field(
        0.25, ge=0, le=1, description="Of the search's steps, for which LoRA heals each of the two first; 0: at once."
    )


class GroupwiseOptions(TrainOptions):
    """Masks are trained on a distiller's loss, from another search's scores, with LoRA beside them."""

    steps: int = Field(200, ge=1)
    lr: float = Field(5e-2, gt=0, description="Learning rate of the candidates' logits.")
    warmup: int = Field(0, ge=0)
    ema: float = Field(0.9, ge=0, lt=1, description="Averaging of the logits; the argmax of the average is kept.")
    groups: Annotated[dict[str, PositiveInt], AfterValidator(lambda given: {**GROUPS, **given})] = Field(
        default=GROUPS, description="Groups per axis, by level; as few as can be for levels that are not named."
    )
    init: Annotated[
        PartField | None,
        Slot("search"),
        Field(default="mixed", description="The search whose scores it begins from; null: magnitude, and noise."),
    ]
    trust: float = Field(1.0, gt=0, description="Standard deviation of a group's first logits, by these scores.")
    bound: int = Field(1, ge=0, description="Parts by which the scores may move a group's count from its equal share.")
    temperature: tuple[PositiveFloat, PositiveFloat] = Field(
        (4.0, 0.1), description="Gumbel-softmax temperature, first and last."
    )
    lora: Lora | None = Field(Lora(), description="Co-optimise the weights; null: they are frozen.")
    compare: Compare | None = Field(Compare(), description="Compare with the start; null: the result stays.")
    objective: Annotated[PartField, Slot("distill")]

    @property
    def any_size(self) -> bool:
        """False: its comparisons look at clips in batches of their own."""
        return False

    @property
    def held_out(self) -> bool:
        """True where start and result are compared."""
        return self.init is not None and self.compare is not None

    @property
    def idle(self) -> dict[str, str]:
        """Without a search to begin from there are no scores to trust, and no start to compare with."""
        begins = "a search to begin from ('init')"
        without = {} if self.init else {"trust": begins} | ({"compare": begins} if self.compare else {})
        return super().idle | without

    @field_validator("init")
    @classmethod
    def _another(cls, init: Part | None) -> Part | None:
        if init is not None and init.name == "groupwise":
            raise ValueError("'groupwise' begins from another search's scores: name one that is not learnt (mixed)")
        return init

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if self.lora is not None and find_spec("peft") is None:
            raise ValueError(
                "'lora' needs the package 'peft': run pip install \"dit-compress[lora]\", or write 'lora: null'"
            )
        return self


@hookimpl
def search() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="groupwise",
        options=GroupwiseOptions,
        load="dit_compress_plugins.search_groupwise.search:GroupwiseSearch",
        revision=5,
        data=True,
        world="all",
        summary="learned binary masks over candidate sets",
    )
