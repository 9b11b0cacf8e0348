"""Keep units drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.core.randomness import generator
from dit_compress.search.problem import Search, SearchProblem, Selection

if TYPE_CHECKING:
    from dit_compress.step.workplace import Workplace
    from dit_compress_plugins.search_random import RandomOptions


class RandomSearch(Search):
    """Every set of the right size is equally likely, independently per axis."""

    def __init__(self, options: RandomOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Workplace) -> Selection:
        """Draw from the stream named after the axis."""
        kept = {}
        for axis in problem.axes:
            order = generator(context.seed, f"search/{axis.name}").permutation(axis.units)
            kept[axis.name] = tuple(sorted(int(unit) for unit in order[: problem.keep[axis.name]]))
        return Selection(kept)
