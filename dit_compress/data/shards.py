"""Encoded samples on disk: safetensors files of a few dozen MiB, each named after what decides its content.

folder/
  <key>.safetensors   consecutive samples: a tensor per name, its first axis the samples
  samples.jsonl       one record per sample, in order: caption, and what else is known
  index.json          what encoded them, and the shards in order, with size and sha256; written last

A shard's key is a digest of its encoder and of its samples. So writing goes on where it was broken off, shards are
reused where only some samples of a folder have changed, and shards of another encoder are never taken for these.
``dit_compress.data.shard_writer`` writes them.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_compress.core.errors import UserError
from dit_compress.core.files import check_file, read_json, sha256_data
from dit_compress.data.jsonl import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

SCHEMA = 1
IN_MEMORY_BYTES = 256 * 2**20
"""Up to so many bytes a column is read at once; a larger one is read row by row."""
_NAMES = {"vae": "VAE", "text": "text encoder", "weights": "text encoder"}
_AGAIN = "Copy the folder again"
INDEX, SAMPLES = "index.json", "samples.jsonl"


class Shards:
    """A folder of shards, opened for reading."""

    def __init__(self, folder: Path) -> None:
        """Read the index; UserError where it is missing or a shard does not agree with it."""
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
        """The encoder of the samples."""
        return self.index["made_by"]

    def need(self, made_by: Mapping[str, Any]) -> Shards:
        """Return these shards; raise a UserError unless they were encoded by what is named."""
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
        """Return the names of the tensors."""
        return sorted(_opened(str(self.folder / self.index["shards"][0]["file"])).keys())

    def verify(self) -> None:
        """Raise a UserError unless every shard has the checksum written."""
        for entry in self.index["shards"]:
            check_file(self.folder / entry["file"], entry, _AGAIN)

    def samples(self) -> list[dict[str, Any]]:
        """Return one record per sample."""
        path = self.folder / SAMPLES
        try:
            records = [read_object(line, "") for line in path.read_bytes().decode("utf-8").split("\n") if line]
        except (OSError, UnicodeDecodeError, UserError):
            records = None
        if sha256_data(records) != self.index["samples"]:
            raise UserError("not the records the index was written with", where=str(path), mend=_AGAIN)
        return records or []

    def column(self, name: str, places: Sequence[int] | None = None) -> Column:
        """Return the tensors of one name, of all samples or of those at ``places``."""
        return Column(self, name, np.arange(len(self)) if places is None else np.asarray(places, dtype=np.int64))

    def row(self, name: str, place: int) -> Tensor:
        """Return one sample's tensor ``[1, …]``."""
        shard = int(np.searchsorted(self._ends, place, side="right"))
        entry = self.index["shards"][shard]
        inside = place - (self._ends[shard] - entry["count"])
        return _opened(str(self.folder / entry["file"])).get_slice(name)[inside : inside + 1]

    def all(self, name: str) -> Iterator[Tensor]:
        """Yield the tensors of one name, shard by shard."""
        for entry in self.index["shards"]:
            yield _opened(str(self.folder / entry["file"])).get_tensor(name)

    def where(self, place: int) -> str:
        """Return the file that holds a sample."""
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
        """Return rows ``[B, …]``; raise a UserError where one is not finite."""
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
    """Map a shard into memory."""
    from safetensors import safe_open

    return safe_open(path, framework="pt")
