"""Levels by name, as recipes and commands name them: ``block``, ``ffn``, ``head.double_blocks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import closest, installed
from dit_compress.recipe import make_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.structure.facts import Axis, Granularity, Structure


def _no_level(name: str) -> str:
    return f"there is no level {name!r}"


def named_levels(names: Sequence[str], seen: Callable[[str], str] = _no_level) -> dict[str, Granularity]:
    """Make the granularity of each level; raise a UserError (``seen`` says of what) where one is not installed."""
    known = [entry.plugin.name for entry in installed().entries("granularity")]
    for name in names:
        if kind_of(name) not in known:
            meant = closest(name, known)
            raise UserError(
                f"{seen(name)}; there are {', '.join(sorted(known))}",
                mend=f"Did you mean {meant!r}?" if meant else "Name some of these",
            )
    return {name: make_part("granularity", kind_of(name), installed()).build() for name in names}


def kind_of(level: str) -> str:
    """Return the granularity that a level names: ``block.double_blocks`` → ``block``."""
    return level.partition(".")[0]


def structure_for(levels: Iterable[Granularity], denoiser: Denoiser) -> Structure:
    """Return what levels read of a denoiser: with the width of its stream where one of them asks for it."""
    wide = any(level.width for level in levels)
    return denoiser.with_width() if wide else denoiser.structure()


def found_axes(
    levels: Mapping[str, Granularity], denoiser: Denoiser, *, spare: bool = False
) -> tuple[dict[str, list[Axis]], tuple[str, ...]]:
    """Every level's axes, each axis in one of them; UserError where a level finds nothing.

    spare: a level all of whose parts are refused is left alone and described instead, where another finds some inside
    blocks.

    A level may name the one stack that it is for (``head.double_blocks``); its axes are not those of ``head`` then.
    """
    structure = structure_for(levels.values(), denoiser)
    by_level: dict[str, list[Axis]] = {}
    for name in sorted(levels, key=lambda name: "." not in name):
        place = name.partition(".")[2]
        taken = {axis.name for axes in by_level.values() for axis in axes}
        found = levels[name].axes(structure.at(place) if place else structure)
        by_level[name] = [axis for axis in found if axis.name not in taken]
    by_level = {name: by_level[name] for name in levels}
    inside = any(axis.block is not None for axes in by_level.values() for axis in axes)
    left_alone = []
    for name, axes in by_level.items():
        if not axes and spare and inside and structure.reasons():
            left_alone.append(f"level {name!r} is left alone{structure.reasons()}")
        elif not axes:
            raise UserError(
                f"level {name!r} finds nothing to remove in this model{structure.reasons()}",
                mend="Leave it out of 'levels'",
            )
    return by_level, tuple(left_alone)
