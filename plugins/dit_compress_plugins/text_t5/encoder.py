"""Captions → T5 embeddings. The weights stay in their folder and are read when a caption is first encoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, sha256_content
from dit_compress.model.protocols import Text, TextEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress_plugins.text_t5 import T5Options


TOKENIZERS = ("tokenizer.json", "spiece.model")
"""Files that a T5 tokenizer is saved as, of which one must be there."""


class T5Encoder(nn.Module, TextEncoder):
    """Has no parameters of its own, so a bundle holds only where it lies."""

    tokenizer_kind = "tokenizers"

    def __init__(self, path: str, width: int, length: int, embeddings: str = "float32") -> None:
        super().__init__()
        self.path, self.width, self.length, self.embeddings = path, width, length, embeddings
        self._loaded: tuple[Any, Any] | None = None

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into ``ids`` and ``mask`` ``[B,L]``, padded to ``length``."""
        tokenizer, _ = self._load()
        encoded = tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {"ids": encoded["input_ids"], "mask": encoded["attention_mask"]}

    @torch.no_grad()
    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode tokens to ``embedding [B,L,D]`` (zero at padding) and ``mask [B,L]``, where the tokens are."""
        _, model = self._load()
        model.to(tokens["ids"].device)
        hidden_BLD = model(input_ids=tokens["ids"], attention_mask=tokens["mask"]).last_hidden_state.float()
        mask_BL = tokens["mask"].to(hidden_BLD.dtype)
        return {"embedding": hidden_BLD * mask_BL[..., None], "mask": mask_BL}

    def save_tokenizer(self, folder: Path) -> dict[str, Any]:
        """Write ``tokenizer.json`` with its padding and its length: ``Tokenizer.from_file(…).encode(caption)`` is all.

        The encoder itself has no parameters of its own and stays on the host: a package holds no T5.
        """
        tokenizer, _ = self._load()
        plain = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        plain.enable_truncation(self.length)
        plain.enable_padding(length=self.length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
        plain.save(str(folder / "tokenizer.json"))
        padding = f"{tokenizer.pad_token_id} up to the length; longer captions are cut"
        return {"file": "tokenizer.json", "length": self.length, "padding": padding}

    def digest(self) -> str:
        """Return the sha256 of weights and tokenizer; it names the cache of embeddings, one for other weights each."""
        return sha256_content(self._folder())

    def check(self) -> None:
        """Raise a UserError unless the folder has what an encoder of this width needs, before anything is paid for."""
        width = read_json(self._folder() / "config.json").get("d_model", self.width)
        if width != self.width:
            raise UserError(
                f"the encoder is {width} wide, the recipe says {self.width}",
                where=self.path,
                mend=f"Set text.width to {width}",
            )

    def _folder(self) -> Path:
        folder = Path(self.path)
        if not (folder / "config.json").is_file():
            raise UserError(
                "no T5 encoder here (config.json is missing)",
                where=self.path,
                mend="Set text.path to a folder that save_pretrained wrote",
            )
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                "no weights here in safetensors; a pickle is not read",
                where=self.path,
                mend="Load it with transformers once, and save_pretrained it into this folder",
            )
        # Without these transformers makes up a tokenizer of a hundred pieces without a word.
        if not any((folder / name).is_file() for name in TOKENIZERS):
            raise UserError(
                f"no tokenizer here ({' or '.join(TOKENIZERS)})",
                where=self.path,
                mend="Put the tokenizer's files beside the weights",
            )
        return folder

    def _load(self) -> tuple[Any, Any]:
        """Load tokenizer and model in float32, once, from this machine only."""
        if self._loaded is None:
            from safetensors import SafetensorError
            from transformers import AutoTokenizer, T5EncoderModel

            self.check()
            folder = self._folder()
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                model, report = T5EncoderModel.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise UserError(
                    f"the T5 encoder can't be read: {str(error).splitlines()[0]}",
                    where=self.path,
                    mend="Save it once more with save_pretrained, tokenizer included",
                ) from error
            if missing := sorted(report["missing_keys"]):
                raise UserError(
                    f"the weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
                    where=self.path,
                    mend="Save the whole encoder once more with save_pretrained",
                )
            self._loaded = tokenizer, model.eval().requires_grad_(requires_grad=False)
        return self._loaded


class T5(Text):
    """The part ``text: {use: t5}``."""

    def __init__(self, options: T5Options) -> None:
        self.options = options

    def create(self) -> nn.Module:
        """Make the encoder, reading no weights yet; UserError where the folder can't be one; not on the meta device."""
        encoder = T5Encoder(**self.options.model_dump())
        if not next(nn.Linear(1, 1).parameters()).is_meta:  # as inside empty_weights
            encoder.check()
        return encoder

    @staticmethod
    def config_of(module: Any) -> dict[str, Any]:
        """Return the encoder's folder, its width, the length of captions, and how embeddings are kept if not whole.

        The last begins with an underscore: it makes no other encoder (``same_at_first``).
        """
        kept = {} if module.embeddings == TextEncoder.embeddings else {"_embeddings": module.embeddings}
        return {"path": module.path, "width": module.width, "length": module.length, **kept}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """Make the same encoder."""
        return T5Encoder(**{name.removeprefix("_"): value for name, value in config.items()})
