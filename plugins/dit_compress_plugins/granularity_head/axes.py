"""One axis per attention: its heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.structure.facts import Granularity

if TYPE_CHECKING:
    from dit_compress.structure.facts import Attention, Axis, Structure
    from dit_compress_plugins.granularity_head import HeadOptions


class HeadGranularity(Granularity):
    """Heads of every attention inside the stacks."""

    multiple_of = 1
    num_parts = None

    def __init__(self, options: HeadOptions) -> None:
        self.options = options

    def axes(self, structure: Structure) -> list[Axis]:
        """Return one axis per attention of more than one head."""
        return [head_axis(attention) for attention in structure.attentions if attention.count > 1]

    def keep(self, axis: Axis) -> int | None:
        """Count heads that stay."""
        return None if self.options.remove is None else axis.units - self.options.remove


def head_axis(attention: Attention) -> Axis:
    """Return the heads of one attention.

    A head contributes nothing once the output projection reads zeros from it, so the mask stands there. Where
    a norm runs across heads, query, key and value are masked before it, or its statistics would still see the
    head (Eq. 4).
    """
    return attention.axis("head")
