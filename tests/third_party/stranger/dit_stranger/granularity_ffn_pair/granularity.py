"""One axis per feed-forward; unit u owns channels 2u and 2u + 1.

The file has the name of the hook on purpose: that must not hide the hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dit_compress.structure.facts import Axis, Follow, Granularity, MaskPoint, Member

if TYPE_CHECKING:
    from dit_compress.structure.facts import FeedForward, Structure
    from dit_stranger.granularity_ffn_pair import PairOptions


class PairGranularity(Granularity):
    """Pairs of channels."""

    multiple_of = 1
    num_parts = None

    def __init__(self, options: PairOptions) -> None:
        self.options = options

    def axes(self, structure: Structure) -> list[Axis]:
        """One axis per feed-forward."""
        return [pair_axis(found) for found in structure.feed_forwards]

    def keep(self, axis: Axis) -> int:
        """Pairs that stay."""
        return round(axis.units * self.options.keep)


def pair_axis(feed_forward: FeedForward) -> Axis:
    """The channels of a feed-forward, two by two."""
    pairs = feed_forward.width // 2

    def joined(indices: np.ndarray) -> np.ndarray:
        return indices[: 2 * pairs].reshape(pairs, -1)

    return Axis(
        name=f"ffn_pair:{feed_forward.path}",
        level="ffn_pair",
        units=pairs,
        stack=feed_forward.stack,
        block=feed_forward.block,
        members=tuple(Member(m.tensor, m.dim, joined(m.indices)) for m in feed_forward.members),
        masks=tuple(MaskPoint(p.module, p.side, joined(p.indices), p.dim) for p in feed_forward.masks),
        follows=tuple(Follow(f.module, f.attribute, 2 * f.step) for f in feed_forward.follows if f.step),
    )
