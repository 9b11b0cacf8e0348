"""One axis for the whole network: the channels of its residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.structure.facts import Granularity

if TYPE_CHECKING:
    from dit_compress.structure.facts import Axis, Structure
    from dit_compress_plugins.granularity_width import WidthOptions


class WidthGranularity(Granularity):
    """Channels of the main stream, with all that reads or writes them in any block and outside."""

    width = True

    def __init__(self, options: WidthOptions) -> None:
        self.options = options
        self.multiple_of = options.multiple_of
        self.num_parts = options.units

    def axes(self, structure: Structure) -> list[Axis]:
        """Return the axis of the stream's channels, where they can be cut."""
        return [width.axis("width") for width in structure.widths]

    def keep(self, axis: Axis) -> int | None:
        """Count channels that stay."""
        if self.options.remove is not None:
            return axis.units - self.options.remove
        if self.options.keep is None:
            return None
        step = min(self.multiple_of, axis.units)
        return min(axis.units, max(step, round(axis.units * self.options.keep / step) * step))
