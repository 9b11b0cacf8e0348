"""One axis: the blocks of a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.structure.compact import block_axis
from dit_compress.structure.facts import Granularity

if TYPE_CHECKING:
    from dit_compress.structure.facts import Axis, Structure
    from dit_compress_plugins.granularity_block import BlockOptions


class BlockGranularity(Granularity):
    """Blocks of the main stack; ``y = m·block(x) + (1 - m)·x`` (Eq. 3) compacts to absence."""

    multiple_of = 1
    num_parts = None

    def __init__(self, options: BlockOptions) -> None:
        self.options = options

    def axes(self, structure: Structure) -> list[Axis]:
        """Return the main stack's blocks; others keep their depth, unless a level names them (``block.refiner``)."""
        return [block_axis(structure.main)] if structure.main.removable else []

    def keep(self, axis: Axis) -> int | None:
        """Count blocks that stay."""
        return None if self.options.remove is None else axis.units - self.options.remove
