"""Layouts: the programme is held against enumeration, and what was measured survives a kill."""

from __future__ import annotations

import math
import random

import pytest

from dit_compress.core.errors import UserError
from dit_compress.structure.choices import (
    Choice,
    LayoutProblem,
    Prices,
    Remembered,
    amount,
    every,
    legend,
    letters,
    row,
)
from dit_compress.structure.programme import best

KINDS = ("full", "linconv", "stride")
SINGLE, SEVERAL = ("params", "flops", "seconds", "memory"), ("params", "seconds", "memory")


def by_hand(budget: float) -> tuple[LayoutProblem, dict]:
    """Six blocks: linconv saves 1 of 3 for a loss of b, stride saves 2 for 3b, b = 1 … 6."""
    options = {kind: Prices(params=params) for kind, params in zip(KINDS, (3, 2, 1), strict=True)}
    choices = tuple(Choice(f"blocks.{index}", options) for index in range(6))
    scores = {f"blocks.{b - 1}": {"full": 0.0, "linconv": float(b), "stride": 3.0 * b} for b in range(1, 7)}
    return LayoutProblem(choices, {"params": budget}), scores


def drawn(seed: int, names: tuple[str, ...]) -> tuple[LayoutProblem, dict]:
    """Six blocks that differ in every price, or are alike; budgets that a third to two thirds of the layouts meet."""
    rng = random.Random(seed)

    def prices() -> Prices:
        whole = [rng.randint(50, 100) for _ in range(4)]
        return Prices(whole[0], whole[1] * 1e6, rng.random() * 1e-3, whole[2], 4 * whole[3])

    alike = {kind: prices() for kind in KINDS}
    choices = tuple(Choice(f"b{i}", alike if seed % 2 else {kind: prices() for kind in KINDS}) for i in range(6))
    free = LayoutProblem(choices, {}, rest=Prices(10, 1e6, 1e-4, 100, 200))
    found = {name: sorted(getattr(free.prices(layout), name) for layout in every(choices)) for name in names}
    budget = {name: values[round(len(values) * rng.uniform(0.3, 0.7))] for name, values in found.items()}
    scores = {c.block: {kind: rng.random() if kind != "full" else 0.0 for kind in KINDS} for c in choices}
    return LayoutProblem(choices, budget, rest=free.rest), scores


def score(scores: dict, layout: dict) -> float:
    return sum(scores[block][kind] for block, kind in layout.items())


@pytest.mark.parametrize("names", [*((name,) for name in SINGLE), SEVERAL], ids="-".join)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_programme_equals_the_enumeration_of_all_layouts(seed: int, names: tuple[str, ...]) -> None:
    problem, scores = drawn(seed, names)
    fitting = [layout for layout in every(problem.choices) if problem.fits(layout)]
    assert 0 < len(fitting) < 3**6
    found = best(problem, scores)
    assert all(problem.fits(each.layout) for each in found)
    assert score(scores, found[0].layout) == min(score(scores, layout) for layout in fitting)
    if names in {("params",), ("flops",)}:
        points = {(getattr(problem.prices(layout), names[0]), score(scores, layout)) for layout in fitting}
        front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
        assert {(getattr(problem.prices(x.layout), names[0]), score(scores, x.layout)) for x in found} == front


def test_a_saving_of_three_is_found_as_worked_by_hand() -> None:
    """Stride in block 1 (2 for 3) and linconv in block 2 (1 for 2): 5; linconv in blocks 1, 2, 3 would be 6."""
    problem, scores = by_hand(15)
    first = best(problem, scores)[0]
    assert (row(problem.choices, first.layout), first.history["score"]) == ("SLFFFF", 5.0)
    assert legend(problem.choices, first.layout) == "SLFFFF (F full, L linconv, S stride)"


def test_a_budget_that_nothing_meets_names_the_nearest() -> None:
    problem, scores = by_hand(5)
    with pytest.raises(UserError) as caught:
        best(problem, scores)
    assert str(caught.value) == (
        "no layout comes within the budget of 5 params; the nearest, SSSSSS, takes 6 params. "
        "Raise the budget to that, or offer cheaper kinds"
    )


def test_more_partial_layouts_than_may_be_held_are_an_error() -> None:
    problem, scores = drawn(0, ("params",))
    with pytest.raises(UserError, match="partial layouts differ in price and score at 'b"):
        best(problem, scores, most=2)


def test_what_memory_does_not_hold_is_never_chosen() -> None:
    """Not even where it costs least, and no budget speaks of seconds."""
    options = {"full": Prices(4), "stride": Prices(2, seconds=math.inf), "linconv": Prices(3)}
    problem = LayoutProblem((Choice("a", options), Choice("b", options)), {"params": 6})
    scores = {block: {"full": 0.0, "stride": 0.0, "linconv": 1.0} for block in "ab"}
    assert [each.layout for each in best(problem, scores)] == [{"a": "linconv", "b": "linconv"}]
    assert not problem.fits({"a": "stride", "b": "stride"})


def test_working_memory_is_the_most_of_any_block_and_weights_add() -> None:
    total = Prices(held=10, working=5) + Prices(held=20, working=7) + Prices(held=1, working=6)
    assert (total.held, total.working, total.memory) == (31, 7, 38)


def test_letters_are_the_first_that_no_other_kind_has() -> None:
    assert letters(["full", "stride", "sparse", "fast"]) == {"full": "F", "stride": "S", "sparse": "P", "fast": "A"}


def test_a_loss_is_remembered_and_a_torn_line_is_measured_again(tmp_path) -> None:
    asked = []
    file = tmp_path / "trials.jsonl"

    def loss(layout: dict) -> float:
        asked.append(layout)
        return 0.1 + len(asked) / 3

    first = Remembered(loss, file)
    values = [first({"a": "full"}), first({"a": "stride"}), first({"a": "full"})]
    assert (values[0], len(asked)) == (values[2], 2)
    text = file.read_text("utf-8")
    file.write_text(text[:-9], "utf-8")
    again = Remembered(loss, file)
    assert again({"a": "full"}) == values[0]
    assert again.count == 0
    again({"a": "stride"})
    assert (again.count, len(asked)) == (1, 3)
    assert len(file.read_text("utf-8").splitlines()) == 2


def test_amounts_are_never_less_than_they_are() -> None:
    """Who gives the nearest layout's amount as the budget shall meet it."""
    assert amount("flops", 18636834) == "18,636,834 flops"
    assert amount("memory", 1234567.5) == "1,234,568 bytes of memory"
    assert amount("seconds", 0.0123456111) == "0.0123457 seconds"
    assert amount("seconds", 0.3) == "0.3 seconds"
    assert amount("seconds", math.inf) == "endless seconds"
