"""From a budget to counts, exactly: the plan that minimises summed sensitivity within 1% below the budget.

Equal widths: one count per level, the same share in every axis; for each number of blocks a multiple-choice
knapsack over the other levels. Where blocks weigh differently, those of equal weight go in equal shares.
Widths per block: one count per axis and a choice of blocks, in one programme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.search.budget import alike_blocks, gates, inside
from dit_compress.search.knapsack import Knapsack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dit_compress.search.budget import Price
    from dit_compress.search.curves import Curves
    from dit_compress.structure.facts import Axis, Kept

SLACK = 0.99
"""A plan for a budget uses at least this share of it."""
MOST_WIDTHS = 64
"""The number of widths an axis chooses among where every block may have its own."""


@dataclass(frozen=True)
class Question:
    """An allocation to find: the axes that may be cut, the multiple of kept counts per level, price, curves, budget."""

    axes: Sequence[Axis]
    steps: Mapping[str, int]
    price: Price
    curves: Curves
    budget: float

    def fits(self, price: float) -> bool:
        """Tell whether it is within 1% from below."""
        return SLACK * self.budget <= price <= self.budget


# ------------------------------------------------------------------ equal widths


def allocate(question: Question) -> dict[str, int]:
    """Count the units of each axis that stay, the same share in every axis of a level.

    UserError names the nearest budget that can be met.
    """
    best: tuple[float, dict[str, int]] | None = None
    low, plans = SLACK * question.budget, list(equal_plans(question))
    bounds = [plan.loss + plan.sack.bound(low, question.budget) for plan in plans]
    for bound, plan in sorted(zip(bounds, plans, strict=True), key=lambda pair: pair[0]):
        if bound >= (best[0] if best else np.inf):
            break
        chosen = plan.sack.solve(low, question.budget, plan.sack.losses)
        if chosen is None:
            continue
        loss = plan.loss + float(plan.sack.losses @ chosen)
        if best is None or loss < best[0]:
            best = (loss, plan.keep(chosen))
    if best is None:
        raise out_of_reach(question, [plan.sack for plan in plans])
    return best[1]


@dataclass(frozen=True)
class EqualPlan:
    """The choices left once the number of blocks is set: ``entries`` are (level, counts of its axes)."""

    sack: Knapsack
    loss: float
    blocks: Mapping[str, int]
    entries: Sequence[Mapping[str, int]]

    def keep(self, chosen: np.ndarray) -> dict[str, int]:
        """Return the counts of every axis."""
        counts = dict(self.blocks)
        for place in np.flatnonzero(chosen).tolist():
            counts |= self.entries[place]
        return counts


def equal_plans(question: Question) -> Iterator[EqualPlan]:
    """Yield one knapsack per number of blocks."""
    axes, curves = question.axes, question.curves
    stacks = gates(axes)
    deepest = max((gate.units for gate in stacks.values()), default=1)
    levels = {axis.level: [a for a in axes if a.level == axis.level] for axis in axes if not axis.blocks}
    groups_of = {gate.name: alike_blocks(question.price, axes, gate) for gate in stacks.values()}
    choices = [_choices(question, level, members) for level, members in levels.items()]
    entries = [entry for found in choices for entry, _ in found]
    losses = np.array([loss for found in choices for _, loss in found])
    groups = np.array([group for group, found in enumerate(choices) for _ in found], dtype=int)
    for left in range(1, deepest + 1) if stacks else [1]:
        blocks = {gate.name: proportional(left, deepest, gate.units, 1) for gate in stacks.values()}
        shares = {gate.name: _shares(groups_of[gate.name], blocks[gate.name]) for gate in stacks.values()}
        rest = sum(_blocks_weight(question.price.blocks[name], groups_of[name], shares[name]) for name in shares)
        loss = curves.level(next(iter(stacks.values())).level)(1 - left / deepest) if stacks else 0.0
        prices = [
            price
            for members, found in zip(levels.values(), choices, strict=True)
            for price in _prices(question.price, stacks, shares, members, [entry for entry, _ in found])
        ]
        fixed = question.price.fixed + rest
        yield EqualPlan(
            Knapsack(np.array(prices), losses, groups, np.full(len(levels), -1), fixed), loss, blocks, entries
        )


def _choices(question: Question, level: str, members: Sequence[Axis]) -> list[tuple[dict[str, int], float]]:
    """List what may stay of a level, the same share in each of its axes, with what it costs in loss."""
    widest, step = max(axis.units for axis in members), question.steps.get(level, 1)
    return [
        (
            {axis.name: proportional(count, widest, axis.units, step) for axis in members},
            question.curves.level(level)(1 - count / widest),
        )
        for count in counts_of(widest, step)
    ]


def _prices(
    price: Price,
    stacks: Mapping[str, Axis],
    shares: Mapping[str, Sequence[float]],
    members: Sequence[Axis],
    entries: Sequence[Mapping[str, int]],
) -> list[float]:
    """Weigh each choice of a level where these shares of the blocks stay."""
    each = []
    for axis in members:
        gate = stacks.get(axis.stack)
        share = 1.0 if gate is None or axis.block is None else shares[gate.name][axis.block]
        each.append((axis.name, price.units[axis.name], share))
    return [sum(unit * entry[name] * share for name, unit, share in each) for entry in entries]


def _shares(groups: Sequence[Sequence[int]], left: int) -> list[float]:
    """Return the share of each block's group that stays where ``left`` blocks do."""
    counts = zip(groups, apportioned(groups, left), strict=True)
    shares = {index: kept / len(group) for group, kept in counts for index in group}
    return [shares[index] for index in range(len(shares))]


def _blocks_weight(weights: Sequence[float], groups: Sequence[Sequence[int]], shares: Sequence[float]) -> float:
    return sum(sum(weights[index] for index in group) * shares[group[0]] for group in groups)


def apportioned(groups: Sequence[Sequence[int]], left: int) -> list[int]:
    """Divide ``left`` blocks among groups in proportion to their sizes, evenly along the stack."""
    ends = np.cumsum([0, *map(len, groups)])
    return np.diff([math.floor(end * left / ends[-1] + 0.5) for end in ends]).tolist()


def uneven(question: Question) -> bool:
    """Tell whether a stack's blocks differ in weight."""
    stacks = gates(question.axes).values()
    return any(len(alike_blocks(question.price, question.axes, gate)) > 1 for gate in stacks)


def settled_blocks(question: Question, counts: Mapping[str, int], score: Callable[[Axis], Sequence[float]]) -> Kept:
    """Choose the blocks of stacks whose blocks weigh differently, the best of each group; other stacks stay open.

    score: the importance of each block of an axis. Whatever it says, as much is removed.
    """
    chosen: Kept = {}
    for gate in gates(question.axes).values():
        groups, left = alike_blocks(question.price, question.axes, gate), counts[gate.name]
        if len(groups) > 1 and left < gate.units:
            scores = score(gate)
            best = [sorted(group, key=lambda index: -scores[index]) for group in groups]
            kept = zip(best, apportioned(groups, left), strict=True)
            chosen[gate.name] = tuple(sorted(index for group, count in kept for index in group[:count]))
    return chosen


def counts_of(units: int, step: int) -> list[int]:
    """Return the counts that may stay: the multiples of ``step``, and all of them."""
    return sorted({*range(step, units, step), units})


def proportional(count: int, of: int, units: int, step: int) -> int:
    """Give ``count`` of ``of`` as the same share of ``units``: a multiple of ``step``, at least one of them."""
    if units == of:
        return count
    if count == of:
        return units
    return min(units, max(step, count * units // of // step * step))


# ------------------------------------------------------------------ widths of each block


def allocate_each(question: Question) -> Kept:
    """Choose blocks, and for each of their axes as many units (the first ones: which, a search decides).

    Optimal to 0.01%, over at most ``MOST_WIDTHS`` widths per axis. UserError where the curves are not by axis.
    """
    stacks, names = gates(question.axes), {axis.name for axis in question.axes if not axis.blocks}
    lacking = sorted(names - question.curves.axes.keys()) + sorted(
        gate.name for gate in stacks.values() if gate.name not in question.curves.blocks
    )
    if lacking:
        raise UserError(
            f"widths of each block need curves of each axis; there is none for {lacking[0]}",
            mend="Measure them: dit-compress sensitivity --each",
        )
    sack, entries = _each(question, stacks)
    chosen = sack.solve(SLACK * question.budget, question.budget, sack.losses, gap=1e-4)
    if chosen is None:
        raise out_of_reach(question, [sack])
    kept: dict[str, list[int]] = {gate.name: [] for gate in stacks.values()}
    widths: Kept = {}
    for place in np.flatnonzero(chosen):
        axis, count = entries[place]
        if axis.blocks and count >= 0:
            kept[axis.name].append(count)
        elif not axis.blocks:
            widths[axis.name] = tuple(range(count))
    return {**{name: tuple(index) for name, index in kept.items()}, **widths}


def _each(question: Question, stacks: Mapping[str, Axis]) -> tuple[Knapsack, list[tuple[Axis, int]]]:
    """Make entries: (gate, block that stays), and (axis, count). Losses of blocks count where they go."""
    price, curves = question.price, question.curves
    prices: list[float] = []
    losses: list[float] = []
    groups: list[int] = []
    gate_of: list[int] = []
    entries: list[tuple[Axis, int]] = []

    def widths(axis: Axis, gate: int) -> None:
        counts = counts_of(axis.units, question.steps.get(axis.level, 1))
        for count in thinned(counts):
            prices.append(price.units[axis.name] * count)
            losses.append(curves.axes[axis.name](1 - count / axis.units))
            groups.append(len(gate_of))
            entries.append((axis, count))
        gate_of.append(gate)

    for gate in stacks.values():
        for index in range(gate.units):
            place = len(entries)
            prices.append(price.blocks[gate.name][index])
            losses.append(-max(0.0, curves.blocks[gate.name][index]))
            entries.append((gate, index))
            # A block is an entry of a group of its own with a twin that says "gone".
            groups.append(len(gate_of))
            gate_of.append(-1)
            prices.append(0.0)
            losses.append(0.0)
            groups.append(groups[-1])
            entries.append((gate, -1))
            for axis in inside(question.axes, gate, index):
                widths(axis, place)
    for axis in question.axes:
        if not axis.blocks and axis.stack not in stacks:
            widths(axis, -1)
    some = tuple(
        tuple(place for place, (axis, index) in enumerate(entries) if axis is gate and index >= 0)
        for gate in stacks.values()
    )
    sack = Knapsack(np.array(prices), np.array(losses), np.array(groups), np.array(gate_of), price.fixed, some)
    return sack, entries


def thinned(counts: Sequence[int]) -> list[int]:
    """Take at most ``MOST_WIDTHS`` of them, evenly, the first and the last included."""
    if len(counts) <= MOST_WIDTHS:
        return list(counts)
    return [counts[round(place * (len(counts) - 1) / (MOST_WIDTHS - 1))] for place in range(MOST_WIDTHS)]


# ------------------------------------------------------------------ what can't be met


def out_of_reach(question: Question, sacks: Sequence[Knapsack]) -> UserError:
    """Make the error that names the nearest that can be met; the ends above and below are asked for exactly."""
    reached: list[float] = []
    for sack in sacks:
        below = sack.solve(-np.inf, question.budget, -sack.prices)
        above = sack.solve(question.budget, np.inf, sack.prices)
        reached += [sack.base + float(sack.prices @ chosen) for chosen in (below, above) if chosen is not None]
    least, unit = min(reached), question.price.unit
    nearest = min(reached, key=lambda price: abs(price - question.budget))
    why = f": what can't be removed weighs {show(least, '')}" if question.budget < SLACK * least else ""
    return UserError(
        f"no plan comes within 1% of {show(question.budget, unit)} from below{why}",
        mend=f"The nearest that can be met is {show(nearest, '')}",
    )


def show(amount: float, unit: str) -> str:
    """Show ``1,000 parameters``, ``2.3801e+13 FLOPs``, ``0.12500 seconds``; rounded up, so that it can be asked for."""
    if unit == "parameters" or (not unit and 100 <= amount < 1e12):
        return f"{math.ceil(amount - 1e-6):,} {unit}".strip()
    digit = 10.0 ** (math.floor(math.log10(max(amount, 1e-12))) - 4)
    return f"{math.ceil(amount / digit - 1e-6) * digit:.5g} {unit}".strip()
