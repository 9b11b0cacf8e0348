"""A small caption encoder, trained together with the DiT in the first ``distill`` step."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from dit_compress.hooks import Options, Plugin, hookimpl

SHAPES_WORLD = (
    "a an the and with on in of to then background scene video "
    "one two three four small medium large big tiny little "
    "red green blue yellow orange purple pink cyan brown black white grey gray dark light "
    "circle square triangle star ring cross diamond shape ball box "
    "moving move moves going still standing resting rotating turning bouncing growing shrinking "
    "left right up down upwards downwards diagonally top bottom centre center "
    "fast slow slowly quickly slower faster steadily over under behind front above below"
)
"""Words of captions like "a large red circle moving left fast on a grey background"."""


class WordsOptions(Options):
    """vocabulary: the words known; any other is ``<unk>``. length: words per caption, the rest is cut off.

    layers: pre-norm transformer layers over the words; 0 gives word plus position.
    """

    vocabulary: list[str] = Field(default_factory=SHAPES_WORLD.split, min_length=1)
    width: int = Field(default=128, ge=1, le=16384)
    length: int = Field(default=24, ge=1, le=16384)
    layers: int = Field(default=2, ge=0, le=8)
    heads: PositiveInt = 4

    @model_validator(mode="after")
    def _fits(self) -> WordsOptions:
        if self.width % self.heads:
            raise ValueError(f"'width' {self.width} is not a multiple of 'heads' {self.heads}")
        if odd := [word for word in self.vocabulary if word != word.lower() or not word.isalnum()]:
            raise ValueError(f"words are lower-case letters and digits: mend {odd[:5]}")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("a word stands twice in 'vocabulary': remove one")
        return self

    @property
    def caption_width(self) -> int:
        """Return the width of the embeddings that the encoder gives."""
        return self.width


@hookimpl
def text() -> Plugin:
    """Describe ``text: {use: words}``."""
    return Plugin(
        name="words",
        options=WordsOptions,
        load="dit_compress_plugins.text_words.encoder:Words",
        requires=("diffusers",),
        summary="word embeddings and a small transformer, trained with the DiT",
    )
