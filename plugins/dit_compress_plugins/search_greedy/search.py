"""Backward elimination: measure the loss without each part that may still go, remove the cheapest, repeat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError
from dit_compress.search.parts import complete, parts_of
from dit_compress.search.problem import SearchProblem, Selection, outside_removed_blocks
from dit_compress.search.trial import trial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dit_compress.search.parts import Parts
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis, Kept
    from dit_compress_plugins.search_greedy import GreedyOptions


class GreedySearch:
    """Search ``{use: greedy, at_once: …, objective: …}``."""

    def __init__(self, options: GreedyOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Context) -> Selection:
        """Remove until every axis has what it may keep; an axis inside a removed block is left alone."""
        state = State({axis.name: parts_of(problem, axis) for axis in problem.axes}, problem.keep, problem.fixed)
        self.check(state)
        history: list[dict[str, Any]] = []
        with trial(problem, context, self.options.objective, self.options) as measured:
            while candidates := state.candidates(problem.axes):
                losses = sorted((measured.loss(state.without(name, place)), name, place) for name, place in candidates)
                for loss, name, place in losses[: self.options.at_once]:
                    if state.may_lose(name):
                        state.removed[name].append(place)
                        history.append({"axis": name, "units": list(state.parts[name][place]), "loss": loss})
            losses_measured = measured.count
        kept = {axis.name: self.settled(problem, axis, state) for axis in problem.axes}
        return Selection(kept, {"removed": history, "losses_measured": losses_measured})

    def settled(self, problem: SearchProblem, axis: Axis, state: State) -> tuple[int, ...]:
        """Return exactly ``keep`` units: parts that stay, cut down by magnitude where no whole part may go any more."""
        units, keep = state.kept()[axis.name], problem.keep[axis.name]
        return units if len(units) == keep else complete(problem.denoiser.module, axis, [], keep, among=units)

    def check(self, state: State) -> None:
        """Raise a UserError where it would measure more losses than ``most``."""
        parts = sum(len(parts) for name, parts in state.parts.items() if state.may_lose(name))
        removals = sum(
            (sum(map(len, parts)) - state.keep[name]) // len(parts[0]) for name, parts in state.parts.items()
        )
        count = (parts * removals - removals * (removals - 1) // 2) // self.options.at_once
        if count > self.options.most:
            raise UserError(
                f"greedy search would measure up to {count:,} losses, 'most' is {self.options.most:,}",
                mend="Raise 'at_once' or 'most', or cut the levels into fewer 'units'",
            )


@dataclass
class State:
    """The parts that have gone so far: axis name → places among its parts, in the order they went."""

    parts: Mapping[str, Parts]
    keep: Mapping[str, int]
    fixed: Kept
    removed: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.removed = {
            name: [place for place, part in enumerate(parts) if not set(part) <= set(self.fixed.get(name, part))]
            for name, parts in self.parts.items()
        }

    def kept(self) -> Kept:
        """Return the plan so far."""
        return {name: self._kept(name, ()) for name in self.parts}

    def without(self, name: str, place: int) -> Kept:
        """Return the plan so far, less one part."""
        return {**self.kept(), name: self._kept(name, (place,))}

    def may_lose(self, name: str) -> bool:
        """Tell whether another whole part may go."""
        return len(self._kept(name, ())) - len(self.parts[name][0]) >= self.keep[name]

    def candidates(self, axes: tuple[Axis, ...]) -> list[tuple[str, int]]:
        """Return parts that may go: (axis name, place)."""
        return [
            (axis.name, place)
            for axis in outside_removed_blocks(axes, self.kept())
            if self.may_lose(axis.name)
            for place in range(len(self.parts[axis.name]))
            if place not in self.removed[axis.name]
        ]

    def _kept(self, name: str, also: tuple[int, ...]) -> tuple[int, ...]:
        gone = {*self.removed[name], *also}
        return tuple(sorted(u for place, part in enumerate(self.parts[name]) if place not in gone for u in part))
