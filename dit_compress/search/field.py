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

    First the best of each family, then the second best of each, and so on; those in the order of what the curves expect
    them to lose. A plan that two families share bears both names.
    """
    depths = list(equal_plans(question))
    levels = families([axis.level for axis in question.axes])
    found = {named(family): ranked(question, depths, family) for family in levels}
    found[PAPER] = papers(question)
    entered: dict[Hashable, Entrant] = {}
    places: dict[Hashable, int] = {}
    for entrants in found.values():
        for place, entrant in enumerate(entrants):
            key = frozenset(entrant.keep.items())
            places[key] = min(place, places.get(key, place))
            names = f"{entered[key].family}, {entrant.family}" if key in entered else entrant.family
            entered[key] = replace(entrant, family=names)
    order = sorted(entered, key=lambda key: (places[key], entered[key].expected))
    return [entered[key] for key in order[:most]], [name for name, entrants in found.items() if not entrants]


def ranked(question: Question, depths: Sequence[EqualPlan], family: Family) -> list[Entrant]:
    """Return a family's plans, the best first; of one level alone only one, since its counts differ by a hair.

    A family too coarse to come within 1% (blocks alone weigh much) is taken where it comes nearest from below.
    """
    choices = [variant for plan in depths for variant in variants(question, plan, family)]
    entrants = plans(choices, family, question.budget)
    if not entrants and (nearest := below(choices, question.budget)) is not None:
        entrants = plans(choices, family, nearest)[:1]
    return entrants if len(family) > 1 else entrants[:1]


def plans(choices: Sequence[EqualPlan], family: Family, budget: float) -> list[Entrant]:
    """Return the best plan of each choice within 1% of a budget, sorted by what the curves expect."""
    found = []
    for choice in choices:
        chosen = choice.sack.solve(SLACK * budget, budget, choice.sack.losses)
        if chosen is not None:
            expected = choice.loss + float(choice.sack.losses @ chosen)
            found.append(Entrant(named(family), choice.keep(chosen), expected))
    return sorted(found, key=lambda entrant: entrant.expected)


def below(choices: Sequence[EqualPlan], budget: float) -> float | None:
    """Return the highest price up to a budget that any choice comes to; None where all are dearer."""
    reached = [
        choice.sack.base + float(choice.sack.prices @ chosen)
        for choice in choices
        if (chosen := choice.sack.solve(-np.inf, budget, -choice.sack.prices)) is not None
    ]
    return max(reached, default=None)


def families(levels: Sequence[str]) -> list[Family]:
    """Return the sets of levels that are cut together: all, the pairs, each alone."""
    distinct = tuple(dict.fromkeys(levels))
    pairs = combinations(distinct, 2)
    return list(dict.fromkeys([distinct, *pairs, *((level,) for level in distinct)]))


def named(family: Family) -> str:
    """Return ``block + head``, ``ffn alone``."""
    return " + ".join(family) if len(family) > 1 else f"{family[0]} alone"


def variants(question: Question, plan: EqualPlan, family: Family) -> Iterator[EqualPlan]:
    """Yield what a number of blocks leaves to a family that cuts each of its levels and no other.

    Nothing; one choice; or, where no block goes, one for each count of its coarsest level: plans that differ much.
    """
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
