"""What a stock pipeline makes of prompts: its own ``encode_prompt`` over its own encoders, nothing else loaded.

Shapes: B batch, L text length, D width, N bytes of the longest caption.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.structure.empty import empty_weights
from dit_compress_plugins.text_transformers.folder import (
    DTYPES,
    INDEX,
    components,
    config_of,
    load_encoder,
    load_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

LENGTH, CONNECTORS = "max_sequence_length", "connectors"
_GIVEN = re.compile(r"(negative_)?(pooled_)?prompt_(embeds_mask|attention_mask|embeds)(_\d)?")
_UNUSED = ("text_ids",)
"""Given by ``encode_prompt`` and made by the model's adapter: positions."""


class Piped:
    """The text side of a pipeline's folder. Nothing is read before it is asked for."""

    def __init__(self, folder: Path, length: int | None, dtype: str, negative: str) -> None:
        self.folder, self.length, self.dtype, self.negative = folder, length, dtype, negative

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the first encoder."""
        return load_tokenizer(self.folder / "tokenizer", components(self.folder)["tokenizer"])

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline with its text encoders, and without all that has weights besides."""
        return _pipeline_of(self.folder, self.dtype)

    @cached_property
    def num_tokens(self) -> int:
        """How many tokens the first encoder knows."""
        return int(config_of(self.folder / "text_encoder")["vocab_size"])

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Turn captions into ``ids`` and ``mask [B,L]``, as the first encoder is given them, and ``caption [B,N]``.

        The last holds the text itself, UTF-8 ending in -1: ``encode_prompt`` takes text. No encoder is loaded.
        """
        written = [list(caption.encode()) for caption in captions]
        longest = max(map(len, written)) + 1
        rows = torch.tensor([row + [-1] * (longest - len(row)) for row in written])
        return {**self._seen([caption or self.negative for caption in captions]), "caption": rows}

    def encode(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what ``encode_prompt`` gives: ``embedding``, ``mask``; ``pooled``, ``embedding_2`` … where it does.

        The empty caption is the pipeline's negative prompt.
        """
        captions = [bytes(part for part in row if part >= 0).decode() for row in tokens["caption"].tolist()]
        device, given = tokens["caption"].device, [caption for caption in captions if caption]
        found = self._encoded(given, device, negative=False) if given else {}
        null = self._encoded([self.negative], device, negative=True) if len(given) < len(captions) else {}
        places, at = [], 0
        for caption in captions:
            places.append(at if caption else len(given))
            at += bool(caption)
        if not null:
            return found
        both = {name: torch.cat([found[name], null[name]]) if found else null[name] for name in null}
        return {name: value[places] for name, value in both.items()}

    def release(self) -> bool:
        """Give the encoders' memory back; return whether they were read. Another caption reads them again."""
        return vars(self).pop("pipeline", None) is not None

    def _encoded(self, prompts: list[str], device: torch.device, *, negative: bool) -> dict[str, Tensor]:
        """Call ``encode_prompt`` and name what it gives; negative: as its negative prompt, where it can."""
        pipeline = self.pipeline
        for name in components(self.folder):
            if name.startswith("text_encoder"):
                getattr(pipeline, name).to(device)
        apart = negative and "negative_prompt" in _parameters(type(pipeline))
        values = _call(pipeline, prompts, device, DTYPES[self.dtype], self.length, negative=apart)
        names = _names(type(pipeline))
        found = {_condition(name): value.float() for name, value in zip(names, values, strict=True)
                 if name not in _UNUSED and name.startswith("negative_") == apart}  # fmt: skip
        # Where no mask is given the model sees every row: rows of zeros (Wan's padding) are the same behind a mask.
        found.setdefault("mask", (found["embedding"] != 0).any(-1).float())
        return self._connected(found)

    def _connected(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put LTX-2's connectors behind the encoder, as its pipeline does; return the words for the video."""
        if not (self.folder / CONNECTORS).is_dir():
            return found
        from diffusers.pipelines.ltx2 import LTX2TextConnectors

        connectors = LTX2TextConnectors.from_pretrained(self.folder / CONNECTORS).to(found["embedding"].device)
        side = getattr(self.tokenizer, "padding_side", "left")
        with torch.no_grad():
            video, _, mask = connectors(found["embedding"], found["mask"], padding_side=side)
        return {**found, "embedding": video.float(), "mask": mask.float()}

    def _seen(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return what the first tokenizer is asked in ``encode_prompt``, and stop there."""
        bare = bare_pipeline(self.folder)
        vars(bare)["tokenizer"] = _Overheard(self.tokenizer)
        try:
            _call(bare, prompts, torch.device("cpu"), torch.float32, self.length, negative=False)
        except _SeenError as seen:
            return {"ids": seen.encoded["input_ids"], "mask": seen.encoded["attention_mask"]}
        raise UserError(
            f"{type(bare).__name__}.encode_prompt asks no tokenizer", where=str(self.folder), mend="Write a text plugin"
        )


class _SeenError(Exception):
    def __init__(self, encoded: Any) -> None:
        super().__init__("seen")
        self.encoded = encoded


class _Overheard:
    """A tokenizer whose answer ends the call."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _SeenError(self.tokenizer(*args, **{**kwargs, "return_attention_mask": True}))

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        raise _SeenError(self.tokenizer.apply_chat_template(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def _call(
    pipeline: Any, prompts: list[str], device: torch.device, dtype: torch.dtype, length: int | None, *, negative: bool
) -> Sequence[Any]:
    """Call ``encode_prompt`` as the pipeline's ``__call__`` does: with the defaults of that, which may be others."""
    asked, stated = _parameters(type(pipeline)), inspect.signature(type(pipeline).__call__).parameters
    if length is not None and LENGTH not in asked:
        what = f"{type(pipeline).__name__} has a length of its own"
        raise UserError(what, where="text.length", mend="Leave 'length' out")
    usual = {name: stated[name].default for name in asked if name in stated}
    given = {
        "prompt": prompts, "device": device, "dtype": dtype, "batch_size": len(prompts),
        "negative_prompt": prompts if negative else None, "do_classifier_free_guidance": negative,
        **({} if length is None else {LENGTH: length}),
    }  # fmt: skip
    values = {**usual, **{name: value for name, value in given.items() if name in asked}}
    empty = inspect.Parameter.empty
    missing = {name: None for name, each in asked.items() if each.default is empty}
    with torch.no_grad():
        return pipeline.encode_prompt(**{**missing, **{k: v for k, v in values.items() if v is not empty}})


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the arguments of ``encode_prompt``."""
    return dict(list(inspect.signature(kind.encode_prompt).parameters.items())[1:])  # type: ignore[attr-defined]


def _names(kind: type) -> tuple[str, ...]:
    """Return the names of what ``encode_prompt`` returns, as its last ``return`` has them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.encode_prompt)))  # type: ignore[attr-defined]
    value = [node for node in ast.walk(tree) if isinstance(node, ast.Return)][-1].value
    return tuple(ast.unparse(each) for each in (value.elts if isinstance(value, ast.Tuple) else [value]) if each)


def _condition(name: str) -> str:
    """Return the condition that one of the pipeline's tensors is: ``prompt_embeds_2`` is ``embedding_2``."""
    found = _GIVEN.fullmatch(name)
    if found is None:
        raise UserError(
            f"encode_prompt gives {name!r}, which is not understood", mend="Write a text plugin (docs/plugins/text.md)"
        )
    _, pooled, what, place = found.groups()
    return ("pooled" if pooled else "embedding" if what == "embeds" else "mask") + (place or "")


def _pipeline_of(folder: Path, dtype: str) -> Any:
    """Make the pipeline of a folder out of its text encoders and tokenizers."""
    names = components(folder)
    return bare_pipeline(folder, {
        name: load_tokenizer(folder / name, kind)
        if name.startswith("tokenizer")
        else load_encoder(folder / name, kind, dtype)
        for name, kind in names.items()
    })  # fmt: skip


def bare_pipeline(folder: Path, parts: Mapping[str, Any] | None = None) -> Any:
    """Make the pipeline of a folder with the parts given; a VAE without weights, as some take sizes from it."""
    import diffusers

    index = read_json(folder / INDEX)
    kind: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if kind is None or not hasattr(kind, "encode_prompt"):
        raise UserError(
            f"diffusers {diffusers.__version__} has no pipeline {index.get('_class_name')!r} that encodes prompts",
            where=str(folder / INDEX),
            mend="Give the folder of the text encoder itself",
        )
    asked = list(inspect.signature(kind.__init__).parameters)[1:]
    plain = {name: value for name, value in index.items() if name in asked and not isinstance(value, list)}
    whole = {name: None for name in asked if isinstance(index.get(name), list)} | plain | _hollow_vae(folder, index)
    whole |= {name: None for name in (*asked,) if name not in whole and name in ("vae", "scheduler", "transformer")}
    return kind(**{**whole, **(parts or {})})


def _hollow_vae(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    import diffusers

    if not (folder / "vae" / "config.json").is_file() or not isinstance(index.get("vae"), list):
        return {}
    kind: Any = getattr(diffusers, index["vae"][1])
    with empty_weights():
        return {"vae": kind.from_config(read_json(folder / "vae" / "config.json"))}
