"""A frozen text encoder of transformers, from its own folder or a pipeline's."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dit_compress.hooks import File, Keyed, Options, Plugin, hookimpl

PARTS = tuple(f"{part}{place}" for part in ("text_encoder", "tokenizer") for place in ("", "_2", "_3"))
"""What a pipeline's folder holds of its text encoders."""
CHAT, SLOT = "chat", "{}"
"""The template that stands for the tokenizer's own; where in a template the caption stands."""
IMAGE_PARTS = ("image_encoder", "image_processor", "feature_extractor")
"""The same of the encoder that sees a first frame."""


class TransformersOptions(Options):
    """The folder of the encoder, or of the whole pipeline. Bundles refer to it; they never copy its gigabytes."""

    path: Annotated[str, File(("model_index.json", "connectors", *PARTS, *IMAGE_PARTS))] = Field(
        description="A local folder: of an encoder with its tokenizer, or of a pipeline (model_index.json)."
    )
    width: int | None = Field(
        None, ge=1, le=1_000_000, description="Of the embeddings; if absent, read from the folder."
    )
    length: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Tokens every caption is padded or cut to; if absent, the pipeline's own, or 128.",
    )
    negative: str = Field("", description="The negative prompt: what guidance compares with.")
    template: str | None = Field(
        None,
        description="Of an encoder by itself: the text that captions stand in, at {}; 'chat' for its tokenizer's own.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="In which the encoder computes.")
    embeddings: Annotated[Literal["float32", "bfloat16"], Keyed("embeddings")] = Field(
        "float32", description="How training keeps them on disk; bfloat16 takes half the place."
    )

    @field_validator("template")
    @classmethod
    def _holds_a_caption(cls, template: str | None) -> str | None:
        if template not in (None, CHAT) and template.count(SLOT) != 1:
            raise ValueError(f"it has {template.count(SLOT)} places for the caption: write {SLOT} once, or 'chat'")
        return template

    @property
    def caption_width(self) -> int | None:
        """Return the width of the embeddings that the encoder gives, where the options say it."""
        return self.width


@hookimpl
def text() -> Plugin:
    """Describe the plugin."""
    return Plugin(
        name="transformers",
        options=TransformersOptions,
        load="dit_compress_plugins.text_transformers.encoder:Transformers",
        requires=("transformers", "diffusers", "sentencepiece"),
        extra="t5",
        summary="a frozen T5, UMT5, CLIP, Gemma or Qwen from a local folder, or all that a pipeline encodes with",
    )
