"""Slices of tensors, read from their files in chunks: a few megabytes of memory, whatever the size of the tensor."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.structure.apply import edit_tensor
from dit_compress.structure.edits import Scale
from dit_compress.structure.files.tensor_files import ITEM_BYTES, Described, TensorAt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHUNK_BYTES = 16 << 20
"""Bytes read at once."""
SHORT_BYTES = 1 << 14
"""Runs of rows shorter than this are read together with the rows between them."""


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
