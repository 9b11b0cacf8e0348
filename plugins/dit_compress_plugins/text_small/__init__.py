"""A small T5 encoder over the tokens of another text encoder, with a projector to its width."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dit_compress.hooks import Options, PartField, Plugin, Slot, hookimpl


class SmallOptions(Options):
    """The size of the T5. As the ``student`` of ``distill: text`` it reads the tokens of the bundle's encoder."""

    layers: int = Field(4, ge=1, le=48)
    width: int = Field(256, ge=1, le=8192, description="d_model, of the table of tokens too.")
    heads: int = Field(4, ge=1, le=128)
    ffn: int = Field(1024, ge=1, le=65536, description="Of the gated feed-forward.")
    tokens: Annotated[PartField | None, Slot("text")] = Field(
        None, description="The text encoder whose tokens it reads, where it does not learn from one; no weights of it."
    )
    gives: int | None = Field(
        None, ge=1, le=65536, description="Width of the embeddings; the teacher's, or 'width' if absent."
    )

    @model_validator(mode="after")
    def _fits(self) -> SmallOptions:
        if self.width % self.heads:
            raise ValueError(f"'width' {self.width} is not a multiple of 'heads' {self.heads}")
        return self

    @property
    def caption_width(self) -> int:
        """Return the width of the embeddings that the encoder gives."""
        return self.gives or self.width


@hookimpl
def text() -> Plugin:
    """Describe ``text: {use: small}``."""
    return Plugin(
        name="small",
        options=SmallOptions,
        load="dit_compress_plugins.text_small.encoder:Small",
        revision=2,
        requires=("transformers",),
        extra="t5",
        summary="a small T5 over the tokens of another encoder: the student of distill: text",
    )
