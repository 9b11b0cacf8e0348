"""The edit table on safetensors files: a model is pruned on disk, slice by slice, in a few megabytes of memory.

Bytes are cut as they are, whatever the dtype; only a ``Scale`` computes. Numbers are those that
:func:`dit_compress.structure.edits.edit_state` gives, bit for bit.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors, write_json
from dit_compress.structure.apply import edit_tensor, rename, unknown_edit
from dit_compress.structure.edits import COMPUTING, MAKING, KeepBlocks, Scale, Take
from dit_compress.structure.files.tensor_files import (
    INDEX,
    ITEM_BYTES,
    Described,
    StreamWriter,
    TensorAt,
    header_bytes,
    open_weights,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dit_compress.structure.edits import Edit
    from dit_compress.structure.files.tensor_files import Weights

CHUNK_BYTES = 16 << 20
"""Bytes read at once."""
SHORT_BYTES = 1 << 14
"""Runs of rows shorter than this are read together with the rows between them."""
SHARD_BYTES = 5_000_000_000
SHARDS_AT_ONCE = 2
"""Shards written side by side: one waits for the disk while the other is hashed."""
FLOATS = ("F16", "BF16", "F32", "F64")
PLAIN = (*FLOATS, "C64", "I64", "BOOL")
"""Dtypes whose entries stand for themselves; others may be packed, or scaled elsewhere."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the result: where it is read, its new name, what is taken of it, and by what it is multiplied."""

    source: TensorAt
    name: str
    takes: Mapping[int, np.ndarray]
    factors: tuple[float, ...] = ()

    @property
    def described(self) -> Described:
        """The entry in the new file's header."""
        shape = [len(self.takes[dim]) if dim in self.takes else size for dim, size in enumerate(self.source.shape)]
        return Described(self.name, self.source.dtype, tuple(shape))


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


# ------------------------------------------------------------------ cut


class Buffers:
    """Reused memory: two buffers in turn for what is written, two for what is still to be cut."""

    def __init__(self) -> None:
        self._turns = {"written": 0, "scratch": 0}
        self._held = {name: [np.empty(0, np.uint8)] * 2 for name in self._turns}

    def get(self, size_bytes: int, name: Literal["written", "scratch"]) -> np.ndarray:
        """Return bytes that live until the next call but one of that name."""
        turn = self._turns[name] = 1 - self._turns[name]
        if len(self._held[name][turn]) < size_bytes:
            self._held[name][turn] = np.empty(max(size_bytes, CHUNK_BYTES), np.uint8)
        return self._held[name][turn][:size_bytes]


def cut(piece: Piece, buffers: Buffers) -> Iterator[memoryview]:
    """Yield the bytes of the edited tensor, in order, in chunks."""
    handle = os.open(piece.source.file, os.O_RDONLY)
    try:
        if piece.factors:
            yield _scaled(piece, b"".join(_taken(handle, piece, buffers)))
        else:
            yield from _taken(handle, piece, buffers)
    finally:
        os.close(handle)


def _scaled(piece: Piece, data: bytes) -> memoryview:
    """Do the same arithmetic as on a live tensor. Only norm weights are scaled: they are small."""
    import torch

    tensor = torch.frombuffer(bytearray(data), dtype=getattr(torch, TORCH[piece.source.dtype]))
    for factor in piece.factors:
        tensor = edit_tensor(tensor, Scale(piece.name, factor))
    return tensor.view(torch.uint8).numpy().data


TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "I16": "int16",
    "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32",
    "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
"""What torch calls the dtypes of safetensors."""


def _taken(handle: int, piece: Piece, buffers: Buffers) -> Iterator[memoryview]:
    """Yield kept rows in chunks, every other axis taken in memory."""
    shape, kept = piece.source.shape, piece.described.shape
    if math.prod(kept) == 0:
        return
    row_bytes = math.prod(shape[1:]) * ITEM_BYTES[piece.source.dtype]
    rows = piece.takes[0] if 0 in piece.takes else np.arange(shape[0] if shape else 1)
    inner = [dim for dim in sorted(piece.takes) if dim > 0]
    for group in _groups(rows, row_bytes):
        data = _rows(handle, piece.source.offset, group, row_bytes, buffers, "scratch" if inner else "written")
        for dim in inner:
            outer = len(group) * math.prod(kept[1:dim])
            data = take(
                data, outer, piece.takes[dim], shape[dim], buffers, "written" if dim == inner[-1] else "scratch"
            )
        yield data.data


def take(
    data: np.ndarray,
    outer: int,
    index: np.ndarray,
    size: int,
    buffers: Buffers,
    name: Literal["written", "scratch"] = "written",
) -> np.ndarray:
    """Take entries of one axis: bytes of ``[outer, size, inner]`` → bytes of ``[outer, len(index), inner]``.

    Neighbours that stay together are moved as one: heads move as 64 columns, not as 64 entries.
    """
    grain = _grain(index, size)
    inner = len(data) // (outer * size) * grain
    chosen = index[::grain] // grain
    taken = buffers.get(outer * len(chosen) * inner, name).reshape(outer, len(chosen), inner)
    np.take(data.reshape(outer, size // grain, inner), chosen, axis=1, out=taken, mode="clip")
    return taken.reshape(-1)


def _grain(index: np.ndarray, size: int) -> int:
    """Return the largest g such that the index consists of whole, aligned runs of g."""
    edges = np.flatnonzero(np.diff(index) != 1) + 1
    starts, stops = index[np.r_[0, edges]], index[np.r_[edges - 1, -1]] + 1
    return math.gcd(size, *starts.tolist(), *stops.tolist())


def _groups(rows: np.ndarray, row_bytes: int) -> Iterator[np.ndarray]:
    """Yield rows that lie within one chunk of the file (at least one)."""
    reach = max(1, CHUNK_BYTES // max(row_bytes, 1))
    start = 0
    while start < len(rows):
        stop = int(np.searchsorted(rows, rows[start] + reach))
        yield rows[start:stop]
        start = stop


def _rows(
    handle: int,
    offset: int,
    rows: np.ndarray,
    row_bytes: int,
    buffers: Buffers,
    name: Literal["written", "scratch"],
) -> np.ndarray:
    """Return the bytes of some rows of one group, one after another."""
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    if len(edges) > 2 and len(rows) * row_bytes < SHORT_BYTES * (len(edges) - 1):
        span = int(rows[-1] - rows[0]) + 1
        between = _read(handle, offset + int(rows[0]) * row_bytes, buffers.get(span * row_bytes, "scratch"))
        return take(between, 1, rows - rows[0], span, buffers, name)
    data = buffers.get(len(rows) * row_bytes, name)
    for first, last in pairwise(edges):
        _read(handle, offset + int(rows[first]) * row_bytes, data[first * row_bytes : last * row_bytes])
    return data


def _read(handle: int, offset: int, data: np.ndarray) -> np.ndarray:
    """Fill a buffer from the file."""
    view, done = data.data, 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], offset + done)
        if count == 0:
            raise UserError("a file became shorter while it was read")
        done += count
    return data
