"""Encoded samples on disk: safetensors files of a few dozen MiB, each named after what decides its content.

folder/
  <key>.safetensors   consecutive samples: a tensor per name, its first axis the samples
  samples.jsonl       one record per sample, in order: caption, and what else is known
  index.json          what encoded them, and the shards in order, with size and sha256; written last

A shard's key is a digest of its encoder and of its samples. So writing goes on where it was broken off, shards are
reused where only some samples of a folder have changed, and shards of another encoder are never taken for these.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.errors import UserError
from dit_compress.files import disk_errors, read_json, sha256_data, sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

SCHEMA = 1
SHARD_BYTES = 64 * 2**20
IN_MEMORY_BYTES = 256 * 2**20
"""Up to so many bytes a column is read at once; a larger one is read row by row."""
_NAMES = {"vae": "VAE", "text": "text encoder", "weights": "text encoder"}
_AGAIN = "Copy the folder again"
INDEX, SAMPLES = "index.json", "samples.jsonl"


@dataclass(frozen=True)
class Writing:
    """What is to be encoded into a folder.

    folder: where the shards go.
    made_by: digests of what encodes them; JSON.
    samples: one JSON record per sample, for ``samples.jsonl``.
    identities: JSON per sample that changes with its content.
    encode: (first, last) → tensors by name, rows ``last - first``; called for consecutive batches.
    batch: samples per call of ``encode``; the same batches whatever is there already.
    bytes_per_sample: of all tensors together; decides how many samples a shard holds.
    """

    folder: Path
    made_by: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    identities: Sequence[Any]
    encode: Callable[[int, int], Mapping[str, np.ndarray]]
    batch: int
    bytes_per_sample: int

    def ranges(self) -> list[tuple[int, int]]:
        """First and last sample of every shard; whole batches to a shard."""
        size = max(1, SHARD_BYTES // max(1, self.bytes_per_sample) // self.batch) * self.batch
        total = len(self.samples)
        return [(first, min(first + size, total)) for first in range(0, total, size)]

    def path(self, first: int, last: int) -> Path:
        """The file of one shard."""
        key = sha256_data([dict(self.made_by), list(self.identities[first:last]), self.batch])
        return self.folder / f"{key[:32]}.safetensors"


def write_shards(writing: Writing, advance: Callable[[], Any], *, rank: int = 0, world: int = 1) -> bool:
    """Encode what is missing; every ``world``-th shard, beginning with ``rank``. Returns whether all are there now.

    Whoever writes the last missing shard writes the index. Killed at any instant it goes on where it was, and the
    files are those of an uninterrupted run, byte for byte.

    Raises:
        UserError: a value that is not finite, with its sample.
    """
    with disk_errors(writing.folder):
        writing.folder.mkdir(parents=True, exist_ok=True)
    for number, (first, last) in enumerate(writing.ranges()):
        if number % world == rank:
            path = writing.path(first, last)
            if not path.is_file() and not _take_over(path):
                _write_shard(writing, path, first, last)
            for _ in range(first, last):
                advance()
    paths = [writing.path(*each) for each in writing.ranges()]
    if not all(path.is_file() for path in paths):
        return False
    index = _index(writing, paths)
    if not (writing.folder / INDEX).is_file() or read_json(writing.folder / INDEX) != index:
        _write_samples(writing)
        write_json(writing.folder / INDEX, index)
    return True


def _take_over(path: Path) -> bool:
    """Link the shard from a folder beside this one, where that holds it: the key says that it is the same."""
    for twin in path.parent.parent.glob(f"*/{path.name}"):
        try:
            os.link(twin, path)
        except OSError:
            continue
        return True
    return False


def _write_shard(writing: Writing, path: Path, first: int, last: int) -> None:
    from safetensors.numpy import save_file

    parts = []
    for start in range(first, last, writing.batch):
        parts.append(writing.encode(start, min(start + writing.batch, last)))
        for name, rows in parts[-1].items():
            _need_finite(rows, name, writing, start)
    tensors = {name: np.ascontiguousarray(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with disk_errors(path):
        try:
            save_file(tensors, partial)
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _need_finite(rows: np.ndarray, name: str, writing: Writing, start: int) -> None:
    for place, row in enumerate(rows):
        if not np.isfinite(row).all():
            sample = writing.samples[start + place]
            raise UserError(
                f"the {name} is not finite",
                where=str(sample.get("file", sample.get("caption", start + place))),
                mend="Take the sample out of the data; if all are like it, the encoder is damaged",
            )


def _index(writing: Writing, paths: Sequence[Path]) -> dict[str, Any]:
    """What ``index.json`` says. Checksums that it says already are taken over: a shard's name is its content."""
    path = writing.folder / INDEX
    known = {entry["file"]: entry for entry in read_json(path)["shards"]} if path.is_file() else {}
    entries = []
    for file, (first, last) in zip(paths, writing.ranges(), strict=True):
        size = file.stat().st_size
        old = known.get(file.name, {})
        digest = old["sha256"] if old.get("bytes") == size else sha256_file(file)
        entries.append({"file": file.name, "count": last - first, "bytes": size, "sha256": digest})
    return {
        "schema": SCHEMA,
        "made_by": dict(writing.made_by),
        "count": len(writing.samples),
        "samples": sha256_data([dict(record) for record in writing.samples]),
        "shards": entries,
    }


def _write_samples(writing: Writing) -> None:
    lines = "".join(json.dumps(dict(record), sort_keys=True, ensure_ascii=False) + "\n" for record in writing.samples)
    with disk_errors(writing.folder):
        partial = writing.folder / f"{SAMPLES}.partial"
        partial.write_text(lines, "utf-8")
        partial.replace(writing.folder / SAMPLES)


class Shards:
    """A folder of shards, opened for reading."""

    def __init__(self, folder: Path) -> None:
        """Read the index; UserError where it is missing or a shard is not as it says."""
        if not (folder / INDEX).is_file():
            raise UserError(
                f"no encoded samples here ({INDEX} is missing)",
                where=str(folder),
                mend="Give a folder of shards whose encoding is finished",
            )
        self.folder, self.index = folder, read_json(folder / INDEX)
        if not isinstance(self.index, dict) or self.index.get("schema") != SCHEMA:
            raise UserError(f"no index of schema {SCHEMA}", where=str(folder / INDEX), mend="Encode the samples again")
        for entry in self.index["shards"]:
            path = folder / entry["file"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise UserError("the shard is missing or truncated", where=str(path), mend=_AGAIN)
        self._ends = list(accumulate(entry["count"] for entry in self.index["shards"]))

    def __len__(self) -> int:
        return self.index["count"]

    @property
    def made_by(self) -> dict[str, Any]:
        """What encoded the samples."""
        return self.index["made_by"]

    def need(self, made_by: Mapping[str, Any]) -> Shards:
        """These shards; UserError unless they were encoded by what is named."""
        for what, digest in made_by.items():
            if self.made_by.get(what) != digest:
                raise UserError(
                    f"encoded by another {_NAMES.get(what, what)} than the bundle's"
                    f" ({str(self.made_by.get(what))[:12]}…, not {str(digest)[:12]}…)",
                    where=str(self.folder),
                    mend="Encode the samples again, or take the bundle they were encoded with",
                )
        return self

    def names(self) -> list[str]:
        """Names of the tensors."""
        return sorted(_opened(str(self.folder / self.index["shards"][0]["file"])).keys())

    def verify(self) -> None:
        """UserError unless every shard has the checksum written."""
        for entry in self.index["shards"]:
            if sha256_file(self.folder / entry["file"]) != entry["sha256"]:
                raise UserError(
                    "the checksum differs from the one written",
                    where=str(self.folder / entry["file"]),
                    mend=_AGAIN,
                )

    def samples(self) -> list[dict[str, Any]]:
        """One record per sample."""
        lines = (self.folder / SAMPLES).read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        if sha256_data(records) != self.index["samples"]:
            raise UserError("not the records the index was written with", where=str(self.folder / SAMPLES), mend=_AGAIN)
        return records

    def column(self, name: str, places: Sequence[int] | None = None) -> Column:
        """The tensors of one name, of all samples or of those at ``places``."""
        return Column(self, name, np.arange(len(self)) if places is None else np.asarray(places, dtype=np.int64))

    def row(self, name: str, place: int) -> Tensor:
        """One sample's tensor ``[1, …]``."""
        shard = int(np.searchsorted(self._ends, place, side="right"))
        entry = self.index["shards"][shard]
        inside = place - (self._ends[shard] - entry["count"])
        return _opened(str(self.folder / entry["file"])).get_slice(name)[inside : inside + 1]

    def all(self, name: str) -> Iterator[Tensor]:
        """The tensors of one name, shard by shard."""
        for entry in self.index["shards"]:
            yield _opened(str(self.folder / entry["file"])).get_tensor(name)

    def where(self, place: int) -> str:
        """The file that holds a sample."""
        return str(self.folder / self.index["shards"][int(np.searchsorted(self._ends, place, side="right"))]["file"])


class Column:
    """Rows of one name by index, ``column[[3, 1]]``: a small one from memory, a large one from disk."""

    def __init__(self, shards: Shards, name: str, places: np.ndarray) -> None:
        self.shards, self.name, self.places = shards, name, places
        row = shards.row(name, 0)
        small = row.numel() * row.element_size() * len(shards) <= IN_MEMORY_BYTES
        self._rows = torch.cat(list(shards.all(name)))[torch.from_numpy(places)] if small else None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> Tensor:
        """Rows ``[B, …]``; UserError where one is not finite."""
        wanted = torch.as_tensor(np.asarray(index))
        if self._rows is not None:
            rows = self._rows[wanted]
        else:
            rows = torch.cat([self.shards.row(self.name, int(self.places[i])) for i in wanted])
        if not torch.isfinite(rows).all():
            bad = next(i for i, row in zip(wanted, rows, strict=True) if not torch.isfinite(row).all())
            raise UserError(
                f"the {self.name} of sample {int(self.places[bad])} is not finite",
                where=self.shards.where(int(self.places[bad])),
                mend="Encode it again, or take the sample out",
            )
        return rows


@lru_cache(maxsize=32)
def _opened(path: str) -> Any:
    """A shard mapped into memory."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def count_bytes(shapes: Sequence[Sequence[int]], itemsize: int = 4) -> int:
    """Bytes of one sample's tensors."""
    return sum(itemsize * int(np.prod(list(shape))) for shape in shapes)
