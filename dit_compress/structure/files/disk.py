"""The edit table on safetensors files: a model is pruned on disk, slice by slice, in a few megabytes of memory.

Bytes are cut as they are, whatever the dtype; only a ``Scale`` computes. Numbers are those that
:func:`dit_compress.structure.apply.edit_state` gives, bit for bit.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors, write_json
from dit_compress.structure.apply import rename, unknown_edit
from dit_compress.structure.edits import COMPUTING, MAKING, KeepBlocks, Scale, Take
from dit_compress.structure.files.slices import Buffers, Piece, cut
from dit_compress.structure.files.tensor_files import (
    INDEX,
    StreamWriter,
    TensorAt,
    header_bytes,
    open_weights,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from dit_compress.structure.edits import Edit
    from dit_compress.structure.files.tensor_files import Weights

SHARD_BYTES = 5_000_000_000
SHARDS_AT_ONCE = 2
"""Shards written side by side: one waits for the disk while the other is hashed."""
FLOATS = ("F16", "BF16", "F32", "F64")
PLAIN = (*FLOATS, "C64", "I64", "BOOL")
"""Dtypes whose entries stand for themselves; others may be packed, or scaled elsewhere."""


def prune_weights(
    source: Path, target: Path, edits: Sequence[Edit], *, made: Path | None = None, shard_bytes: int = SHARD_BYTES
) -> dict[str, dict[str, Any]]:
    """Apply edits to the safetensors of a folder (or a file) and write the result into the folder ``target``.

    Dtypes and metadata stay; shards are made anew, of about equal size and at most ``shard_bytes`` each (a
    larger tensor has a shard of its own). made: a file with the tensors that edits make anew. Gives
    ``file → {"bytes", "sha256"}``. Raises UserError, with nothing written, where a file is missing or cut short, or
    the edits are those of another model.
    """
    weights = open_weights(source)
    others = {} if made is None else open_weights(made).tensors
    return write_pieces(pieces(weights, edits, others), target, weights.stem, weights.metadata, shard_bytes)


def refuse_quantised(weights: Weights) -> None:
    """Raise a UserError where matrices are quantised: their entries don't stand for themselves, and can't be cut."""
    for tensor in weights.tensors.values():
        if len(tensor.shape) > 1 and tensor.dtype not in PLAIN:
            raise _quantised(tensor)


def _quantised(tensor: TensorAt) -> UserError:
    return UserError(
        f"{tensor.name!r} has the dtype {tensor.dtype}: quantised weights can't be cut",
        where=str(tensor.file),
        mend="Prune the model before it is quantised",
    )


def pieces(weights: Weights, edits: Iterable[Edit], made: Mapping[str, TensorAt] | None = None) -> list[Piece]:
    """Sort the edits by the tensor they act on; blocks are dropped or renamed on the way. made: tensors made anew."""
    state = {name: Piece(tensor, name, {}) for name, tensor in weights.tensors.items()}
    for edit in edits:
        if isinstance(edit, KeepBlocks):
            moved = {new: piece for name, piece in state.items() if (new := rename(name, edit)) is not None}
            state = {new: Piece(old.source, new, old.takes, old.factors) for new, old in moved.items()}
        elif isinstance(edit, Take | Scale):
            if isinstance(edit, Take) and not edit.stored:
                continue
            if edit.tensor not in state:
                raise UserError(f"the plan edits the tensor {edit.tensor!r}, which is not here", mend=_OTHER)
            state[edit.tensor] = edited(state[edit.tensor], edit)
        elif isinstance(edit, MAKING):
            if made is None or not all(name in made for name in edit.made):
                raise UserError(
                    f"the plan makes {edit.made[0]!r} anew, out of the weights of one checkpoint",
                    mend="Prune the modulation of this checkpoint itself",
                )
            state = {name: piece for name, piece in state.items() if name.rpartition(".")[0] not in edit.modules}
            state |= {name: Piece(made[name], name, {}) for name in edit.made}
        elif not isinstance(edit, COMPUTING):
            raise unknown_edit(edit)
    return list(state.values())


def edited(piece: Piece, edit: Take | Scale) -> Piece:
    """Return a piece with one edit more; raise a UserError where the tensor has not what the edit takes."""
    source = piece.source
    if source.dtype not in (FLOATS if isinstance(edit, Scale) else PLAIN):
        raise _quantised(source)
    if isinstance(edit, Scale):
        return Piece(source, piece.name, piece.takes, (*piece.factors, edit.factor))
    shape, index = piece.described.shape, np.asarray(edit.index, dtype=np.int64)
    if np.any(np.diff(index) < 1) or index.min(initial=0) < 0:
        raise UserError(f"the plan takes entries of {source.name!r} that do not ascend", mend="Make the plan again")
    if edit.dim >= len(shape) or index.max(initial=-1) >= shape[edit.dim]:
        raise UserError(
            f"{source.name!r} is {list(shape)}; the plan takes entry {index.max()} of axis {edit.dim}",
            where=str(source.file),
            mend=_OTHER,
        )
    before = piece.takes.get(edit.dim)
    return Piece(
        source, piece.name, {**piece.takes, edit.dim: index if before is None else before[index]}, piece.factors
    )


_OTHER = "Use the plan with the model it was made for"

# ------------------------------------------------------------------ write


def write_pieces(
    listed: Sequence[Piece], target: Path, stem: str, metadata: Mapping[str, str], shard_bytes: int = SHARD_BYTES
) -> dict[str, dict[str, Any]]:
    """Write shards (one plain file where they fit into one) and their index; ``file → {"bytes", "sha256"}``."""
    shards = split(listed, shard_bytes)
    names = [f"{stem}-{place:05}-of-{len(shards):05}.safetensors" for place in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]

    def write(name: str, shard: Sequence[Piece]) -> dict[str, Any]:
        with disk_errors(target / name):
            return write_file(shard, target / name, metadata)

    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        records = dict(zip(names, pool.map(write, names, shards), strict=True))
    if len(shards) > 1:
        places = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        total = sum(piece.described.size_bytes for piece in listed)
        write_json(target / f"{stem}{INDEX}", {"metadata": {"total_size": total}, "weight_map": places})
    return records


def split(listed: Sequence[Piece], shard_bytes: int) -> list[list[Piece]]:
    """Cut pieces, in their order, into shards of about equal size."""
    sizes = [piece.described.size_bytes for piece in listed]
    even = math.ceil(sum(sizes) / max(1, math.ceil(sum(sizes) / shard_bytes)))
    shards: list[list[Piece]] = [[]]
    filled = 0
    for piece, size in zip(listed, sizes, strict=True):
        if shards[-1] and (filled + size > shard_bytes or filled >= even):
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += size
    return shards


def write_file(listed: Sequence[Piece], path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write one safetensors file, atomically; return its size and sha256."""
    ordered = sorted(listed, key=lambda piece: piece.described.rank)
    buffers = Buffers()
    with StreamWriter(path) as writer:
        writer.write(memoryview(header_bytes([piece.described for piece in ordered], metadata)))
        for piece in ordered:
            for chunk in cut(piece, buffers):
                writer.write(chunk)
    return writer.record()
