"""One axis per feed-forward: its channels, a gate and its value as one unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dit_compress.structure.axes import Axis, MaskPoint, Member

if TYPE_CHECKING:
    from dit_compress.structure.axes import FeedForward, Structure
    from dit_compress_plugins.granularity_ffn import FfnOptions


class FfnGranularity:
    """Channels of every feed-forward inside the stacks."""

    def __init__(self, options: FfnOptions) -> None:
        self.options = options
        self.multiple_of = options.multiple_of
        self.units = options.units

    def axes(self, structure: Structure) -> list[Axis]:
        """One axis per feed-forward."""
        return [ffn_axis(feed_forward) for feed_forward in structure.feed_forwards]

    def keep(self, axis: Axis) -> int | None:
        """Channels that stay."""
        if self.options.remove is not None:
            return axis.units - self.options.remove
        return None if self.options.keep is None else round(axis.units * self.options.keep)


def ffn_axis(feed_forward: FeedForward) -> Axis:
    """Rows of the up projections, columns of the down projection; the mask stands before ``down``."""
    width = feed_forward.width
    single = np.arange(width).reshape(width, 1)
    rows = np.stack([np.arange(width), np.arange(width) + width], axis=1) if feed_forward.gated == "fused" else single
    members = [Member(f"{path}.{leaf}", 0, rows) for path in feed_forward.ups for leaf in ("weight", "bias")]
    members.append(Member(f"{feed_forward.down}.weight", 1, single))
    return Axis(
        name=f"ffn:{feed_forward.path}",
        level="ffn",
        units=width,
        stack=feed_forward.stack,
        block=feed_forward.block,
        members=tuple(members),
        masks=(MaskPoint(feed_forward.down, "input", single),),
    )
