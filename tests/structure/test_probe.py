"""Runs of entries: regular patterns are continued with few looks, and only where every run fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dit_compress.structure.observe.probe import gallop, merged

if TYPE_CHECKING:
    from collections.abc import Callable

    from dit_compress.structure.observe.probe import Effect

KEY = ("out.weight", (1,))
NUM_RUNS, LENGTH = 32, 8


def regular() -> list[set[int]]:
    """The columns that each head's rows change: those of the head."""
    return [set(range(n * LENGTH, (n + 1) * LENGTH)) for n in range(NUM_RUNS)]


def seen(columns: list[set[int]]) -> tuple[Callable[..., Effect], list[int]]:
    """What entries change together, and how many were asked for at once, each time."""
    looks: list[int] = []

    def effect(*entries: int) -> Effect:
        looks.append(len(entries))
        return {KEY: frozenset().union(*(columns[entry // LENGTH] for entry in entries))}

    return effect, looks


def test_a_pattern_is_continued_with_few_looks() -> None:
    effect, looks = seen(regular())
    runs = list(gallop(NUM_RUNS * LENGTH, effect))
    assert [(run.start, run.stop) for run in runs] == [(n * LENGTH, (n + 1) * LENGTH) for n in range(NUM_RUNS)]
    assert [run.effect for run in runs] == [{KEY: frozenset(columns)} for columns in regular()]
    assert len(looks) < 2 * NUM_RUNS


@pytest.mark.parametrize("deviation", ["swapped", "rotated", "more", "less", "twice"])
def test_a_run_that_deviates_inside_a_pattern_is_found(deviation: str) -> None:
    columns = regular()
    if deviation == "swapped":
        columns[10], columns[11] = columns[11], columns[10]
    elif deviation == "rotated":
        columns[9], columns[17], columns[30] = columns[17], columns[30], columns[9]
    elif deviation == "more":
        columns[17] = columns[17] | {3}
    elif deviation == "less":
        columns[20] = set(list(columns[20])[1:])
    else:
        columns[13] = columns[12]
    effect, _ = seen(columns)
    size = NUM_RUNS * LENGTH
    runs = list(gallop(size, effect))
    assert [merged(runs, [entry]) for entry in range(size)] == [effect(entry) for entry in range(size)]
