"""Encode samples once into shards (``dit_compress.data.shards``), on one process or many; goes on after a kill."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import disk_errors, need_space, read_json, sha256_data, sha256_file, whole_file
from dit_compress.data.shards import INDEX, SAMPLES, SCHEMA, Shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

SHARD_BYTES = 64 * 2**20
SMALLER = "take fewer or smaller clips"
"""The mend where the disk is too small."""


@dataclass(frozen=True)
class Writing:
    """The samples to encode into a folder, and how.

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
    encode: Callable[[int, int], Mapping[str, Tensor]]
    batch: int
    bytes_per_sample: int

    def ranges(self) -> list[tuple[int, int]]:
        """Return first and last sample of every shard; whole batches to a shard."""
        size = max(1, SHARD_BYTES // max(1, self.bytes_per_sample) // self.batch) * self.batch
        total = len(self.samples)
        return [(first, min(first + size, total)) for first in range(0, total, size)]

    def path(self, first: int, last: int) -> Path:
        """Return the file of one shard."""
        key = sha256_data([dict(self.made_by), list(self.identities[first:last]), self.batch])
        return self.folder / f"{key[:32]}.safetensors"


def write_shards(writing: Writing, advance: Callable[[], Any], *, rank: int = 0, world: int = 1) -> bool:
    """Encode what is missing; every ``world``-th shard, beginning with ``rank``. Returns whether all are there now.

    Whoever writes the last missing shard writes the index. Killed at any instant it goes on where it was, and the
    files are those of an uninterrupted run, byte for byte.

    Raises:
        UserError: a value that is not finite, with its sample; the disk does not hold what is missing.
    """
    with disk_errors(writing.folder):
        writing.folder.mkdir(parents=True, exist_ok=True)
    _need_space_for(writing)
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
        lines = [json.dumps(dict(record), sort_keys=True, ensure_ascii=False) + "\n" for record in writing.samples]
        for name, text in ((SAMPLES, "".join(lines)), (INDEX, json.dumps(index, indent=1) + "\n")):
            with whole_file(writing.folder / name, shared=True) as partial:
                partial.write_text(text, "utf-8")
    return True


def write_together(
    writing: Writing, advance: Callable[[], Any], rank: int = 0, world: int = 1, wait_s: float = 1.0
) -> Shards:
    """Encode what is missing, each process of a training its share, and wait for the others'.

    A process that dies is the launcher's to notice: it ends the ones that wait.
    """
    while not write_shards(writing, advance, rank=rank, world=world):
        advance = _nothing
        time.sleep(wait_s)
    return Shards(writing.folder).need(writing.made_by)


def _nothing() -> None:
    """Show no progress."""


def _take_over(path: Path) -> bool:
    """Link the shard from a folder beside this one, where that holds it: an equal key means equal content."""
    for twin in _twins(path):
        try:
            os.link(twin, path)
        except OSError:
            continue
        return True
    return False


def _twins(path: Path) -> Iterator[Path]:
    return path.parent.parent.glob(f"*/{path.name}")


def _need_space_for(writing: Writing) -> None:
    """Refuse what the disk does not hold, before the first sample is encoded: all shards, whoever writes them."""
    ranges = [each for each in writing.ranges() if not writing.path(*each).is_file()]
    missing = sum(last - first for first, last in ranges if next(_twins(writing.path(first, last)), None) is None)
    need_space(writing.folder, missing * writing.bytes_per_sample, f"{missing} encoded samples", SMALLER)


def _write_shard(writing: Writing, path: Path, first: int, last: int) -> None:
    from safetensors.torch import save_file

    parts = []
    for start in range(first, last, writing.batch):
        parts.append(writing.encode(start, min(start + writing.batch, last)))
        for name, rows in parts[-1].items():
            _need_finite(rows, name, writing, start)
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    with whole_file(path, shared=True) as partial:
        save_file(tensors, partial)


def _need_finite(rows: Tensor, name: str, writing: Writing, start: int) -> None:
    for place, row in enumerate(rows):
        if not torch.isfinite(row).all():
            sample = writing.samples[start + place]
            raise UserError(
                f"the {name} is not finite",
                where=str(sample.get("file", sample.get("caption", start + place))),
                mend="Take the sample out of the data; if all are like it, the encoder is damaged",
            )


def _index(writing: Writing, paths: Sequence[Path]) -> dict[str, Any]:
    """Make the data of ``index.json``; checksums that it has already are taken over: a shard's name is its content."""
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


def count_bytes(shapes: Sequence[Sequence[int]], itemsize: int = 4) -> int:
    """Count the bytes of one sample's tensors."""
    return sum(itemsize * prod(shape) for shape in shapes)
