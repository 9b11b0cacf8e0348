"""A frozen T5 encoder from a local folder."""

from typing import Annotated, Literal

from pydantic import Field

from dit_compress.hooks import File, Keyed, Options, Plugin, hookimpl


class T5Options(Options):
    """The folder of the encoder. Bundles refer to the folder; they never copy its gigabytes."""

    path: Annotated[str, File()] = Field(
        description="A local folder in transformers' layout: config.json, weights, tokenizer."
    )
    width: int = Field(
        4096, ge=1, le=65536, description="d_model; checked against the folder's config when it is loaded."
    )
    length: int = Field(128, ge=1, le=65536, description="Tokens every caption is padded or cut to.")
    embeddings: Annotated[Literal["float32", "bfloat16"], Keyed("embeddings")] = Field(
        "float32", description="How training keeps them on disk; bfloat16 takes half the place."
    )

    @property
    def caption_width(self) -> int:
        """Return the width of the embeddings that the encoder gives."""
        return self.width


@hookimpl
def text() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="t5",
        options=T5Options,
        load="dit_compress_plugins.text_t5.encoder:T5",
        revision=2,
        requires=("transformers", "sentencepiece"),
        extra="t5",
        summary="a frozen T5 encoder from a local folder",
    )
