"""Clips decoded by workers ahead of need, where a data set is too large to be decoded once and kept.

FFmpeg's decoding and scaling release Python's lock, so the workers are threads: nothing is pickled, and a clip's
pixels are never copied between processes. Which clips come when, and to which process, is the loop's business
(``train.loop.draw_batch``).

Shapes: B clips of F frames of Y × X pixels, uint8.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.data.buckets import several_sizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dit_compress.data.clips import Clip


class ClipStream:
    """The pixels of clips by index, ``stream[[3, 1]]`` → ``[B,F,Y,X,3]``.

    Args:
        clips: what can be asked for.
        workers: threads that decode.
    """

    def __init__(self, clips: Sequence[Clip], workers: int) -> None:
        self.clips = clips
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
        self._begun: dict[int, Future[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode clips of one size, in the order asked for; raise whatever a clip raises."""
        wanted = [int(i) for i in np.asarray(index)]
        self._begin(wanted)
        rows = [self._begun[i].result() for i in wanted]
        for i in set(wanted):
            del self._begun[i]
        if len({row.shape for row in rows}) > 1:
            raise several_sizes()
        return np.stack(rows)

    def prefetch(self, index: Sequence[int]) -> None:
        """Begin to decode the clips that are read next; cancel those that were begun and are not among them."""
        for i in self._begun.keys() - set(index):
            self._begun.pop(i).cancel()
        self._begin(index)

    def close(self) -> None:
        """Cancel the clips that were not read."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, index: Iterable[int]) -> None:
        for i in index:
            if i not in self._begun:
                self._begun[i] = self._pool.submit(self.clips[i].pixels)
