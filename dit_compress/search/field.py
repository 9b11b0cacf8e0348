"""A field of plans for one budget, from every family of levels, and its successive halving.

Levels interact: a sum of curves misorders plans that cut different levels. So the best few of each family are tried
whole, and those that do worse are dropped half by half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.search.allocate import SLACK, allocate, equal_plans
from dit_compress.search.curves import default_curves

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from dit_compress.search.allocate import EqualPlan, Question
    from dit_compress.search.knapsack import Knapsack

    Family = tuple[str, ...]

Model = TypeVar("Model")

PAPER = "paper's proportions"


@dataclass(frozen=True)
class Entrant:
    """A plan that is tried. keep: axis name → how many stay. expected: what it costs in loss by the sum of curves."""

    family: str
    keep: Mapping[str, int]
    expected: float


def enter(question: Question, most: int) -> tuple[list[Entrant], list[str]]:
    """Choose at most ``most`` plans, and name the families that can't come below the budget.

    First the best of each family, then the others, either in the order of what the curves expect them to lose. A plan
    that is the best of two families bears both names.
    """
    found = {named(family): ranked(question, family) for family in families([axis.level for axis in question.axes])}
    found[PAPER] = papers(question)
    entered: dict[Hashable, Entrant] = {}
    best: set[Hashable] = set()
    for entrants in found.values():
        for place, entrant in enumerate(entrants):
            key = frozenset(entrant.keep.items())
            if not place:
                best.add(key)
            names = f"{entered[key].family}, {entrant.family}" if key in entered else entrant.family
            entered[key] = replace(entrant, family=names)
    order = sorted(entered, key=lambda key: (key not in best, entered[key].expected))
    return [entered[key] for key in order[:most]], [name for name, entrants in found.items() if not entrants]


def ranked(question: Question, family: Family) -> list[Entrant]:
    """Return a family's plans, the best first; of one level alone only one, since its counts differ by a hair.

    A family too coarse to come within 1% (blocks alone weigh much) is taken where it comes nearest from below.
    """
    entrants = sorted(plans(question, family), key=lambda entrant: entrant.expected)
    if not entrants and (nearest := below(question, family)) is not None:
        lower = replace(question, budget=nearest)
        entrants = sorted(plans(lower, family), key=lambda entrant: entrant.expected)[:1]
    return entrants if len(family) > 1 else entrants[:1]


def below(question: Question, family: Family) -> float | None:
    """Return the highest price up to the budget that a family comes to; None where it has no plan so cheap."""
    reached: list[float] = []
    for plan in equal_plans(question):
        for variant in variants(question, plan, family):
            chosen = variant.sack.solve(-np.inf, question.budget, -variant.sack.prices)
            if chosen is not None:
                reached.append(variant.sack.base + float(variant.sack.prices @ chosen))
    return max(reached, default=None)


def families(levels: Sequence[str]) -> list[Family]:
    """Return the sets of levels that are cut together: all, the pairs, each alone."""
    distinct = tuple(dict.fromkeys(levels))
    pairs = combinations(distinct, 2)
    return list(dict.fromkeys([distinct, *pairs, *((level,) for level in distinct)]))


def named(family: Family) -> str:
    """Return ``block + head``, ``ffn alone``."""
    return " + ".join(family) if len(family) > 1 else f"{family[0]} alone"


def plans(question: Question, family: Family) -> Iterator[Entrant]:
    """Yield the best plans of one family that differ much: one for each depth, else for each count of one level.

    Each of the family's levels is cut, and no other.
    """
    for plan in equal_plans(question):
        for variant in variants(question, plan, family):
            chosen = variant.sack.solve(SLACK * question.budget, question.budget, variant.sack.losses)
            if chosen is not None:
                expected = variant.loss + float(variant.sack.losses @ chosen)
                yield Entrant(named(family), variant.keep(chosen), expected)


def variants(question: Question, plan: EqualPlan, family: Family) -> Iterator[EqualPlan]:
    """Yield what a number of blocks leaves to a family: nothing, one choice, or one for each count of its coarsest."""
    axes = {axis.name: axis for axis in question.axes}
    cut = {axes[name].level for name, count in plan.blocks.items() if count < axes[name].units}
    if cut != {axes[name].level for name in plan.blocks if axes[name].level in family}:
        return
    groups: dict[int, list[int]] = {int(group): [] for group in plan.sack.groups}
    for place, entry in enumerate(plan.entries):
        level = axes[next(iter(entry))].level
        if any(count < axes[name].units for name, count in entry.items()) == (level in family):
            groups[int(plan.sack.groups[place])].append(place)
    free = sorted((places for places in groups.values() if len(places) > 1), key=len)
    each = [[place] for place in free[0]] if len(free) > 1 and not cut else [None]
    for chosen in each:
        kept = [chosen if chosen and chosen[0] in places else places for places in groups.values()]
        if all(kept):
            yield _only(plan, sorted(place for places in kept for place in places))


def _only(plan: EqualPlan, places: list[int]) -> EqualPlan:
    sack: Knapsack = plan.sack
    few = replace(sack, prices=sack.prices[places], losses=sack.losses[places], groups=sack.groups[places])
    return replace(plan, sack=few, entries=[plan.entries[place] for place in places])


def papers(question: Question) -> list[Entrant]:
    """Return the plan of the paper's proportions, where there is one; expected to lose what the curves say."""
    try:
        keep = allocate(replace(question, curves=default_curves(question.price, question.axes)))
    except UserError:
        return []
    widest = {axis.level: axis for axis in sorted(question.axes, key=lambda axis: axis.units)}
    lost = (question.curves.level(level)(1 - keep[axis.name] / axis.units) for level, axis in widest.items())
    return [Entrant(PAPER, keep, float(np.sum(list(lost))))]


def halved(left: dict[int, Model], loss_of: Callable[[Model], float]) -> list[dict[int, float]]:
    """Halve a field until one stays; return the losses of those that were left, round by round.

    The better half goes on (of three, two), of equals the first; what is dropped leaves ``left``. ``loss_of`` is called
    once a round for each that is left, so that it may go on from where the round before ended.
    """
    rounds: list[dict[int, float]] = []
    while len(left) > 1 or not rounds:
        rounds.append({which: loss_of(model) for which, model in left.items()})
        for which in sorted(left, key=rounds[-1].__getitem__)[(len(left) + 1) // 2 :]:
            del left[which]
    return rounds
