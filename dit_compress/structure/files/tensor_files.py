"""Safetensors files without loading them: where each tensor lies, and a writer that takes one tensor after another.

A file is the length of the header (8 bytes, little-endian), the header (JSON: name → dtype, shape, byte range)
and the bytes. Nothing is mapped into memory: mapped pages would count as memory of the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

INDEX = ".safetensors.index.json"
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of one entry by dtype, in the order in which safetensors sorts dtypes: a file begins with the last."""
HEADER_LIMIT = 100_000_000
"""Longest header that safetensors reads."""
_SHARD = re.compile(r"[ -.0-~]{1,240}\.safetensors")
"""Names that an index gives its files: none leads out of the folder, and every disk takes it."""
_AGAIN = "Download or copy it again"


@dataclass(frozen=True)
class TensorAt:
    """One tensor of a file: where its bytes begin, and what they are."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Weights:
    """The tensors of a model on disk, by name, in the order of its files."""

    tensors: Mapping[str, TensorAt]
    metadata: Mapping[str, str]
    stem: str

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of every tensor."""
        return {name: list(tensor.shape) for name, tensor in self.tensors.items()}


def open_weights(path: Path) -> Weights:
    """Open the tensors of a safetensors file, or of a folder's shards or single file.

    Raises UserError where a shard is missing, a file is cut short, or there is nothing to read.
    """
    if path.is_file():
        return _read([path], path.name.removesuffix(".safetensors"))
    indices = sorted(path.glob(f"*{INDEX}"))
    single = sorted(path.glob("*.safetensors"))
    if len(indices) > 1 or (not indices and len(single) > 1):
        raise UserError("several sets of weights in one folder", where=str(path), mend="Leave one of them there")
    if indices:
        return _sharded(indices[0])
    if not single:
        raise UserError(
            "no safetensors here", where=str(path), mend="Give a folder with *.safetensors; pickles stay shut"
        )
    return _read(single, single[0].name.removesuffix(".safetensors"))


def _sharded(index: Path) -> Weights:
    """Open the shards that an index names, complete."""
    data = read_json(index)
    places = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(places, dict) or not all(_SHARD.fullmatch(str(file)) for file in places.values()):
        raise UserError("not an index of shards: 'weight_map' is missing or broken", where=str(index))
    files = [index.with_name(name) for name in sorted(set(places.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"the shard {missing[0]} is missing", where=str(index), mend=_AGAIN)
    weights = _read(files, index.name.removesuffix(INDEX))
    wrong = [name for name, file in places.items() if getattr(weights.tensors.get(name), "file", index).name != file]
    if wrong or len(places) != len(weights.tensors):
        found = wrong or sorted(weights.tensors.keys() - places.keys())
        raise UserError(f"index and shards disagree about {found[0]!r}", where=str(index), mend=_AGAIN)
    return weights


def _read(files: Sequence[Path], stem: str) -> Weights:
    tensors: dict[str, TensorAt] = {}
    metadata: dict[str, str] = {}
    for file in files:
        extra, found = read_header(file)
        if twice := found.keys() & tensors.keys():
            raise UserError(f"{sorted(twice)[0]!r} is in two shards", where=str(file), mend=_AGAIN)
        tensors |= found
        metadata |= extra
    return Weights(tensors, metadata, stem)


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorAt]]:
    """Read metadata and tensors of one file; raise a UserError where it is not whole, or a dtype is unknown."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise UserError("not a whole safetensors file", where=str(path), mend=_AGAIN)
        text = handle.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"not a safetensors header: {error}", where=str(path), mend=_AGAIN) from error
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != end:
            what = "overlaps another" if tensor.offset < end else "leaves a gap before it"
            raise UserError(f"not a safetensors header: {tensor.name!r} {what}", where=str(path), mend=_AGAIN)
        end += tensor.size_bytes
    if end != size:
        raise UserError(f"truncated or changed: {size} bytes, the header says {end}", where=str(path), mend=_AGAIN)
    return metadata, tensors


def _tensor(path: Path, name: str, entry: Mapping[str, Any], base: int) -> TensorAt:
    dtype, (start, stop) = entry["dtype"], entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise UserError(
            f"{name!r} has the dtype {dtype}, which can't be cut", where=str(path), mend="Give F32, F16 or BF16"
        )
    if not all(isinstance(number, int) and number >= 0 for number in (start, stop, *entry["shape"])):
        raise ValueError(f"{name!r} has a size or place that is no number")
    tensor = TensorAt(path, name, dtype, tuple(entry["shape"]), base + start)
    if stop - start != tensor.size_bytes or start < 0:
        raise ValueError(f"{name!r} has {stop - start} bytes, its shape wants {tensor.size_bytes}")
    return tensor


# ------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Described:
    """A tensor that will be written: its entry in the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def rank(self) -> tuple[int, str]:
        """Its place in safetensors' order: wide dtypes first (so that every tensor is aligned), then by name."""
        return -list(ITEM_BYTES).index(self.dtype), self.name


def header_bytes(tensors: Sequence[Described], metadata: Mapping[str, str]) -> bytes:
    """Return the length and header of a file that holds the tensors in this order, as safetensors writes them."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for tensor in tensors:
        stop = start + tensor.size_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class StreamWriter:
    """One file, written from front to back, hashed on the way, and named when it is whole.

    A second thread hashes while the first reads on: bytes given to ``write`` may change only after the next call.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(f".{path.name}.partial")
        self.size_bytes, self._digest = 0, hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)
        self._hashing: Future[None] | None = None
        self._handle = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def write(self, data: memoryview) -> None:
        """Write the next bytes."""
        if self._hashing is not None:
            self._hashing.result()
        self._hashing = self._hasher.submit(self._digest.update, data)
        written = 0
        while written < len(data):
            written += os.write(self._handle, data[written:])
        self.size_bytes += written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._hasher.shutdown()
        try:
            if kind is None:
                os.fsync(self._handle)
        finally:
            os.close(self._handle)
            if kind is not None:
                self.partial.unlink()
        if kind is None:
            self.partial.replace(self.path)

    def record(self) -> dict[str, Any]:
        """Return size and sha256, as a bundle records them."""
        return {"bytes": self.size_bytes, "sha256": self._digest.hexdigest()}
