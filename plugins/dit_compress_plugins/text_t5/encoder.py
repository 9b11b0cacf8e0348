"""Captions → T5 embeddings. The weights stay in their folder and are read when a caption is first encoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.errors import UserError
from dit_compress.files import sha256_content

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress_plugins.text_t5 import T5Options


class T5Encoder(nn.Module):
    """Follows ``hooks.TextEncoder``; has no parameters of its own, so a bundle holds only where it lies."""

    def __init__(self, path: str, width: int, length: int) -> None:
        super().__init__()
        self.path, self.width, self.length = path, width, length
        self._loaded: tuple[Any, Any] | None = None

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions → ``ids`` and ``mask`` ``[B,L]``, padded to ``length``."""
        tokenizer, _ = self._load()
        encoded = tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {"ids": encoded["input_ids"], "mask": encoded["attention_mask"]}

    @torch.no_grad()
    def forward(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens → ``embedding [B,L,D]`` (zero at padding) and ``mask [B,L]``."""
        _, model = self._load()
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
        return {"kind": "tokenizers", "file": "tokenizer.json", "length": self.length, "padding": padding}

    def digest(self) -> str:
        """sha256 of weights and tokenizer: names the cache of embeddings, so that other weights get another one."""
        return sha256_content(self._folder())

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
        return folder

    def _load(self) -> tuple[Any, Any]:
        """Tokenizer and model, read once, from this machine only."""
        if self._loaded is None:
            from transformers import AutoTokenizer, T5EncoderModel

            folder = self._folder()
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = T5EncoderModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            model = model.eval().requires_grad_(requires_grad=False)
            if model.config.d_model != self.width:
                raise UserError(
                    f"the encoder is {model.config.d_model} wide, the recipe says {self.width}",
                    where=self.path,
                    mend=f"Set text.width to {model.config.d_model}",
                )
            self._loaded = tokenizer, model
        return self._loaded


class T5:
    """What ``text: {use: t5}`` stands for."""

    trainable = False

    def __init__(self, options: T5Options) -> None:
        self.options = options

    def create(self) -> nn.Module:
        """The encoder; nothing is read yet."""
        return T5Encoder(**self.options.model_dump())

    @staticmethod
    def config_of(module: T5Encoder) -> dict[str, Any]:
        """Where it lies, how wide it is, how long captions are."""
        return {"path": module.path, "width": module.width, "length": module.length}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> nn.Module:
        """The same encoder."""
        return T5Encoder(**config)
