"""Ask one search for blocks and another for the rest, each of the whole model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.search.problem import SearchProblem, Selection, check_search

if TYPE_CHECKING:
    from typing import Any

    from dit_compress.plugin.options import Part
    from dit_compress.step.context import Context
    from dit_compress_plugins.search_mixed import MixedOptions


class MixedSearch:
    """Search ``{use: mixed, blocks: …, rest: …}``."""

    def __init__(self, options: MixedOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Context) -> Selection:
        """Join two choices, and their scores, which rank within each axis."""
        kept = {**{axis.name: tuple(range(axis.units)) for axis in problem.axes}, **problem.fixed}
        scores: dict[str, Any] = {}
        history: dict[str, Any] = {"scores": scores}
        for name, part, part_of in self.asked(problem):
            found = part.build().search(part_of, context)
            kept |= found.kept
            scores |= found.history.get("scores", {})
            history[name] = {key: value for key, value in found.history.items() if key != "scores"}
        return Selection(kept, history)

    def check(self, problem: SearchProblem, *, settled: bool) -> None:
        """Raise a UserError where either can't be done."""
        for _, part, part_of in self.asked(problem):
            check_search(part, part_of, settled=settled)

    def asked(self, problem: SearchProblem) -> list[tuple[str, Part, SearchProblem]]:
        """Return the searches that have anything to choose, with their part of the problem.

        The axes of the other stay whole meanwhile; those that are settled already belong to both.
        """
        found = []
        for name, part, blocks in (("blocks", self.options.blocks, True), ("rest", self.options.rest, False)):
            own = [axis for axis in problem.axes if (axis.blocks is not None) == blocks]
            if any(problem.keep[axis.name] < axis.units and axis.name not in problem.fixed for axis in own):
                axes = tuple(axis for axis in problem.axes if axis in own or axis.name in problem.fixed)
                found.append((name, part, replace(problem, axes=axes)))
        return found
