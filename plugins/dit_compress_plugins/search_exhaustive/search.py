"""Measure the loss of every choice and keep the best."""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.search.parts import complete, parts_of
from dit_compress.search.problem import Search, SearchProblem, Selection, outside_removed_blocks
from dit_compress.search.trial import trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dit_compress.search.parts import Parts
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis, Kept
    from dit_compress_plugins.search_exhaustive import ExhaustiveOptions


class ExhaustiveSearch(Search):
    """Search ``{use: exhaustive, objective: …}``."""

    def __init__(self, options: ExhaustiveOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Context) -> Selection:  # type: ignore[override]  # data=True
        """Return the choice of least loss, the first of equals."""
        parts = {axis.name: parts_of(problem, axis) for axis in problem.axes}
        count = num_choices(problem, parts)
        if count > self.options.most:
            raise UserError(
                f"there are {count:,} choices, 'most' is {self.options.most:,}",
                mend="Remove fewer units, cut levels into fewer 'units', or take another search",
            )
        with trial(problem, context, self.options.objective, self.options) as measured:
            tried = [(measured.loss(kept), kept) for kept in choices(problem, parts)]
        best = min(tried, key=lambda pair: pair[0])
        losses = sorted(loss for loss, _ in tried)
        return Selection(
            best[1], {"choices": count, "best": losses[0], "median": losses[count // 2], "worst": losses[-1]}
        )


def choices(problem: SearchProblem, parts: Mapping[str, Parts]) -> Iterator[Kept]:
    """Yield every plan that differs in what it computes: inside a removed block there is nothing to choose."""
    blocks = [axis for axis in problem.axes if axis.blocks]
    for chosen in product(*(depths(problem, axis) for axis in blocks)):
        kept = {axis.name: units for axis, units in zip(blocks, chosen, strict=True)}
        alive = [axis for axis in outside_removed_blocks(problem.axes, kept) if not axis.blocks]
        named = {axis.name for axis in (*blocks, *alive)}
        idle = {axis.name: tuple(range(problem.keep[axis.name])) for axis in problem.axes if axis.name not in named}
        for inner in product(*(ways(problem, axis, parts[axis.name]) for axis in alive)):
            yield {**kept, **idle, **{axis.name: units for axis, units in zip(alive, inner, strict=True)}}


def depths(problem: SearchProblem, axis: Axis) -> list[tuple[int, ...]]:
    """Return every set of blocks that leaves a stack its count."""
    if axis.name in problem.fixed:
        return [problem.fixed[axis.name]]
    return list(combinations(range(axis.units), problem.keep[axis.name]))


def ways(problem: SearchProblem, axis: Axis, parts: Parts) -> list[tuple[int, ...]]:
    """List every set of parts of one axis that leaves it its count; magnitude fills what parts don't add up to."""
    keep = problem.keep[axis.name]
    chosen = combinations(parts, keep // len(parts[0]))
    return [complete(problem.denoiser.module, axis, some, keep) for some in chosen]


def num_choices(problem: SearchProblem, parts: Mapping[str, Parts]) -> int:
    """Count the plans that :func:`choices` gives, without listing the widths."""
    blocks = [axis for axis in problem.axes if axis.blocks]
    ways_of = {
        axis.name: math.comb(len(parts[axis.name]), problem.keep[axis.name] // len(parts[axis.name][0]))
        for axis in problem.axes
    }
    inside = {
        (axis.name, index): math.prod(
            ways_of[item.name]
            for item in problem.axes
            if not item.blocks and axis.blocks and (item.stack, item.block) == (axis.blocks.path, index)
        )
        for axis in blocks
        for index in range(axis.units)
    }
    paths = {axis.blocks.path for axis in blocks if axis.blocks}
    count = math.prod(ways_of[axis.name] for axis in problem.axes if not axis.blocks and axis.stack not in paths)
    for axis in blocks:
        free = problem.fixed.get(axis.name, tuple(range(axis.units)))
        count *= symmetric_sum([inside[axis.name, index] for index in free], problem.keep[axis.name])
    return count


def symmetric_sum(values: list[int], size: int) -> int:
    """Sum over all sets of ``size`` values their product (an elementary symmetric polynomial)."""
    sums = [1] + [0] * size
    for value in values:
        for place in range(size, 0, -1):
            sums[place] += sums[place - 1] * value
    return sums[size]
