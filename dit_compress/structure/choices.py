"""Blocks of several kinds: what each kind costs, and the layout of least loss within budgets.

A layout names the kind of every block. Parameters, FLOPs and seconds add over blocks; memory is what all of them hold,
and the most that any one needs while it works.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from dit_compress.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Layout = Mapping[str, str]
    """Block → the name of its kind."""
    Kinds = Mapping[str, Sequence[str]]
    """Block → kinds that it may be; the first is the one it is."""
    Scores = Mapping[str, Mapping[str, float]]
    """Block → kind → what that kind adds to the loss; less is better."""

BUDGETS = ("params", "flops", "seconds", "memory")
UNITS = {"params": "params", "flops": "flops", "seconds": "seconds", "memory": "bytes of memory"}
SCHEMA = 1
EDGE = 1e-9
"""By so much a sum of floats may be above a budget that it meets."""


@dataclass(frozen=True)
class Prices:
    """What a block, or a whole model, costs of each quantity.

    held: bytes of its weights. working: of all else that lives at the fullest moment while it runs.
    """

    params: float = 0
    flops: float = 0
    seconds: float = 0
    held: float = 0
    working: float = 0

    @property
    def memory(self) -> float:
        """Bytes in all."""
        return self.held + self.working

    def __add__(self, other: Prices) -> Prices:
        mine, theirs = asdict(self), asdict(other)
        summed = {name: mine[name] + theirs[name] for name in mine}
        return Prices(**{**summed, "working": max(self.working, other.working)})

    @property
    def possible(self) -> bool:
        """False of what the memory of a table's machine does not hold: it takes forever."""
        return math.isfinite(self.seconds)

    def within(self, budget: Mapping[str, float]) -> bool:
        """Tell whether it is possible, and no quantity is above its budget."""
        return self.possible and all(getattr(self, name) <= most * (1 + EDGE) for name, most in budget.items())

    def as_data(self) -> dict[str, float | None]:
        """Return JSON data: the quantities that budgets are stated in; seconds are None where unknown or endless."""
        found = {name: getattr(self, name) for name in BUDGETS}
        return {**found, "seconds": found["seconds"] if self.possible and self.seconds else None}


@dataclass(frozen=True)
class Choice:
    """One block, by its path, and the price of each kind that it may be; the first is the block as it is."""

    block: str
    options: Mapping[str, Prices]

    @property
    def kinds(self) -> list[str]:
        """The kinds that are possible."""
        return [kind for kind, prices in self.options.items() if prices.possible]


@dataclass(frozen=True)
class LayoutProblem:
    """Choose a kind for every block within the budgets.

    loss: of a whole layout, less is better; None where nothing can be measured. rest: what stands outside the blocks.
    """

    choices: tuple[Choice, ...]
    budget: Mapping[str, float]
    loss: Callable[[Layout], float] | None = None
    rest: Prices = field(default_factory=Prices)

    @property
    def present(self) -> dict[str, str]:
        """The layout as it is."""
        return {choice.block: next(iter(choice.options)) for choice in self.choices}

    def measure(self, layout: Layout) -> float:
        """Return the loss of a layout; UserError where none can be measured."""
        if self.loss is None:
            raise UserError(
                "layouts are compared by their loss on clips, and there are none",
                mend="Name a 'data' source in the recipe, or supply the layout's 'scores'",
            )
        return self.loss(layout)

    def need_budget(self) -> None:
        """Raise a UserError where nothing bounds the cost: the layout as it is would be the answer."""
        if not self.budget:
            raise UserError("nothing says what the layout may cost", mend="Give 'budget: {flops: 70%}', or any of it")

    def prices(self, layout: Layout) -> Prices:
        """Price a whole layout by the sum over its blocks."""
        return sum((choice.options[layout[choice.block]] for choice in self.choices), self.rest)

    def fits(self, layout: Layout) -> bool:
        """Tell whether a layout is within the budgets."""
        return self.prices(layout).within(self.budget)


@dataclass(frozen=True)
class Chosen:
    """A layout, and what the report shows of how it was found."""

    layout: Layout
    history: dict[str, Any] = field(default_factory=dict)


def every(choices: Sequence[Choice]) -> Iterator[dict[str, str]]:
    """Yield every layout."""
    for kinds in product(*(choice.options for choice in choices)):
        yield {choice.block: kind for choice, kind in zip(choices, kinds, strict=True)}


def alike(kinds: Kinds, kind: str) -> dict[str, str]:
    """Return the layout of one kind: a block that can't be of it takes its first."""
    return {block: kind if kind in own else own[0] for block, own in kinds.items()}


def of_kinds(choices: Sequence[Choice], places: Sequence[int]) -> dict[str, str]:
    """Return the layout of kinds by their places among the possible ones of each block."""
    return {choice.block: choice.kinds[place] for choice, place in zip(choices, places, strict=True)}


# ------------------------------------------------------------------ as text


def letters(kinds: Sequence[str]) -> dict[str, str]:
    """Return a letter for each kind: of its name the first that no other has."""
    found: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        offered = (letter.upper() for letter in f"{kind}abcdefghijklmnopqrstuvwxyz" if letter.isalpha())
        found[kind] = next(letter for letter in offered if letter not in found.values())
    return found


def kinds_of(choices: Sequence[Choice]) -> list[str]:
    """List every kind that a block may be, in the order of first appearance."""
    return list(dict.fromkeys(kind for choice in choices for kind in choice.options))


def row(choices: Sequence[Choice], layout: Layout) -> str:
    """Return one letter per block."""
    known = letters(kinds_of(choices))
    return "".join(known[layout[choice.block]] for choice in choices)


def legend(choices: Sequence[Choice], layout: Layout) -> str:
    """Return one letter per block, and what the letters mean: ``KKLL (K keep, L linconv)``."""
    known = letters(kinds_of(choices))
    meant = ", ".join(f"{known[kind]} {kind}" for kind in known if kind in layout.values())
    return f"{row(choices, layout)} ({meant})"


def point(problem: LayoutProblem, layout: Layout, loss: float) -> dict[str, Any]:
    """Return a layout as a point of a front, as JSON data."""
    return {"row": row(problem.choices, layout), "loss": loss, **problem.prices(layout).as_data()}


def amount(name: str, value: float) -> str:
    """Return a quantity of a budget as text, with its unit: ``18,636,834 flops``, ``0.0123457 seconds``."""
    return f"{number(name, value)} {UNITS[name]}"


def number(name: str, value: float) -> str:
    """Return a quantity without its unit; never less than it is, so that who gives it as a budget meets it."""
    if not math.isfinite(value):
        return "endless"
    if name != "seconds":
        return f"{math.ceil(value * (1 - EDGE)):,}"
    digits = 6 - math.ceil(math.log10(value)) if value > 0 else 0
    return f"{math.ceil(value * 10**digits * (1 - EDGE)) / 10**digits:g}"


def layout_data(problem: LayoutProblem, chosen: Chosen, measured: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the JSON data of ``layout.json``; of it ``layout`` alone is what a given layout needs.

    measured: what the whole costs, where ``predicted`` is the sum over its blocks, and ``unchanged`` that of the model
    as it was.
    """
    return {
        "schema": SCHEMA,
        "layout": dict(chosen.layout),
        "row": row(problem.choices, chosen.layout),
        "letters": letters(kinds_of(problem.choices)),
        "budget": dict(problem.budget),
        "unchanged": problem.prices(problem.present).as_data(),
        "predicted": problem.prices(chosen.layout).as_data(),
        "measured": dict(measured),
        "prices": {c.block: {kind: p.as_data() for kind, p in c.options.items()} for c in problem.choices},
        **chosen.history,
    }


# ------------------------------------------------------------------ what was measured stays


class Remembered:
    """A loss whose answers are kept in a file, line by line: who asks again after a kill gets the same without work.

    count: how many were measured here.
    """

    def __init__(self, loss: Callable[[Layout], float], path: Path) -> None:
        self.loss, self.path, self.count = loss, path, 0
        self.known: dict[str, float] = {}
        for line in path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []:
            if line.endswith("\n"):  # else a kill tore it
                entry = json.loads(line)
                self.known[_key(entry["layout"])] = entry["loss"]
        if self.known:
            self._write("w", *({"layout": json.loads(key), "loss": loss} for key, loss in self.known.items()))

    def __call__(self, layout: Layout) -> float:
        """Return the loss of a layout, measured once."""
        key = _key(layout)
        if key not in self.known:
            self.known[key] = self.loss(layout)
            self.count += 1
            self._write("a", {"layout": dict(layout), "loss": self.known[key]})
        return self.known[key]

    def _write(self, mode: str, *entries: dict[str, Any]) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.writelines(f"{json.dumps(entry)}\n" for entry in entries)


def _key(layout: Layout) -> str:
    return json.dumps(dict(layout), sort_keys=True)
