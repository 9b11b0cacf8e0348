"""The edit table on a LoRA that was made for the model before it was pruned.

``W + scale·B·A``: rows of W are rows of B, columns of W are columns of A, a factor on W is one on B. What peft and
diffusers write is understood: ``<module>.lora_A.weight`` and ``lora_B``, ``lora.down`` and ``lora.up``, a bias of B,
``alpha``, whole modules that were trained (``modules_to_save``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dit_compress.errors import UserError
from dit_compress.files import disk_errors, read_json, whole_folder, write_json
from dit_compress.structure.disk import Piece, edited, write_file, write_pieces
from dit_compress.structure.edits import KeepBlocks, Scale, Take, rename
from dit_compress.structure.tensor_files import open_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dit_compress.structure.edits import Edit
    from dit_compress.structure.tensor_files import Weights

_KINDS = {
    "down": r"\.(?:lora_A(?:\.[^.]+)?|lora\.down|lora_down)\.weight",
    "up": r"\.(?:lora_B(?:\.[^.]+)?|lora\.up|lora_up)\.weight",
    "bias": r"\.(?:lora_B(?:\.[^.]+)?|lora\.up|lora_up)\.bias",
    "alpha": r"\.(?:lora\.)?(?:network_)?alpha",
    "magnitude": r"\.(?:lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|dora_scale)",
    "whole": r"(?:\.modules_to_save(?:\.[^.]+)?)?\.(?:weight|bias)",
}
_SUFFIX = re.compile("(?P<module>.+?)(?:" + "|".join(f"(?P<{kind}>{text})" for kind, text in _KINDS.items()) + ")")
_ADAPTER = "adapter_config.json"
_PATHS = ("target_modules", "modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern")
"""Entries of an adapter's config that may name modules by their full path."""


@dataclass(frozen=True)
class Part:
    """One tensor of a LoRA: ``prefix + module + suffix``; kind says what it is to the weight of that module."""

    prefix: str
    module: str
    suffix: str
    kind: str
    piece: Piece


def prune_lora(source: Path, target: Path, edits: Sequence[Edit], base: Mapping[str, Sequence[int]]) -> None:
    """Make a LoRA of the whole model one of the pruned model.

    source: a safetensors file, or a folder of peft (with ``adapter_config.json``); target: likewise, new.
    base: shapes of the whole model. Raises UserError, with nothing written, where the LoRA was made for another
    model, or is a DoRA whose columns are cut (its magnitudes are norms over all columns).
    """
    weights = open_weights(source)
    parts, others = read_parts(weights, base)
    moved = {part.module: _moved(part.module, edits) for part in parts}
    kept = [*(_renamed(part, moved) for part in _pruned(parts, edits) if moved[part.module] is not None), *others]
    metadata = {name: _metadata(text, base, edits) for name, text in weights.metadata.items()}
    if not source.is_dir():
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(kept, target, metadata)
        return
    with whole_folder(target) as folder:
        write_pieces(kept, folder, weights.stem, metadata)
        if (source / _ADAPTER).is_file():
            write_json(folder / _ADAPTER, _config(read_json(source / _ADAPTER), base, edits))


def read_parts(weights: Weights, base: Mapping[str, Sequence[int]]) -> tuple[list[Part], list[Piece]]:
    """The tensors that belong to the model, and those of a text encoder, which stay as they are."""
    parts, others = [], []
    for name, tensor in weights.tensors.items():
        match = _SUFFIX.fullmatch(name)
        module = _module(match["module"], base) if match else None
        piece = Piece(tensor, name, {})
        if match is not None and module is not None:
            kind = next(kind for kind in _KINDS if match[kind])
            prefix = match["module"].removesuffix(module)
            parts.append(_checked(Part(prefix, module, match[kind], kind, piece), base))
        elif name.startswith("text_encoder"):
            others.append(piece)
        else:
            raise UserError(
                f"{name!r} belongs to no module of the model that the plan is for",
                where=str(tensor.file),
                mend="Give a LoRA of that model, saved by peft or diffusers",
            )
    return parts, others


def _module(path: str, base: Mapping[str, Sequence[int]]) -> str | None:
    """The model's module a name ends with, after ``transformer.`` or ``base_model.model.``."""
    while path:
        if f"{path}.weight" in base:
            return path
        path = path.partition(".")[2]
    return None


def _checked(part: Part, base: Mapping[str, Sequence[int]]) -> Part:
    """UserError where a factor does not fit the weight it is for."""
    shape, found = base[f"{part.module}.weight"], part.piece.source.shape
    wanted = {"down": (1, shape[-1] if len(shape) < 2 else shape[1]), "up": (0, shape[0]), "bias": (0, shape[0])}
    dim, size = wanted.get(part.kind, (0, None))
    if size is not None and (len(found) <= dim or found[dim] != size):
        raise UserError(
            f"{part.piece.name!r} is {list(found)}, the model's weight {list(shape)}",
            where=str(part.piece.source.file),
            mend="Give a LoRA of the model that the plan is for",
        )
    return part


def _pruned(parts: Sequence[Part], edits: Sequence[Edit]) -> list[Part]:
    """Every part after the edits of its module's weight; names as before."""
    at: dict[str, list[int]] = {}
    state = list(parts)
    for place, part in enumerate(parts):
        at.setdefault(part.module, []).append(place)
    for edit in edits:
        if isinstance(edit, KeepBlocks):
            at = {new: places for module, places in at.items() if (new := _moved(module, [edit])) is not None}
        elif isinstance(edit, Take | Scale):
            module, _, leaf = edit.tensor.rpartition(".")
            for place in at.get(module, ()):
                state[place] = replace(state[place], piece=_follow(state[place], edit, leaf))
    return state


def _follow(part: Part, edit: Take | Scale, leaf: str) -> Piece:
    """One part after one edit of its module's ``leaf`` (weight or bias)."""
    if part.kind == "whole":
        return edited(part.piece, edit) if part.suffix.endswith(f".{leaf}") else part.piece
    if part.kind == "bias":
        # Its rows are those of the weight: the model's linear may have no bias itself.
        follows = leaf == ("weight" if isinstance(edit, Take) else "bias") and getattr(edit, "dim", 0) == 0
        return edited(part.piece, edit) if follows else part.piece
    if part.kind == "alpha" or leaf != "weight":
        return part.piece
    if part.kind == "magnitude" and (isinstance(edit, Scale) or edit.dim > 0):
        raise UserError(
            f"{part.piece.name!r} is a DoRA magnitude, the norm of a whole row, and columns of that row are cut",
            where=str(part.piece.source.file),
            mend="Merge the DoRA into the model, then prune the model",
        )
    if isinstance(edit, Scale):
        return edited(part.piece, edit) if part.kind == "up" else part.piece
    rows = edit.dim == 0
    return edited(part.piece, edit) if rows == (part.kind in ("up", "magnitude")) else part.piece


def _renamed(part: Part, moved: Mapping[str, str | None]) -> Piece:
    return replace(part.piece, name=f"{part.prefix}{moved[part.module]}{part.suffix}")


def _moved(module: str, edits: Sequence[Edit]) -> str | None:
    """A module's path after the block edits; None where it went with its block (or stands for a tombstone)."""
    name: str | None = f"{module}.weight"
    for edit in edits:
        if isinstance(edit, KeepBlocks) and name is not None:
            name = rename(name, edit)
    return None if name is None else name.removesuffix(".weight")


# ------------------------------------------------------------------ configs that name modules


def _metadata(text: str, base: Mapping[str, Sequence[int]], edits: Sequence[Edit]) -> str:
    """A metadata entry; diffusers keeps the adapter's config there, as JSON with prefixed keys."""
    try:
        config = json.loads(text)
    except ValueError:
        return text
    return json.dumps(_config(config, base, edits), indent=2, sort_keys=True) if isinstance(config, dict) else text


def _config(config: Mapping[str, Any], base: Mapping[str, Sequence[int]], edits: Sequence[Edit]) -> dict[str, Any]:
    """An adapter's config with the modules named by full path renamed or left out."""

    def listed(names: Any) -> Any:
        if isinstance(names, list):
            return [new for name in names if (new := path(name)) is not None]
        if isinstance(names, dict):
            return {new: value for name, value in names.items() if (new := path(name)) is not None}
        return names

    def path(name: str) -> str | None:
        module = _module(name, base)
        if module is None:
            return name
        new = _moved(module, edits)
        return None if new is None else name.removesuffix(module) + new

    return {key: listed(value) if key.rpartition(".")[2] in _PATHS else value for key, value in config.items()}
