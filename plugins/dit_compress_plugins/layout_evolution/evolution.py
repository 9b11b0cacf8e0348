"""SnapGen-V's search: layouts within the budgets are tried whole, and new ones come from those that none beats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_compress.core.randomness import generator
from dit_compress.structure.choices import Chosen, alike, point
from dit_compress.structure.programme import none_fits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.choices import Layout, LayoutProblem
    from dit_compress_plugins.layout_evolution import EvolutionOptions

ATTEMPTS = 200
"""Draws of a layout before the space counts as searched."""


class EvolutionLayout:
    """Part ``layout: {use: evolution}``."""

    def __init__(self, options: EvolutionOptions) -> None:
        self.options = options

    def foreseen(self, problem: LayoutProblem) -> Layout | None:
        """Return nothing: what it finds is measured."""
        problem.need_budget()
        return None

    def choose(self, problem: LayoutProblem, context: Workplace) -> Chosen:
        """Try layouts until there were enough; return the one of least loss, and the front of loss against price."""
        tried: list[Tried] = []
        for each in Evolution(problem, self.options, context.seed):
            tried.append(each)
            if len(tried) % self.options.population == 0:
                context.say(f"{len(tried)} of {self.options.evaluations} layouts, least loss {_least(tried).loss:.6g}")
        found = _least(tried)
        front = [point(problem, each.layout, each.loss) for each in pareto(tried)]
        return Chosen(found.layout, {"tried": len(tried), "loss": found.loss, "front": front})


@dataclass(frozen=True)
class Tried:
    """A layout that was measured, and its price on the front's other axis."""

    layout: dict[str, str]
    loss: float
    price: float

    def beats(self, other: Tried) -> bool:
        """Tell whether it is no worse in both, and better in one."""
        mine, theirs = (self.loss, self.price), (other.loss, other.price)
        return mine != theirs and self.loss <= other.loss and self.price <= other.price


class Evolution:
    """An iteration over the layouts as they are tried.

    Each is a function of the seed, its number and the losses before it: who knows those goes on just as it was.
    """

    def __init__(self, problem: LayoutProblem, options: EvolutionOptions, seed: int) -> None:
        self.problem, self.options, self.seed = problem, options, seed
        self.against: str = options.against or next(iter(problem.budget.keys()))
        self.kinds = {choice.block: choice.kinds for choice in problem.choices}
        self.tried: list[Tried] = []
        self.seen: set[tuple[str, ...]] = set()

    def __iter__(self) -> Iterator[Tried]:
        first = [layout for layout in self.plain() if self.problem.fits(layout)]
        for number in range(self.options.evaluations):
            layout = first[number] if number < len(first) else self.next(generator(self.seed, "layout", number))
            if layout is None:
                break
            price = getattr(self.problem.prices(layout), self.against)
            self.seen.add(tuple(layout.values()))
            self.tried.append(Tried(layout, self.problem.measure(layout), price))
            yield self.tried[-1]
        if not self.tried:
            raise none_fits(self.problem)

    def plain(self) -> list[dict[str, str]]:
        """Return the layouts of one kind: a block that can't be of it stays as it is."""
        every = dict.fromkeys(kind for kinds in self.kinds.values() for kind in kinds)
        found = [alike(self.kinds, kind) for kind in every]
        return list({tuple(layout.values()): layout for layout in found}.values())

    def next(self, rng: np.random.Generator) -> dict[str, str] | None:
        """Draw a layout that fits and was not tried; None where there seems to be none left."""
        start = len(self.tried) < self.options.population
        ranked = [] if start else self.ranked(rng)[: self.options.population]
        for attempt in range(ATTEMPTS):
            # In a space that is nearly searched the neighbours of the best are all known.
            drawn = self.child(rng, ranked) if ranked and attempt < ATTEMPTS // 2 else self.random(rng)
            layout = self.cheapened(rng, drawn)
            if layout is not None and tuple(layout.values()) not in self.seen:
                return layout
        return None

    def ranked(self, rng: np.random.Generator) -> list[Tried]:
        """Return what was tried, in one of two orders by a coin: least loss first, or first what the fewest beat.

        Of a front alone most members are cheaper than they need be; of the least losses alone most are alike.
        """
        if rng.random() < 0.5:
            return sorted(self.tried, key=lambda each: each.loss)
        beaten = [sum(other.beats(each) for other in self.tried) for each in self.tried]
        order = sorted(range(len(self.tried)), key=lambda place: (beaten[place], self.tried[place].loss))
        return [self.tried[place] for place in order]

    def child(self, rng: np.random.Generator, ranked: Sequence[Tried]) -> dict[str, str]:
        """Exchange the kinds of two blocks of a parent, or cross two parents and draw the kinds of some blocks anew."""
        layout = dict(self.parent(rng, ranked).layout)
        blocks = list(layout)
        if rng.random() < self.options.swaps:
            one, other = (blocks[place] for place in rng.integers(len(blocks), size=2))
            if layout[one] in self.kinds[other] and layout[other] in self.kinds[one]:
                return {**layout, one: layout[other], other: layout[one]}
        if rng.random() < self.options.crossover:
            second = self.parent(rng, ranked).layout
            layout = {block: kind if rng.random() < 0.5 else second[block] for block, kind in layout.items()}
        chosen = {block for block in blocks if rng.random() < self.options.mutation}
        chosen = chosen or {blocks[rng.integers(len(blocks))]}
        return {block: self.draw(rng, block) if block in chosen else kind for block, kind in layout.items()}

    def parent(self, rng: np.random.Generator, ranked: Sequence[Tried]) -> Tried:
        """Draw two, and take the one in front."""
        return ranked[min(rng.integers(len(ranked), size=2))]

    def random(self, rng: np.random.Generator) -> dict[str, str]:
        """Draw a kind for every block."""
        return {block: self.draw(rng, block) for block in self.kinds}

    def draw(self, rng: np.random.Generator, block: str) -> str:
        """Draw a kind of a block."""
        return self.kinds[block][rng.integers(len(self.kinds[block]))]

    def cheapened(self, rng: np.random.Generator, layout: dict[str, str]) -> dict[str, str] | None:
        """Make blocks cheaper, drawn one by one, until the layout fits; None where that does not lead there.

        A block takes the dearest of its cheaper kinds: what is far below the budget is seldom the best within it.
        """
        for _ in range(len(layout) * max(map(len, self.kinds.values())) * len(self.problem.budget) + 1):
            prices = self.problem.prices(layout)
            over = [name for name, limit in self.problem.budget.items() if not prices.within({name: limit})]
            if not over:
                return layout
            ways = {block: kind for block in layout if (kind := self.cheaper(layout, block, over[0]))}
            if not ways:
                return None
            block = list(ways)[rng.integers(len(ways))]
            layout = {**layout, block: ways[block]}
        return None

    def cheaper(self, layout: Layout, block: str, quantity: str) -> str | None:
        """Return the kind of a block that comes next below the one it has, by a quantity; None for the least."""
        options = next(choice.options for choice in self.problem.choices if choice.block == block)
        prices = {kind: getattr(options[kind], quantity) for kind in self.kinds[block]}
        below = [kind for kind, price in prices.items() if price < prices[layout[block]]]
        return max(below, key=prices.__getitem__) if below else None


def pareto(tried: Sequence[Tried]) -> list[Tried]:
    """Return those that none beats, the cheapest first; of equals the first."""
    front = [each for each in tried if not any(other.beats(each) for other in tried)]
    distinct = {(each.price, each.loss): each for each in reversed(front)}
    return [distinct[key] for key in sorted(distinct)]


def _least(tried: Sequence[Tried]) -> Tried:
    return min(tried, key=lambda each: each.loss)
