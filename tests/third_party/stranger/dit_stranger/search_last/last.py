"""Keep the last units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.search.problem import Search, SearchProblem, Selection

if TYPE_CHECKING:
    from dit_compress.step.workplace import Workplace
    from dit_stranger.search_last import LastOptions


class LastSearch(Search):
    """Needs neither data nor weights."""

    def __init__(self, options: LastOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Workplace) -> Selection:
        """As many as the problem asks for."""
        kept = {axis.name: tuple(range(axis.units - problem.keep[axis.name], axis.units)) for axis in problem.axes}
        return Selection(kept, {"axes": len(kept), "seed": context.seed})
