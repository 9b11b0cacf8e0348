"""One axis per attention: its heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dit_compress.structure.axes import Axis, Follow, Gather, MaskPoint, Member

if TYPE_CHECKING:
    from dit_compress.structure.axes import Attention, Structure
    from dit_compress_plugins.granularity_head import HeadOptions


class HeadGranularity:
    """Heads of every attention inside the stacks."""

    multiple_of = 1
    units = None

    def __init__(self, options: HeadOptions) -> None:
        self.options = options

    def axes(self, structure: Structure) -> list[Axis]:
        """One axis per attention."""
        return [head_axis(attention) for attention in structure.attentions]

    def keep(self, axis: Axis) -> int | None:
        """Heads that stay."""
        return None if self.options.remove is None else axis.units - self.options.remove


def head_axis(attention: Attention) -> Axis:
    """Rows of the projections, columns of the output, and what follows.

    A head contributes nothing once its value is zero, so the mask stands on V. Where a norm runs
    across heads, query and key must be masked before it as well, or its statistics would still see
    the head (Eq. 4).
    """
    heads, width = attention.heads, attention.width
    units = np.arange(heads * width).reshape(heads, width)
    projections = (*attention.inputs, *attention.values)
    members = [Member(f"{path}.weight", 0, units) for path in projections]
    members += [Member(f"{path}.bias", 0, units) for path in projections]
    members += [Member(f"{norm.path}.weight", 0, units) for norm in attention.across]
    members += [Member(f"{attention.output}.weight", 1, units)]
    masked = projections if attention.across else attention.values
    return Axis(
        name=f"head:{attention.path}",
        level="head",
        units=heads,
        stack=attention.stack,
        block=attention.block,
        members=tuple(members),
        masks=tuple(MaskPoint(path, "output", units) for path in masked),
        follows=tuple(Follow(attention.path, name) for name, _ in attention.attributes),
        gathers=tuple(Gather(attention.path, name, units) for name in attention.gathers),
        across=attention.across,
    )
