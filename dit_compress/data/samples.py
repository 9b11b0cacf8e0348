"""Training samples by index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dit_compress.data.prefetch import ClipStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dit_compress.data.buckets import Buckets, Rows
    from dit_compress.data.clips import Clip


class Samples:
    """Training samples by index: clean tensors, captions, and the captions' tokens.

    buckets: the index of the samples of each size; where it is None, all are of one.
    """

    def __init__(
        self,
        x0: Rows,
        captions: Sequence[str],
        tokens: Mapping[str, Rows],
        *,
        pixels: bool,
        buckets: Buckets | None = None,
    ) -> None:
        self._x0, self._captions, self._tokens, self._pixels = x0, list(captions), dict(tokens), pixels
        self._buckets: Buckets = buckets or {(0, 0, 0): range(len(self._captions))}

    def __len__(self) -> int:
        return len(self._captions)

    def beside(self, name: str, rows: Rows) -> Samples:
        """Return the same with one more condition among the tokens."""
        tokens = {**self._tokens, name: rows}
        return Samples(self._x0, self._captions, tokens, pixels=self._pixels, buckets=self._buckets)

    def buckets(self, *, images: bool | None = None) -> list[Sequence[int]]:
        """Return the index of the samples of each size, all; or of the images (the others), where there are some.

        images: True for buckets of single frames, False for the others, None for all.
        """
        kind = [index for shape, index in self._buckets.items() if (shape[0] == 1) == images]
        return kind or list(self._buckets.values())

    def batches(self, size: int, count: int | None = None, *, images: bool | None = None) -> Iterator[Sequence[int]]:
        """Yield the index of the first ``count`` samples (all if None), in batches of samples of one size.

        images: as in :meth:`buckets`.
        """
        chosen = self.buckets(images=images)
        last = sorted(place for bucket in chosen for place in bucket)[:count][-1]
        for bucket in chosen:
            index = [place for place in bucket if place <= last]
            for first in range(0, len(index), size):
                yield index[first : first + size]

    @property
    def streamed(self) -> bool:
        """True where clips are decoded as they are read."""
        return isinstance(self._x0, ClipStream)

    def prefetch(self, index: Sequence[int]) -> None:
        """Begin to decode clips that are read next, where they are streamed."""
        if isinstance(self._x0, ClipStream):
            self._x0.prefetch(index)

    def x0(self, index: Sequence[int]) -> Tensor:
        """Return latents ``[B,C,T,H,W]``, or video ``[B,3,F,Y,X]`` in [-1, 1]."""
        taken = _rows(self._x0, index)
        return to_video(taken) if self._pixels else taken

    def captions(self, index: Sequence[int]) -> list[str]:
        """Return the captions."""
        return [self._captions[i] for i in index]

    def tokens(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Return the text encoder's tokens (or cached embeddings, as float32) and what the data gives, leading B."""
        taken = {name: _rows(value, index) for name, value in self._tokens.items()}
        return {name: rows.float() if rows.is_floating_point() else rows for name, rows in taken.items()}


def _rows(source: Rows, index: Sequence[int]) -> Tensor:
    taken = source[np.asarray(index)]
    return torch.from_numpy(taken) if isinstance(taken, np.ndarray) else taken


def to_video(pixels_BFYX3: Tensor) -> Tensor:
    """Turn uint8 ``[B,F,Y,X,3]`` into float ``[B,3,F,Y,X]`` in [-1, 1]."""
    return rearrange(pixels_BFYX3, "B F Y X c -> B c F Y X").float() / 127.5 - 1


def first_frames(clips: Sequence[Clip]) -> Tensor:
    """Decode the first frames of clips of one size, ``[B,3,Y,X]`` in [-1, 1]."""
    return to_video(torch.from_numpy(np.stack([clip.pixels()[:1] for clip in clips])))[:, :, 0]


def to_pixels(video_BCFYX: Tensor) -> np.ndarray:
    """Turn float ``[B,3,F,Y,X]`` in [-1, 1] into uint8 ``[B,F,Y,X,3]``."""
    scaled = ((video_BCFYX.clamp(-1, 1) + 1) * 127.5).round()
    return rearrange(scaled, "B c F Y X -> B F Y X c").to(torch.uint8).cpu().numpy()
