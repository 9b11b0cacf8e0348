"""Stretching by nearest neighbours as copies: VAEs do it over three axes, or by the "exact" rule; few targets have it.

Along an axis of n values stretched by a whole number f, value i of the result is value i // f by both rules: a view
``[A,n,1,B]``, expanded to ``[A,n,f,B]`` and viewed as ``[A,n·f,B]``. No tensor has more than 4 axes besides the result,
and no number is computed. Torch takes ``i / f`` in single precision, so what it takes is asked for each axis.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.export.rewrite.nodes import become, call, shape_of

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten
PLAIN, EXACT = aten.upsample_nearest1d.default, aten._upsample_nearest_exact1d.default  # noqa: SLF001 - its name
STRETCHES: dict[Any, Any] = {
    aten.upsample_nearest3d.default: PLAIN,
    aten.upsample_nearest3d.vec: PLAIN,
    EXACT: EXACT,
    aten._upsample_nearest_exact1d.vec: EXACT,  # noqa: SLF001 - its name
    aten._upsample_nearest_exact2d.default: EXACT,  # noqa: SLF001 - its name
    aten._upsample_nearest_exact2d.vec: EXACT,  # noqa: SLF001 - its name
    aten._upsample_nearest_exact3d.default: EXACT,  # noqa: SLF001 - its name
    aten._upsample_nearest_exact3d.vec: EXACT,  # noqa: SLF001 - its name
}
"""The operators, and the one along a single axis that follows the same rule. Targets have the plain ones of 1 and 2."""
BATCH_AND_CHANNELS = 2


def stretch_by_copies(node: Node) -> bool:
    """Rewrite one of ``STRETCHES`` in place; False where a factor is no whole number, and it stays as it is."""
    before, after = shape_of(node.args[0]), shape_of(node)
    if before is None or after is None or not all(_whole(node, axis) for axis in range(len(after))):
        return False
    x: Any = node.args[0]
    sizes = list(before)
    for axis, (size, longer) in enumerate(zip(before, after, strict=True)):
        if longer == size:
            continue
        ahead, behind = prod(sizes[:axis]), prod(sizes[axis + 1 :])
        x = call(node, aten.reshape.default, x, [ahead, size, 1, behind])
        x = call(node, aten.expand.default, x, [ahead, size, longer // size, behind])
        sizes[axis] = longer
        x = call(node, aten.reshape.default, x, [ahead, longer, behind])
    become(node, aten.reshape.default, x, list(after))
    return True


def why_not(node: Node) -> str:
    """Say why a stretch that is still there is no copy; nothing of any other node."""
    if node.target not in STRETCHES:
        return ""
    before, after = list(shape_of(node.args[0]) or ()), list(shape_of(node) or ())
    return f"it stretches {before} to {after} by a factor that is no whole number"


def _whole(node: Node, axis: int) -> bool:
    """Tell whether each value along an axis is copied equally often, in order."""
    size, longer = (shape_of(each)[axis] for each in (node.args[0], node))  # type: ignore[index]
    if axis < BATCH_AND_CHANNELS or size == longer:
        return True
    return longer % size == 0 and _copies(STRETCHES[node.target], size, longer, _factor(node, axis))


def _factor(node: Node, axis: int) -> float | None:
    """Return the factor that a call states for an axis; torch takes the sizes' where it states none."""
    stated: Any = [*node.args[BATCH_AND_CHANNELS:], *node.kwargs.values()]
    if str(node.target).endswith(".vec"):  # all of them in one list, or none
        stated = stated[0] if stated else None
    return stated[axis - BATCH_AND_CHANNELS] if stated else None


@lru_cache(maxsize=256)
def _copies(rule: Any, size: int, longer: int, factor: float | None) -> bool:
    places = torch.arange(size, dtype=torch.float32)
    return torch.equal(rule(places[None, None], [longer], factor)[0, 0], places.repeat_interleave(longer // size))
