"""Captions → embeddings of a frozen encoder. The weights stay in their folder and are read when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_content
from dit_compress.model.protocols import Text, TextEncoder
from dit_compress_plugins.text_transformers import CHAT, IMAGE_PARTS, PARTS, SLOT
from dit_compress_plugins.text_transformers.folder import (
    INDEX,
    check,
    copy_tokenizer,
    is_pipeline,
    need_template,
    width_of,
)
from dit_compress_plugins.text_transformers.piped import Piped
from dit_compress_plugins.text_transformers.sight import Sight
from dit_compress_plugins.text_transformers.single import Single

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress_plugins.text_transformers import TransformersOptions


class TransformersEncoder(nn.Module, TextEncoder):
    """Has no parameters of its own, so a bundle holds only where it lies."""

    tokenizer_kind = "tokenizers"

    def __init__(
        self,
        path: str,
        width: int | None = None,
        length: int | None = None,
        negative: str = "",
        dtype: str = "float32",
        embeddings: str = "float32",
        template: str | None = None,
    ) -> None:
        super().__init__()
        self.path, self.length, self.negative, self.dtype, self.embeddings = path, length, negative, dtype, embeddings
        self.template = template
        self.width = self._width() if width is None else width
        self.side: Any = self._opened(Path(path))
        self.sight = Sight(Path(path), dtype)

    @property
    def sees(self) -> tuple[int, int] | None:  # type: ignore[override]
        """Number and width of an image's embeddings; None where the folder has no image encoder."""
        return self.sight.shape

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        """How many tokens there are."""
        return self.side.num_tokens

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into ``ids`` and ``mask [B,L]``; the empty one is the negative prompt."""
        if isinstance(self.side, Piped):
            return self.side.tokenize(captions)
        return self.side.tokenize([caption or self.negative for caption in captions])

    @torch.no_grad()
    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode tokens to ``embedding [B,L,D]`` and ``mask [B,L]``, where the tokens are; of a pipeline all it gives.

        Raises:
            UserError: a folder that can't be read; embeddings of another width than was said.
        """
        found = self.side.encode(tokens)
        if (width := found["embedding"].shape[-1]) != self.width:
            raise self._other_width(width)
        return found

    def save_tokenizer(self, folder: Path) -> dict[str, Any]:
        """Write ``tokenizer.json`` with its padding and its length: ``Tokenizer.from_file(…).encode(caption)`` is all.

        The encoder itself has no parameters of its own and stays on the host. Of several tokenizers it is the first's.
        """
        from tokenizers import processors

        tokenizer, length = self.side.tokenizer, self.tokenize([""])["ids"].shape[1]
        plain = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        if self.template == CHAT:
            plain.post_processor = processors.Sequence([])  # which adds nothing: the template has its special tokens
        plain.enable_truncation(length)
        plain.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
        plain.save(str(folder / "tokenizer.json"))
        padding = f"{tokenizer.pad_token_id} up to the length; longer captions are cut"
        empty = {"empty": self.negative} if self.negative else {}
        template = {} if self.template in (None, SLOT) else {"template": self.side.template}
        return {"file": "tokenizer.json", "length": length, "padding": padding, **empty, **template}

    def keep_tokens(self, folder: Path) -> bool:
        """Copy the tokenizer, and the configs that say how the pipeline uses it."""
        copy_tokenizer(Path(self.path), folder)
        return True

    def take_tokens(self, folder: Path) -> None:
        """Read tokenizer and configs from the copy."""
        self.path, self.side = str(folder), self._opened(folder)

    def encode_image(self, first_BCYX: Tensor) -> Tensor:
        """Encode images in [-1, 1] as ``[B,N,D]``: the pipeline's own ``encode_image``."""
        return self.sight.encode(first_BCYX)

    def digest(self) -> str:
        """Return the sha256 of weights and tokenizers; it names the cache of embeddings, one for other weights each."""
        self.check()
        return sha256_content(Path(self.path), (INDEX, *PARTS, *IMAGE_PARTS))

    def release(self) -> bool:
        """Give the memory of the weights back, until something is encoded again; return whether they were read."""
        return any([self.side.release(), self.sight.release()])

    def check(self) -> None:
        """Raise a UserError unless the folder has what an encoder of this width needs, before anything is paid for."""
        check(Path(self.path))
        if not isinstance(self.side, Single):
            return
        if (width := self._width()) != self.width:
            raise self._other_width(width)
        if self.template is None:
            need_template(Path(self.path))

    def _opened(self, folder: Path) -> Piped | Single:
        if not is_pipeline(folder):
            return Single(folder, self.length, self.dtype, self.template)
        if self.template is not None:
            what = "a pipeline has a template of its own"
            raise UserError(what, where="text.template", mend="Leave 'template' out, or give the encoder's own folder")
        return Piped(folder, self.length, self.dtype, self.negative)

    def _width(self) -> int:
        if not Path(self.path).is_dir():
            check(Path(self.path))
        return width_of(Path(self.path))

    def _other_width(self, width: int) -> UserError:
        return UserError(
            f"the encoder is {width} wide, the recipe says {self.width}",
            where=self.path,
            mend=f"Set text.width to {width}",
        )


class Transformers(Text):
    """The part ``text: {use: transformers}``."""

    def __init__(self, options: TransformersOptions) -> None:
        self.options = options

    def create(self) -> nn.Module:
        """Make the encoder, reading no weights yet; UserError where the folder can't be one; not on the meta device."""
        encoder = TransformersEncoder(**self.options.model_dump())
        if not next(nn.Linear(1, 1).parameters()).is_meta:  # as inside empty_weights
            encoder.check()
        return encoder

    @staticmethod
    def config_of(module: Any) -> dict[str, Any]:
        """Return the encoder's folder, and the options that differ from their defaults.

        How embeddings are kept begins with an underscore: it makes no other encoder (``same_at_first``).
        """
        usual = {"length": None, "negative": "", "dtype": "float32", "template": None}
        other = {name: value for name in usual if (value := getattr(module, name)) != usual[name]}
        kept = {} if module.embeddings == TextEncoder.embeddings else {"_embeddings": module.embeddings}
        return {"path": module.path, "width": module.width, **other, **kept}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make the same encoder."""
        return TransformersEncoder(**{name.removeprefix("_"): value for name, value in config.items()})
