"""Backward elimination as a search: exact counts, and a bound on what it measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.search.parts import complete, like_parts_of, parts_of
from dit_compress.search.problem import SearchProblem, Selection
from dit_compress.search.removal import Removal
from dit_compress.search.trial import trial

if TYPE_CHECKING:
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis
    from dit_compress_plugins.search_greedy import GreedyOptions


class GreedySearch:
    """Search ``{use: greedy, at_once: …, objective: …}``."""

    def __init__(self, options: GreedyOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Context) -> Selection:
        """Remove part after part until every axis has what it may keep."""
        removal = Removal({axis.name: parts_of(problem, axis) for axis in problem.axes}, problem.keep, problem.fixed)
        self.check_most(removal)  # exactly, of what a budget may have measured since the plan
        with trial(problem, context, self.options.objective, self.options) as measured:
            history = removal.run(problem.axes, measured.loss, self.options.at_once)
            losses_measured = measured.count
        kept = {axis.name: self.settled(problem, axis, removal) for axis in problem.axes}
        return Selection(kept, {"removed": history, "losses_measured": losses_measured, "scores": removal.scores()})

    def check(self, problem: SearchProblem, *, settled: bool) -> None:
        """Raise a UserError where an axis can't be cut into parts, or it would measure more losses than ``most``."""
        parts = {axis.name: like_parts_of(problem, axis) for axis in problem.axes}
        if settled:
            self.check_most(Removal(parts, problem.keep, problem.fixed))

    def settled(self, problem: SearchProblem, axis: Axis, removal: Removal) -> tuple[int, ...]:
        """Return exactly ``keep`` units: parts that stay, cut down by magnitude where no whole part may go any more."""
        units, keep = removal.kept()[axis.name], problem.keep[axis.name]
        return units if len(units) == keep else complete(problem.denoiser.module, axis, [], keep, among=units)

    def check_most(self, removal: Removal) -> None:
        """Raise a UserError where it would measure more losses than ``most``."""
        parts = sum(len(parts) for name, parts in removal.parts.items() if removal.may_lose(name))
        removals = sum(
            (sum(map(len, parts)) - removal.keep[name]) // len(parts[0]) for name, parts in removal.parts.items()
        )
        count = (parts * removals - removals * (removals - 1) // 2) // self.options.at_once
        if count > self.options.most:
            raise UserError(
                f"greedy search would measure up to {count:,} losses, 'most' is {self.options.most:,}",
                mend="Raise 'at_once' or 'most', or cut the levels into fewer 'units'",
            )
