"""The edit table on a LoRA that was made for the model before it was pruned.

``W + scale·B·A``: rows of W are rows of B, columns of W are columns of A, a factor on W is one on B. What peft and
diffusers write is understood: ``<module>.lora_A.weight`` and ``lora_B``, ``lora.down`` and ``lora.up``, a bias of B,
``alpha``, whole tensors that were trained (``modules_to_save``); so are Kohya's names (``lora_unet_blocks_0_attn``)
and ComfyUI's (``diffusion_model.blocks``, ``diff``, ``diff_b``). Anything else is refused by its name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors, read_json, whole_folder, write_json
from dit_compress.core.progress import say
from dit_compress.structure.apply import rename, unknown_edit
from dit_compress.structure.edits import COMPUTING, MAKING, KeepBlocks, Scale, Take
from dit_compress.structure.files.disk import edited, write_file, write_pieces
from dit_compress.structure.files.slices import Piece
from dit_compress.structure.files.tensor_files import open_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dit_compress.structure.edits import Edit
    from dit_compress.structure.files.tensor_files import TensorAt, Weights

_KINDS = {
    "down": r"\.(?:lora_A(?:\.[^.]+)?|lora\.down|lora_down)\.weight",
    "up": r"\.(?:lora_B(?:\.[^.]+)?|lora\.up|lora_up)\.weight",
    "bias": r"\.(?:lora_B(?:\.[^.]+)?|lora\.up|lora_up)\.bias",
    "alpha": r"\.(?:lora\.)?(?:network_)?alpha",
    "magnitude": r"\.(?:lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|dora_scale)",
}
_SUFFIX = re.compile("(?P<module>.+?)(?:" + "|".join(f"(?P<{kind}>{text})" for kind, text in _KINDS.items()) + ")")
_DIFF = re.compile(r"(?P<module>.+)(?P<suffix>\.diff(?P<bias>_b)?)")
_FLAT = re.compile(r"(lora_(?:unet|transformer|dit|model)_)(.+)")
_SAVED = "modules_to_save"
BASE = "dit_compress_base"
"""In a LoRA's metadata: the digest of the weights that it was trained on (``digest_of``)."""
_ADAPTER, _WEIGHTS = "adapter_config.json", "pytorch_lora_weights.safetensors"
_PATHS = ("target_modules", _SAVED, "exclude_modules", "rank_pattern", "alpha_pattern")
"""Entries of an adapter's config that may name modules by their full path."""
_MERGE = "Merge the LoRA into the model, then prune the model"


@dataclass(frozen=True)
class LoraTensor:
    """One tensor of a LoRA, and the model's ``tensor`` that it follows.

    kind: what it is to that tensor (``whole``: the tensor itself; ``diff``: what is added to it). prefix, suffix: what
    stands around the module's path in its name; inside: segments within the path (of ``modules_to_save``), and at
    which place. flat: the path stands in its name with ``_`` for dots.
    """

    tensor: str
    kind: str
    piece: Piece
    prefix: str
    suffix: str = ""
    inside: tuple[int, tuple[str, ...]] = (0, ())
    flat: bool = False

    def named(self, tensor: str) -> str:
        """Return the factor's name where its tensor has a new one."""
        if self.kind != "whole":
            module = tensor.rpartition(".")[0]
            return f"{self.prefix}{module.replace('.', '_') if self.flat else module}{self.suffix}"
        segments, (place, inserted) = tensor.split("."), self.inside
        return self.prefix + ".".join([*segments[:place], *inserted, *segments[place:]])


def is_lora(folder: Path) -> bool:
    """Tell whether a folder is an adapter: of peft, or of diffusers' ``save_lora_weights``."""
    return (folder / _ADAPTER).is_file() or (folder / _WEIGHTS).is_file()


def prune_lora(
    source: Path, target: Path, edits: Sequence[Edit], base: Mapping[str, Sequence[int]], made_for: str | None = None
) -> None:
    """Make a LoRA of the whole model one of the pruned model.

    source: a safetensors file, or a folder of peft (with ``adapter_config.json``); target: likewise, new.
    base: shapes of the whole model. made_for: digest of its weights, where the plan says it. Raises UserError, with
    nothing written, where the LoRA was made for another model, or is a DoRA whose columns are cut (its magnitudes are
    norms over all columns).
    """
    say(f"pruning {source}")
    weights = open_weights(source)
    need_base(weights.metadata, made_for, source)
    factors, others = read_factors(weights, base)
    kept = [*_pruned(factors, edits), *others]
    metadata = {name: _metadata(text, base, edits) for name, text in weights.metadata.items() if name != BASE}
    say(f"writing {target}")
    if not source.is_dir():
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(kept, target, metadata)
        return
    with whole_folder(target) as folder:
        write_pieces(kept, folder, weights.stem, metadata)
        if (source / _ADAPTER).is_file():
            write_json(folder / _ADAPTER, _config(read_json(source / _ADAPTER), base, edits))


def need_base(metadata: Mapping[str, str], made_for: str | None, source: Path) -> None:
    """Raise a UserError where a LoRA says on which weights it was trained, and the plan was made for others."""
    trained_on = metadata.get(BASE)
    if trained_on is not None and isinstance(made_for, str) and trained_on != made_for:
        raise UserError(
            f"this LoRA was trained on other weights ({trained_on[:12]}…) than the plan is for ({made_for[:12]}…)",
            where=str(source),
            mend="Repeat the plan on the LoRA's base (dit-compress prune BASE --plan … --out …), and give that plan",
        )


def read_factors(weights: Weights, base: Mapping[str, Sequence[int]]) -> tuple[list[LoraTensor], list[Piece]]:
    """Read the tensors that belong to the model, and those of a text encoder, which stay as they are."""
    factors, others = [], []
    flat = _flat_modules(base)
    for name, tensor in weights.tensors.items():
        if name.startswith(("text_encoder", "lora_te")):
            others.append(Piece(tensor, name, {}))
            continue
        factor = _factor(tensor, base, flat) or _diff(tensor, base) or _whole(tensor, base)
        if factor is None:
            raise _foreign(tensor, base)
        factors.append(_checked(factor, base))
    return factors, others


def _flat_modules(base: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return modules by their paths with ``_`` for dots; those that two modules share are left out."""
    modules = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    counts = Counter(module.replace(".", "_") for module in modules)
    return {flat: module for module in modules if counts[flat := module.replace(".", "_")] == 1}


def _diff(source: TensorAt, base: Mapping[str, Sequence[int]]) -> LoraTensor | None:
    """Read what is added to a whole weight or bias; None for anything else."""
    match = _DIFF.fullmatch(source.name)
    leaf = ".bias" if match and match["bias"] else ".weight"
    module = _ending(match["module"], base, leaf) if match else None
    if match is None or module is None:
        return None
    prefix = match["module"].removesuffix(module)
    return LoraTensor(f"{module}{leaf}", "diff", Piece(source, source.name, {}), prefix, match["suffix"])


def _factor(source: TensorAt, base: Mapping[str, Sequence[int]], flat: Mapping[str, str]) -> LoraTensor | None:
    """Read a factor of a LoRA, or what stands beside it; None for anything else."""
    match = _SUFFIX.fullmatch(source.name)
    if match is None:
        return None
    kind = next(kind for kind in _KINDS if match[kind])
    named = _FLAT.fullmatch(match["module"])
    if named and named[2] in flat:
        piece = Piece(source, source.name, {})
        return LoraTensor(f"{flat[named[2]]}.weight", kind, piece, named[1], match[kind], flat=True)
    module = _ending(match["module"], base, ".weight")
    if module is None:
        return None
    prefix = match["module"].removesuffix(module)
    return LoraTensor(f"{module}.weight", kind, Piece(source, source.name, {}), prefix, match[kind])


def _whole(source: TensorAt, base: Mapping[str, Sequence[int]]) -> LoraTensor | None:
    """Read a tensor of the model that was trained whole; None for anything else."""
    segments = source.name.split(".")
    place = segments.index(_SAVED) if _SAVED in segments else len(segments)
    # peft may put the adapter's name after the word.
    for count in (0, 1, 2) if place < len(segments) else (0,):
        tensor = _ending(".".join([*segments[:place], *segments[place + count :]]), base)
        if tensor is not None:
            around = len(segments) - count - tensor.count(".") - 1
            prefix = "".join(f"{segment}." for segment in segments[:around])
            inside = (place - around, tuple(segments[place : place + count]))
            return LoraTensor(tensor, "whole", Piece(source, source.name, {}), prefix, inside=inside)
    return None


def _ending(path: str, base: Mapping[str, Sequence[int]], leaf: str = "") -> str | None:
    """Find the module or tensor of the model that a name ends with, after ``transformer.`` or ``base_model.model.``."""
    while path:
        if f"{path}{leaf}" in base:
            return path
        path = path.partition(".")[2]
    return None


def _foreign(source: TensorAt, base: Mapping[str, Sequence[int]]) -> UserError:
    """Make the error for a tensor that can't follow."""
    match = _SUFFIX.fullmatch(source.name)
    attention = _ending(match["module"], base, ".in_proj_weight") if match else None
    if attention is not None:
        return UserError(
            f"{source.name!r} changes '{attention}.in_proj_weight', which can't follow",
            where=str(source.file),
            mend=_MERGE,
        )
    return UserError(
        f"{source.name!r} belongs to no module of the model that the plan is for",
        where=str(source.file),
        mend="Give a LoRA of that model, saved by peft or diffusers",
    )


def _checked(factor: LoraTensor, base: Mapping[str, Sequence[int]]) -> LoraTensor:
    """Check a factor; raise a UserError where its tensor does not fit the one it is for."""
    shape, found = list(base[factor.tensor]), list(factor.piece.source.shape)
    wanted = {"down": (1, shape[-1] if len(shape) < 2 else shape[1]), "up": (0, shape[0]), "bias": (0, shape[0])}
    dim, size = wanted.get(factor.kind, (0, None))
    wrong = (
        found != shape
        if factor.kind in ("whole", "diff")
        else size is not None and (len(found) <= dim or found[dim] != size)
    )
    if wrong:
        raise UserError(
            f"{factor.piece.name!r} is {found}, the model's {factor.tensor!r} {shape}",
            where=str(factor.piece.source.file),
            mend="Give a LoRA of the model that the plan is for",
        )
    return factor


def _pruned(factors: Sequence[LoraTensor], edits: Sequence[Edit]) -> list[Piece]:
    """Return what is left of the factors after the edits of their tensors, under the new names."""
    state = dict(enumerate(factors))
    for edit in edits:
        if isinstance(edit, KeepBlocks):
            moved = {place: rename(factor.tensor, edit) for place, factor in state.items()}
            state = {place: replace(state[place], tensor=new) for place, new in moved.items() if new is not None}
        elif isinstance(edit, Take | Scale):
            module, _, leaf = edit.tensor.rpartition(".")
            for place, factor in state.items():
                if factor.tensor.rpartition(".")[0] == module:
                    state[place] = replace(factor, piece=_follow(factor, edit, leaf))
        elif isinstance(edit, MAKING):
            _refuse_made(state.values(), (*edit.modules, *edit.upstream))
        elif not isinstance(edit, COMPUTING):
            raise unknown_edit(edit)
    return [replace(factor.piece, name=factor.named(factor.tensor)) for factor in state.values()]


def _refuse_made(factors: Iterable[LoraTensor], modules: Sequence[str]) -> None:
    """Raise a UserError where a LoRA changes a linear in whose place a table stands, or two of low rank."""
    for factor in factors:
        if factor.tensor.rpartition(".")[0] in modules:
            raise UserError(
                f"{factor.piece.name!r} changes a modulation that the plan made anew out of the base's weights",
                where=str(factor.piece.source.file),
                mend=_MERGE,
            )


def _follow(factor: LoraTensor, edit: Take | Scale, leaf: str) -> Piece:
    """Make one edit of a module's ``leaf`` (weight or bias) on one factor."""
    if factor.kind in ("whole", "diff"):
        return edited(factor.piece, edit) if factor.tensor == edit.tensor else factor.piece
    if factor.kind == "bias":
        # Its rows are those of the weight: the model's linear may have no bias itself.
        follows = leaf == ("weight" if isinstance(edit, Take) else "bias") and getattr(edit, "dim", 0) == 0
        return edited(factor.piece, edit) if follows else factor.piece
    if factor.kind == "alpha" or leaf != "weight":
        return factor.piece
    if isinstance(edit, Take) and edit.dim > 1:
        raise UserError(
            f"{factor.piece.name!r}: axis {edit.dim} of its weight is cut, a LoRA has factors for the first two",
            where=str(factor.piece.source.file),
            mend=_MERGE,
        )
    if factor.kind == "magnitude" and (isinstance(edit, Scale) or edit.dim > 0):
        raise UserError(
            f"{factor.piece.name!r} is a DoRA magnitude, the norm of a whole row, and columns of that row are cut",
            where=str(factor.piece.source.file),
            mend="Merge the DoRA into the model, then prune the model",
        )
    if isinstance(edit, Scale):
        return edited(factor.piece, edit) if factor.kind == "up" else factor.piece
    rows = edit.dim == 0
    return edited(factor.piece, edit) if rows == (factor.kind in ("up", "magnitude")) else factor.piece


# ------------------------------------------------------------------ configs that name modules


def _metadata(text: str, base: Mapping[str, Sequence[int]], edits: Sequence[Edit]) -> str:
    """Read a metadata entry; diffusers keeps the adapter's config there, as JSON with prefixed keys."""
    try:
        config = json.loads(text)
    except ValueError:
        return text
    return json.dumps(_config(config, base, edits), indent=2, sort_keys=True) if isinstance(config, dict) else text


def _config(config: Mapping[str, Any], base: Mapping[str, Sequence[int]], edits: Sequence[Edit]) -> dict[str, Any]:
    """Return an adapter's config with the modules named by full path renamed or left out."""

    def listed(names: Any) -> Any:
        if isinstance(names, list):
            return [new for name in names if (new := path(name)) is not None]
        if isinstance(names, dict):
            return {new: value for name, value in names.items() if (new := path(name)) is not None}
        return names

    modules = {name.rpartition(".")[0] for name in base}
    holders = {module[: match.start()] for module in modules for match in re.finditer(r"\.|$", module)}

    def path(name: str) -> str | None:
        module = name
        while module and module not in holders:
            module = module.partition(".")[2]
        new = _moved(module, edits)
        return None if new is None else name.removesuffix(module) + new

    return {key: listed(value) if key.rpartition(".")[2] in _PATHS else value for key, value in config.items()}


def _moved(module: str, edits: Sequence[Edit]) -> str | None:
    """Return a module's path after the block edits; None where it went with its block (or stands for a tombstone)."""
    new: str | None = module
    for edit in edits:
        if isinstance(edit, KeepBlocks) and new and (edit.names or new.startswith(f"{edit.stack}.")):
            new = rename(f"{new}.", edit)
            new = None if new is None else new.removesuffix(".")
    return new
