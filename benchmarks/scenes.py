"""Scenes of the world of moving shapes with captions that no training clip has: as many as a measurement needs."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress_plugins.data_shapes.world import draw_scene

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

PATIENCE = 50
"""Scenes drawn for each caption that is wanted, before there are no more."""


def held_out(
    data: Any, number: int, where: str, without: Collection[str] = (), least: int | None = None
) -> dict[str, Mapping[str, Any]]:
    """Draw scenes of a world; the truth of each caption.

    data: the options of ``data: {use: shapes}``. without: captions that are left out. least: so many will do.

    Raises:
        UserError: the world has fewer captions.
    """
    own = {name: getattr(data, name) for name in ("size", "max_objects", "test_fraction", "grid", "alike")}
    drawn = (draw_scene(data.seed + 1, "test", index, **own) for index in count())
    seen: dict[str, Mapping[str, Any]] = {}
    for scene in islice(drawn, PATIENCE * number):
        if scene.caption() not in without:
            seen.setdefault(scene.caption(), scene.truth(data.size))
        if len(seen) == number:
            return seen
    if least is not None and len(seen) >= least:
        return seen
    raise UserError(f"this world has {len(seen)} held-out captions, not {number}", where=where)
