"""Clips decoded by workers ahead of need, where a data set is too large to be decoded once and kept.

FFmpeg's decoding and scaling release Python's lock, so the workers are threads: nothing is pickled, and a clip's
pixels are never copied between processes.

Shapes: B clips of F frames of Y × X pixels, uint8.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.train.streams import epoch_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dit_compress.clips import Clip


class ClipStream:
    """The pixels of clips by index, ``stream[[3, 1]]`` → ``[B,F,Y,X,3]``.

    Args:
        clips: what can be asked for.
        workers: threads that decode.
        seed: of the order in which :meth:`batches` visits the clips.
    """

    def __init__(self, clips: Sequence[Clip], workers: int, seed: int = 0) -> None:
        self.clips, self.seed = clips, seed
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")
        self._begun: dict[int, Future[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decoded clips, in the order asked for; whatever a clip raises."""
        wanted = [int(i) for i in np.asarray(index)]
        self._begin(wanted)
        rows = [self._begun[i].result() for i in wanted]
        for i in set(wanted):
            del self._begun[i]
        return np.stack(rows)

    def prefetch(self, index: Sequence[int]) -> None:
        """Begin to decode the clips that will be asked for next; what was begun and is not among them is forgotten."""
        for i in self._begun.keys() - set(index):
            self._begun.pop(i).cancel()
        self._begin(index)

    def batches(self, epoch: int, size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[list[int], np.ndarray]]:
        """One epoch, shuffled: (indices, pixels) of this rank's share of every batch of ``size · world`` clips.

        Each clip goes to one rank. What does not fill a batch of every rank is left out of the epoch.
        """
        order = epoch_order(self.seed, epoch, len(self.clips)).tolist()
        starts = range(0, len(order) - size * world + 1, size * world)
        shares = [order[start + rank * size : start + (rank + 1) * size] for start in starts]
        for number, share in enumerate(shares):
            self.prefetch([i for ahead in shares[number : number + 2] for i in ahead])
            yield share, self[share]

    def close(self) -> None:
        """Forget what nobody asked for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, index: Iterable[int]) -> None:
        for i in index:
            if i not in self._begun:
                self._begun[i] = self._pool.submit(self.clips[i].pixels)
