"""One axis per feed-forward; unit u owns channels 2u and 2u + 1.

The file has the name of the hook on purpose: that must not hide the hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.structure.axes import Axis, MaskPoint, Member

if TYPE_CHECKING:
    from dit_compress.structure.axes import FeedForward, Structure
    from dit_stranger.granularity_ffn_pair import PairOptions


class PairGranularity:
    """Pairs of channels."""

    multiple_of = 1
    units = None

    def __init__(self, options: PairOptions) -> None:
        self.options = options

    def axes(self, structure: Structure) -> list[Axis]:
        """One axis per plain feed-forward."""
        return [pair_axis(found) for found in structure.feed_forwards if found.gated == "no"]

    def keep(self, axis: Axis) -> int:
        """Pairs that stay."""
        return round(axis.units * self.options.keep)


def pair_axis(feed_forward: FeedForward) -> Axis:
    """Rows of the up projection, columns of the down projection, two by two."""
    pairs = feed_forward.width // 2
    members = [Member.equal(f"{path}.{leaf}", 0, pairs, 2) for path in feed_forward.ups for leaf in ("weight", "bias")]
    down = Member.equal(f"{feed_forward.down}.weight", 1, pairs, 2)
    return Axis(
        name=f"ffn_pair:{feed_forward.path}",
        level="ffn_pair",
        units=pairs,
        stack=feed_forward.stack,
        block=feed_forward.block,
        members=(*members, down),
        masks=(MaskPoint(feed_forward.down, "input", down.indices),),
    )
