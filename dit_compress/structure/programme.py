"""The layout of least loss within budgets, by a dynamic programme over blocks; exact where what blocks lose adds up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.structure.choices import EDGE, Chosen, amount, of_kinds, row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dit_compress.structure.choices import Layout, LayoutProblem, Prices, Scores

    Cost = tuple[float, ...]

MOST = 20_000
"""Partial layouts that are held at once."""
_PICOSECONDS = 1e12


@dataclass(frozen=True)
class Partial:
    """Kinds of the first blocks, by place among the possible ones; what they add to the loss; what they cost."""

    score: float
    cost: Cost
    kinds: tuple[int, ...]


def best(problem: LayoutProblem, scores: Scores, most: int = MOST) -> list[Chosen]:
    """Return the layouts that no other one beats in score and price at once, the best score first.

    Exact where scores add: a dynamic programme over blocks keeps, of all partial layouts of equal or lower price, the
    one of least score.

    Raises:
        UserError: no layout is within the budgets, the message names the nearest; or there are more than ``most``
            partial layouts.
    """
    walked = _Programme(problem, most).run(scores)
    if not walked:
        raise none_fits(problem, most)
    found = sorted(walked, key=lambda partial: (partial.score, partial.cost, partial.kinds))
    return [Chosen(of_kinds(problem.choices, partial.kinds), {"score": partial.score}) for partial in found]


def need_layout(problem: LayoutProblem) -> None:
    """Raise a UserError that names the nearest layout where none is within the budgets."""
    if not problem.fits(nearest(problem)):
        raise none_fits(problem)


def none_fits(problem: LayoutProblem, most: int = MOST) -> UserError:
    """Return what to say where no layout is within the budgets; it names the nearest."""
    layout = nearest(problem, most)
    prices, budget = problem.prices(layout), problem.budget
    takes = " and ".join(amount(name, getattr(prices, name)) for name in budget)
    asked = " and ".join(amount(name, limit) for name, limit in budget.items())
    return UserError(
        f"no layout comes within the budget of {asked}; the nearest, {row(problem.choices, layout)}, takes {takes}",
        mend="Raise the budget to that, or offer cheaper kinds",
    )


def nearest(problem: LayoutProblem, most: int = MOST) -> dict[str, str]:
    """Return the layout whose worst quantity is the least above its budget."""
    nothing = {choice.block: dict.fromkeys(choice.options, 0.0) for choice in problem.choices}
    free = replace(problem, budget=dict.fromkeys(problem.budget, math.inf))
    found = [of_kinds(problem.choices, partial.kinds) for partial in _Programme(free, most).run(nothing)]

    def excess(layout: Layout) -> float:
        prices = problem.prices(layout)
        return max(getattr(prices, name) / max(limit, 1e-30) for name, limit in problem.budget.items())

    return min(found, key=excess)


class _Programme:
    """The walk over blocks; what is counted are the budgets' quantities, as whole numbers.

    Memory takes two places of a cost: what is held adds, of what is worked with the most counts.
    """

    def __init__(self, problem: LayoutProblem, most: int) -> None:
        self.problem, self.choices, self.most = problem, problem.choices, most
        self.summed = [name for name in problem.budget if name != "memory"]
        self.memory = "memory" in problem.budget
        self.limits = [self._limit(name) for name in self.summed]
        self.room = self._limit("memory") if self.memory else math.inf
        self.costs = [[self._cost(choice.options[kind]) for kind in choice.kinds] for choice in self.choices]
        self.start = self._cost(problem.rest)
        least = [tuple(min(column) for column in zip(*costs, strict=True)) for costs in self.costs]
        nothing: Cost = (0,) * len(self.start)
        self.ahead = list(accumulate(reversed(least), self._add, initial=nothing))[::-1][1:]

    def run(self, scores: Scores) -> list[Partial]:
        """Return the whole layouts within the budgets that no other one beats."""
        partials = [Partial(0.0, self.start, ())]
        for choice, costs, ahead in zip(self.choices, self.costs, self.ahead, strict=True):
            added = [scores[choice.block][kind] for kind in choice.kinds]
            longer = [
                Partial(partial.score + added[kind], total, (*partial.kinds, kind))
                for partial in partials
                for kind, cost in enumerate(costs)
                if self._fits(self._add(total := self._add(partial.cost, cost), ahead))
            ]
            partials = unbeaten(longer)
            if len(partials) > self.most:
                raise UserError(
                    f"{len(partials):,} partial layouts differ in price and score at {choice.block!r}, "
                    f"'most' is {self.most:,}",
                    mend="Round the prices or the scores: what is equal counts once",
                )
        return partials

    def _limit(self, name: str) -> float:
        return _whole(name, self.problem.budget[name] * (1 + EDGE))

    def _cost(self, prices: Prices) -> Cost:
        memory = ("held", "working") if self.memory else ()
        return tuple(_whole(name, getattr(prices, name)) for name in (*self.summed, *memory))

    def _add(self, one: Cost, other: Cost) -> Cost:
        total = [a + b for a, b in zip(one, other, strict=True)]
        if self.memory:
            total[-1] = max(one[-1], other[-1])
        return tuple(total)

    def _fits(self, cost: Cost) -> bool:
        return all(a <= b for a, b in zip(cost, self.limits, strict=False)) and (
            not self.memory or cost[-2] + cost[-1] <= self.room
        )


def _whole(name: str, value: float) -> float:
    """Count a quantity in whole numbers, seconds in picoseconds: what costs the same is then equal; infinity stays."""
    return value if math.isinf(value) else round(value * _PICOSECONDS if name == "seconds" else value)


def unbeaten(partials: Sequence[Partial]) -> list[Partial]:
    """Return those for which no other has a price and a score that are both at most as high; of equals the first."""
    kept: list[Partial] = []
    least, rivals = math.inf, np.empty((len(partials), len(partials[0].cost) if partials else 0))
    # What costs less in the first quantity comes before: that one needs no comparison.
    for partial in sorted(partials, key=lambda each: (each.cost, each.score, each.kinds)):
        mine = (*partial.cost[1:], partial.score)
        if partial.score >= least and (len(mine) == 1 or (rivals[: len(kept)] <= mine).all(1).any()):
            continue
        least = min(least, partial.score)
        rivals[len(kept)] = mine
        kept.append(partial)
    return kept
