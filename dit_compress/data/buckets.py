"""Clips of several sizes: grouped into buckets, so that whatever is computed on at once is of one size.

A bucket is all clips of one ``Clip.shape``: frames, height, width. Which bucket a step of a training draws from is the
loop's business (``train.loop.draw_batch``), with :func:`bucket_at`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dit_compress.data.clips import Clip

    Shape = tuple[int, int, int]
    Buckets = Mapping[Shape, Sequence[int]]


class Rows(Protocol):
    """Samples' tensors by index: an array, a tensor, a stream of clips, a column of shards."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return rows ``[B, …]``."""


def buckets_of(clips: Sequence[Clip]) -> dict[Shape, list[int]]:
    """Return the places of clips by their frames, height and width, the smallest first."""
    found: dict[Shape, list[int]] = {}
    for place, clip in enumerate(clips):
        found.setdefault(clip.shape, []).append(place)
    return dict(sorted(found.items()))


def folder_of(folder: Path, shape: Shape, count: int) -> Path:
    """Return where what is encoded of a bucket lies: a folder below, where there are ``count`` buckets and not one."""
    return folder / "x".join(map(str, shape)) if count > 1 else folder


def joined(clips: Sequence[Clip], rows: Callable[[Sequence[Clip]], Rows]) -> Rows:
    """Return rows by index, made by ``rows`` for the clips of each bucket apart."""
    buckets = buckets_of(clips)
    if len(buckets) == 1:
        return rows(clips)
    return Joined([(places, rows([clips[place] for place in places])) for places in buckets.values()])


class Joined:
    """Rows of several sources under one index. parts: of each source, the index that every row has."""

    def __init__(self, parts: Sequence[tuple[Sequence[int], Rows]]) -> None:
        self._rows = [rows for _, rows in parts]
        self._of = {index: (part, row) for part, (given, _) in enumerate(parts) for row, index in enumerate(given)}

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> Any:
        """Return rows ``[B, …]`` of one source; raise a UserError where they are of several."""
        found = [self._of[int(place)] for place in np.asarray(index)]
        if len(parts := {part for part, _ in found}) > 1:
            raise several_sizes()
        return self._rows[parts.pop()][np.asarray([row for _, row in found])]


def bucket_at(step: int, counts: Sequence[int], size: int, seed: int) -> tuple[int, int]:
    """Return which bucket a step draws from, and how many of the steps before it did.

    Steps come in rounds. In each, every bucket has as many as it has whole batches (one at least), in an order of the
    round's own: so a sample is seen equally often in whatever bucket it is, and a bucket's batches go on through its
    epochs as if it were alone. With one bucket the turn is the step.

    Args:
        counts: samples of each bucket. size: of a batch.
    """
    if len(counts) == 1:
        return 0, step
    each = tuple(max(1, round(count / size)) for count in counts)
    number, place = divmod(step, sum(each))
    order = _round(seed, number, each)
    bucket = int(order[place])
    return bucket, number * each[bucket] + int((order[:place] == bucket).sum())


@lru_cache(maxsize=8)
def _round(seed: int, number: int, each: tuple[int, ...]) -> np.ndarray:
    """Return the buckets of a round's steps."""
    return generator(seed, "buckets", number).permutation(np.repeat(np.arange(len(each)), each))


def several_sizes() -> UserError:
    """Return what to say where clips of several sizes are asked for at once."""
    return UserError(
        "clips of several sizes are asked for at once",
        mend="Give the data one 'size' in place of 'sizes'; a plugin of yours takes 'samples.batches(…)'",
    )


class Again:
    """Rows that begin again after the last: at index i stands row ``i % count``."""

    def __init__(self, rows: Rows, count: int) -> None:
        self._rows, self._count = rows, count

    def __getitem__(self, index: Any, /) -> Any:
        """Return rows ``[B, …]``."""
        return self._rows[np.asarray(index) % self._count]
