"""Text encoders and tokenizers in a folder: found, checked and loaded, from this machine and safetensors only."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress_plugins.text_transformers import IMAGE_PARTS, PARTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

INDEX = "model_index.json"
TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
"""Files that tokenizers are saved as, of which one must be there."""
TOKENIZER_CONFIG, TEMPLATES = "tokenizer_config.json", ("chat_template.jinja", "chat_template.json")
COPIED = (
    *TOKENIZERS, *TEMPLATES, TOKENIZER_CONFIG, "config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt", "vocab.txt", "sentencepiece.bpe.model",
)  # fmt: skip
"""Those and others that a tokenizer is loaded from."""
WORDLESS = "ByT5Tokenizer"
"""The tokenizer that has no vocabulary: it counts bytes."""
ENCODERS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "mt5": "MT5EncoderModel", "clip": "CLIPTextModel"}
"""The encoder of models that have a decoder, or an image's side, too."""
WIDTHS = ("d_model", "hidden_size")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def is_pipeline(folder: Path) -> bool:
    """Tell whether a folder is a whole pipeline's."""
    return (folder / INDEX).is_file()


def components(folder: Path, parts: Sequence[str] = PARTS) -> dict[str, str]:
    """Return parts of a pipeline's folder by name, and their classes: of its text encoders, or those asked for."""
    index = read_json(folder / INDEX)
    found = {name: index.get(name) for name in parts} if isinstance(index, dict) else {}
    return {name: kind[1] for name, kind in found.items() if isinstance(kind, list) and len(kind) == 2 and kind[1]}


def check(folder: Path) -> None:
    """Raise a UserError unless the folder has encoders and their tokenizers; reads no weights."""
    if not is_pipeline(folder):
        need_encoder(folder)
        need_tokenizer(folder)
        return
    names = components(folder)
    if not {"text_encoder", "tokenizer"} <= names.keys():
        raise UserError(
            "this pipeline names no text encoder and tokenizer",
            where=str(folder / INDEX),
            mend="Give the folder of a pipeline that takes prompts, or that of a text encoder",
        )
    for name, kind in names.items():
        need_tokenizer(folder / name, kind) if name.startswith("tokenizer") else need_encoder(folder / name)
    if components(folder, IMAGE_PARTS[:1]):
        need_encoder(folder / IMAGE_PARTS[0], "image encoder")


def need_encoder(folder: Path, what: str = "text encoder") -> None:
    """Raise a UserError unless the folder has an encoder's config and safetensors."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no {what} here (config.json is missing)",
            where=str(folder),
            mend="Set text.path to a folder that save_pretrained wrote, of a text encoder or of a pipeline",
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            "no weights here in safetensors; a pickle is not read",
            where=str(folder),
            mend="Load it with transformers once, and save_pretrained it into this folder",
        )


def need_tokenizer(folder: Path, kind: str = "") -> None:
    """Raise a UserError unless a tokenizer is there: transformers makes one up of a hundred pieces without a word."""
    if kind == WORDLESS or any((folder / name).is_file() for name in TOKENIZERS):
        return
    raise UserError(
        f"no tokenizer here ({' or '.join(TOKENIZERS)})", where=str(folder), mend="Put the tokenizer's files there"
    )


def need_template(folder: Path) -> None:
    """Raise a UserError where a tokenizer has a chat template, and nobody says whether captions go through it."""
    config = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    if any((folder / name).is_file() for name in TEMPLATES) or (isinstance(config, dict) and "chat_template" in config):
        raise UserError(
            "the tokenizer has a chat template, and each pipeline gives such an encoder a text of its own",
            where=str(folder),
            mend="Give the pipeline's folder, or set text.template: chat, a text with {} for the caption, or '{}'",
        )


def config_of(folder: Path) -> dict[str, Any]:
    """Return the config of an encoder; of one that sees, too, that of its words."""
    config = read_json(folder / "config.json")
    return {**config, **config.get("text_config", {})} if isinstance(config, dict) else {}


def width_of(folder: Path) -> int:
    """Return the width of the embeddings: that of the encoder, of a pipeline's several that of the widest."""
    names = [name for name in components(folder) if name.startswith("text_encoder")] if is_pipeline(folder) else [""]
    found = [config[key] for name in names for config in [config_of(folder / name)] for key in WIDTHS if key in config]
    if not found:
        raise UserError("the encoder's config states no width", where=str(folder), mend="Set text.width")
    return max(found)


def load_tokenizer(folder: Path, kind: str = "AutoTokenizer") -> Any:
    """Load a tokenizer of a class of transformers."""
    need_tokenizer(folder, kind)
    return _loaded(folder, kind)


def load_part(folder: Path, kind: str) -> Any:
    """Load what has no weights: what prepares images."""
    return _loaded(folder, kind)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what the first tokenizer of a folder is loaded from, and the configs that its pipeline reads; no weights."""
    tokenizer = source / "tokenizer" if is_pipeline(source) else source
    need_tokenizer(tokenizer, components(source)["tokenizer"] if is_pipeline(source) else "")
    configs = [source / INDEX, *(source / part / "config.json" for part in ("text_encoder", "vae"))]
    for file in (*configs, *(tokenizer / name for name in COPIED)):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def load_encoder(folder: Path, kind: str = "", dtype: str = "float32") -> Any:
    """Load an encoder, frozen; UserError where the weights are not all there.

    kind: its class; if absent, the one for the config's ``model_type``.
    """
    need_encoder(folder)
    kind = kind or ENCODERS.get(str(config_of(folder).get("model_type")).removesuffix("_text_model"), "AutoModel")
    model, report = _loaded(folder, kind, use_safetensors=True, dtype=DTYPES[dtype], output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            where=str(folder),
            mend="Save the whole encoder once more with save_pretrained",
        )
    return model.eval().requires_grad_(requires_grad=False)


def _loaded(folder: Path, kind: str, **options: Any) -> Any:
    import transformers
    from safetensors import SafetensorError

    cls = getattr(transformers, kind, None)
    if cls is None:
        raise UserError(f"transformers {transformers.__version__} has no {kind}", where=str(folder), mend="Upgrade it")
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        what = "image" if folder.name in IMAGE_PARTS else "text"
        raise UserError(
            f"the {what} encoder can't be read: {str(error).splitlines()[0]}",
            where=str(folder),
            mend="Save it once more with save_pretrained, tokenizer included",
        ) from error
