"""The kind ``counter``: its contract.

Shapes: B batch; video ``[B,3,F,Y,X]`` in [-1, 1], as a decoder gives it: values beyond happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor


class Counted(Protocol):
    """Objects of one kind in one video."""

    @property
    def span(self) -> tuple[int, int]:
        """Where their word begins and ends in the caption: the noun, whose attention shows where they are."""

    @property
    def wanted(self) -> int:
        """How many the caption says."""

    @property
    def masks_NFYX(self) -> Sequence[np.ndarray]:
        """The pixels of each that was found, ``[F,Y,X]`` bool."""


class Counter(Protocol):
    """Counts what captions number."""

    def __call__(self, video_BCFYX: Tensor, captions: Sequence[str]) -> Sequence[Sequence[Counted]]:
        """Return of each video one entry for each kind of object that its caption numbers; none where it numbers none.

        Each depends on its own video and caption alone.
        """


class CounterPart(Protocol):
    """Makes a counter."""

    def create(self) -> Counter:
        """Make it; once for each sampler."""
