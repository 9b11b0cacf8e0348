"""A text encoder as training sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.model.conditions import beyond_text
from dit_compress.model.denoiser import Cond

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Captions(nn.Module):
    """A text encoder as the trainer sees it: tokens in, :class:`Cond` out, the null caption included."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self._null: dict[str, Tensor] | None = None

    @property
    def frozen(self) -> bool:
        """True where nothing in the encoder is being trained."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def forward(self, tokens: Mapping[str, Tensor]) -> Cond:
        """Turn tokens (or cached embeddings) into conditions; what no caption gives goes with them as it is."""
        beside = beyond_text(tokens)
        own = {name: value for name, value in tokens.items() if name not in beside}
        encoded = own if "embedding" in own else self.encoder(self._placed(own))
        return Cond({**encoded, **beside}, self.null())

    def null(self) -> dict[str, Tensor]:
        """Return the empty caption, leading 1; computed once while the encoder is frozen."""
        if not self.frozen:
            return self.encoder(self._placed(self.encoder.tokenize([""])))
        if self._null is None:
            with torch.no_grad():
                self._null = self.encoder(self._placed(self.encoder.tokenize([""])))
        self._null = self._placed(self._null)
        return self._null

    def remember(self, null: Mapping[str, Tensor]) -> None:
        """Take the empty caption as it was encoded before, so that a frozen encoder is not asked for it."""
        self._null = dict(null)

    def cond(self, captions: Sequence[str]) -> Cond:
        """Turn captions into conditions."""
        return self(self._placed(self.encoder.tokenize(captions)))

    def places(self, caption: str, start: int, end: int) -> range:
        """Return where among the tokens those of ``caption[start:end]`` stand, a word; none where it was cut off.

        No tokenizer has to say it: rows of the caption up to there are the same until the word begins, or ends.
        """
        before, word = caption[:start].rstrip(), caption[:end]
        return range(self._parting(before, word), self._parting(word, f"{word} and"))

    def _parting(self, one: str, other: str) -> int:
        """Return the first place at which the tokens of two captions differ; their number where none does."""
        tokens = self.encoder.tokenize([one, other])
        first = next(iter(tokens.values()))
        differs_L = torch.stack([row[0] != row[1] for row in tokens.values() if row.shape == first.shape]).any(0)
        return int(differs_L.int().argmax()) if differs_L.any() else len(differs_L)

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move tensors to the encoder's device."""
        device = next((parameter.device for parameter in self.encoder.parameters()), None)
        return {name: value if device is None else value.to(device) for name, value in tensors.items()}
