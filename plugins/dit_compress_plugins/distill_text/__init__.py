"""A small text encoder learns the bundle's large one: its embeddings, and what the DiT makes of them."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from dit_compress.hooks import File, PartField, Plugin, Slot, TrainOptions, hookimpl


class TextOptions(TrainOptions):
    """The student, what counts in its loss, and the captions it learns by."""

    student: Annotated[PartField, Slot("text")] = Field(description="The encoder that learns: {use: small, …}.")
    prompts: Annotated[str | None, File()] = Field(
        None, description="A text file, a prompt a line, in place of the captions of the data."
    )
    mse: float = Field(1.0, ge=0, description="Weight of the squared distance of embeddings, over the teacher's.")
    cosine: float = Field(1.0, ge=0, description="Weight of 1 - cos of embeddings, a token at a time.")
    output: float = Field(1.0, ge=0, description="Weight of the same distance of the DiT's velocities; 0: no DiT.")
    empty: float = Field(0.1, ge=0, lt=1, description="Share of captions in whose place the empty one is learnt.")
    lr: float = Field(5e-4, gt=0)

    no_objective: ClassVar[str] = "it trains a text encoder, and no denoiser"
    around: ClassVar[frozenset[str]] = frozenset({"student", "prompts"})

    @model_validator(mode="after")
    def _learns_something(self) -> "TextOptions":
        if not (self.mse or self.cosine or self.output):
            raise ValueError("'mse', 'cosine' and 'output' are all 0: give one of them a weight")
        return self


@hookimpl
def distill() -> Plugin:
    """Describe ``distill: {use: text, student: {use: small}}``."""
    return Plugin(
        name="text",
        options=TextOptions,
        load="dit_compress_plugins.distill_text.distiller:TextDistiller",
        revision=2,
        world="all",
        data=True,
        summary="a small text encoder learns the bundle's: embeddings, and the DiT's output",
    )
