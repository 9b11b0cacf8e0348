"""One encoder with its tokenizer: the last hidden state of every token.

Shapes: B batch, L text length, D width.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress_plugins.text_transformers import CHAT, SLOT
from dit_compress_plugins.text_transformers.folder import config_of, load_encoder, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

LENGTH = 128
"""Tokens where nobody says how many; CLIP has places for fewer."""


class Single:
    """An encoder that stands alone in its folder. Nothing is read before it is asked for."""

    def __init__(self, folder: Path, length: int | None, dtype: str, template: str | None = None) -> None:
        self.folder, self._length, self.dtype, self._template = folder, length, dtype, template

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return load_tokenizer(self.folder)

    @cached_property
    def template(self) -> str:
        """The text that captions stand in, at ``{}``; UserError where it is the tokenizer's, and that has none."""
        if self._template != CHAT:
            return self._template or SLOT
        if not self.tokenizer.chat_template:
            what = "the tokenizer has no chat template"
            raise UserError(what, where=str(self.folder), mend=f"Write the template out: a text with {SLOT} in it")
        said = [{"role": "user", "content": SLOT}]
        written = str(self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
        if written.count(SLOT) != 1:
            what = f"the tokenizer's chat template has {written.count(SLOT)} places for a caption"
            raise UserError(what, where=str(self.folder), mend=f"Write the template out: a text with {SLOT} in it")
        return written

    @property
    def adds_specials(self) -> bool:
        """Tell whether the tokenizer puts tokens around what it is given: a chat template has them itself."""
        return self._template != CHAT

    @cached_property
    def model(self) -> Any:
        """The encoder, frozen."""
        return load_encoder(self.folder, dtype=self.dtype)

    @cached_property
    def num_tokens(self) -> int:
        """How many tokens there are."""
        return int(config_of(self.folder)["vocab_size"])

    @property
    def length(self) -> int:
        """Tokens every caption is padded or cut to."""
        places = config_of(self.folder).get("max_position_embeddings", LENGTH)
        return min(LENGTH, int(places)) if self._length is None else self._length

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into ``ids`` and ``mask [B,L]``, in their template."""
        encoded = self.tokenizer(
            [self.template.replace(SLOT, caption) for caption in captions], padding="max_length", truncation=True,
            max_length=self.length, add_special_tokens=self.adds_specials, return_tensors="pt",
        )  # fmt: skip
        return {"ids": encoded["input_ids"], "mask": encoded["attention_mask"]}

    def encode(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode to ``embedding [B,L,D]``, zero at padding, and ``mask [B,L]``."""
        model = self.model.to(tokens["ids"].device)
        hidden_BLD = model(input_ids=tokens["ids"], attention_mask=tokens["mask"]).last_hidden_state.float()
        mask_BL = tokens["mask"].to(hidden_BLD.dtype)
        return {"embedding": hidden_BLD * mask_BL[..., None], "mask": mask_BL}

    def release(self) -> bool:
        """Give the encoder's memory back; return whether it was read. Another caption reads it again."""
        return vars(self).pop("model", None) is not None
