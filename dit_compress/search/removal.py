"""Backward elimination: measure the loss without each part that may still go, remove the cheapest, repeat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_compress.search.problem import outside_removed_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dit_compress.search.parts import Parts
    from dit_compress.structure.facts import Axis, Kept


@dataclass
class Removal:
    """The parts of some axes that have gone so far.

    keep: axis name → how many units stay at least. removed: axis name → places among its parts, in the order they went.
    losses: axis name → per part, the loss without it when it was last measured, see :meth:`scores`.
    """

    parts: Mapping[str, Parts]
    keep: Mapping[str, int]
    fixed: Kept
    removed: dict[str, list[int]] = field(init=False)
    losses: dict[str, dict[int, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.removed = {
            name: [place for place, part in enumerate(parts) if not set(part) <= set(self.fixed.get(name, part))]
            for name, parts in self.parts.items()
        }
        self.losses = {name: {} for name in self.parts}

    def run(self, axes: Sequence[Axis], loss: Callable[[Kept], float], at_once: int = 1) -> list[dict[str, Any]]:
        """Remove until every axis has what it may keep; an axis inside a removed block is left alone.

        at_once: how many go after each measurement of all that may. Returns what went, with the loss without it.
        """
        history: list[dict[str, Any]] = []
        while candidates := self.candidates(axes):
            measured = sorted((loss(self.without(name, place)), name, place) for name, place in candidates)
            self._note(measured)
            for value, name, place in measured[:at_once]:
                if self.may_lose(name):
                    self.removed[name].append(place)
                    history.append({"axis": name, "units": list(self.parts[name][place]), "loss": value})
        return history

    def _note(self, measured: Sequence[tuple[float, str, int]]) -> None:
        """Note losses; where they are less than those of what went before, all of an axis are raised above them."""
        for axis in {name for _, name, _ in measured}:
            own = {place: value for value, name, place in measured if name == axis}
            raised = max([0.0, *(self.losses[axis][place] - min(own.values()) for place in self.removed[axis])])
            self.losses[axis] |= {place: value + raised for place, value in own.items()}

    def scores(self) -> dict[str, list[float]]:
        """Return, of every axis that was measured, the importance of its units: the loss without their part.

        It was measured when the part went, or last before the search ended: what stays is above what went, and what
        went is in the order in which it did.
        """
        return {
            name: [
                loss for _, loss in sorted((unit, losses[place]) for place, part in enumerate(parts) for unit in part)
            ]
            for name, parts in self.parts.items()
            if (losses := self.losses[name])
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

    def candidates(self, axes: Sequence[Axis]) -> list[tuple[str, int]]:
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
