"""Captions → word embeddings with positions, mixed by a small pre-norm transformer.

Shapes: B batch, L words, D width.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from dit_compress.core.files import write_json
from dit_compress.model.protocols import Text, TextEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress_plugins.text_words import WordsOptions

PAD, NULL, UNKNOWN = 0, 1, 2
NUM_SPECIAL = 3
_WORD = re.compile(r"[^\W_]+")


class WordsEncoder(ModelMixin, ConfigMixin, TextEncoder):
    """Learned words and positions; ``layers`` transformer layers in which padding is not seen."""

    tokenizer_kind = "words"

    @register_to_config
    def __init__(self, vocabulary: list[str], width: int, length: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width, self.length = width, length
        self._number = {word: index + NUM_SPECIAL for index, word in enumerate(vocabulary)}
        self.num_tokens = len(vocabulary) + NUM_SPECIAL
        self.words = nn.Embedding(self.num_tokens, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.positions, std=0.1)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into ``words [B,L]`` int64. No word is one ``<null>``, so that attention sees something."""
        rows = torch.full((len(captions), self.length), PAD, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            numbers = [self._number.get(word, UNKNOWN) for word in _WORD.findall(caption.lower())] or [NULL]
            numbers = numbers[: self.length]
            row[: len(numbers)] = torch.tensor(numbers)
        return {"words": rows}

    def save_tokenizer(self, folder: Path) -> dict[str, Any]:
        """Write ``words.json``: all that :meth:`tokenize` knows."""
        data = {
            "input": "words",
            "pattern": _WORD.pattern,
            "lower_case": True,
            "length": self.length,
            "pad": PAD,
            "null": NULL,
            "unknown": UNKNOWN,
            "vocabulary": self._number,
        }
        write_json(folder / "words.json", data)
        padding = f"{PAD} up to the length; a caption without words is one {NULL}; longer ones are cut"
        return {"file": "words.json", "length": self.length, "padding": padding}

    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode tokens to ``embedding [B,L,D]`` (zero at padding) and ``mask [B,L]`` (1 real, 0 padding)."""
        words_BL = tokens["words"]
        padding_BL = words_BL == PAD
        x_BLD = self.words(words_BL) + self.positions
        for block in self.blocks:
            x_BLD = block(x_BLD, src_key_padding_mask=padding_BL)
        mask_BL = (~padding_BL).to(x_BLD.dtype)
        return {"embedding": self.norm(x_BLD) * mask_BL[..., None], "mask": mask_BL}


class Words(Text):
    """The part ``text: {use: words}``."""

    trainable = True

    def __init__(self, options: WordsOptions) -> None:
        self.options = options

    def create(self) -> nn.Module:
        """Make an encoder of random weights."""
        return WordsEncoder(**self.options.model_dump())

    @staticmethod
    def config_of(module: Any) -> dict[str, Any]:
        """Return the JSON config from which :meth:`from_config` makes the same encoder."""
        return {name: value for name, value in module.config.items() if not name.startswith("_")}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make an encoder without its weights; call it on the meta device."""
        return WordsEncoder(**config)
