"""One axis per feed-forward: its channels, a gate and its value as one unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.structure.facts import Granularity

if TYPE_CHECKING:
    from dit_compress.structure.facts import Axis, FeedForward, Structure
    from dit_compress_plugins.granularity_ffn import FfnOptions


class FfnGranularity(Granularity):
    """Channels of every feed-forward inside the stacks."""

    def __init__(self, options: FfnOptions) -> None:
        self.options = options
        self.multiple_of = options.multiple_of
        self.num_parts = options.units

    def axes(self, structure: Structure) -> list[Axis]:
        """Return one axis per feed-forward of more than one channel."""
        return [ffn_axis(feed_forward) for feed_forward in structure.feed_forwards if feed_forward.count > 1]

    def keep(self, axis: Axis) -> int | None:
        """Count channels that stay."""
        if self.options.remove is not None:
            return axis.units - self.options.remove
        return None if self.options.keep is None else round(axis.units * self.options.keep)


def ffn_axis(feed_forward: FeedForward) -> Axis:
    """Return the channels of one feed-forward; the mask stands before the output projection."""
    return feed_forward.axis("ffn")
