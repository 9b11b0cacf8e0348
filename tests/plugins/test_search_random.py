"""Random search: exact counts, repeatable, every unit as likely."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dit_compress.plugin.registry import Registry, installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.structure.facts import Axis

AXES = (Axis("head:a", "head", 8, "blocks"), Axis("head:b", "head", 8, "blocks"), Axis("ffn:a", "ffn", 16, "blocks"))
KEEP = {"head:a": 5, "head:b": 5, "ffn:a": 16}


def search(seed: int) -> dict[str, tuple[int, ...]]:
    context: Any = SimpleNamespace(seed=seed)
    problem = SearchProblem(None, AXES, KEEP)  # type: ignore[arg-type]  # it needs no model
    return make_part("search", "random", installed()).build().search(problem, context).kept


def test_counts_are_exact_and_units_ascend() -> None:
    kept = search(0)
    assert {name: len(units) for name, units in kept.items()} == KEEP
    assert all(list(units) == sorted(set(units)) for units in kept.values())
    assert kept["ffn:a"] == tuple(range(16))


def test_the_seed_decides() -> None:
    assert search(0) == search(0)
    assert search(0) != search(1)


def test_axes_are_drawn_independently() -> None:
    assert any(search(seed)["head:a"] != search(seed)["head:b"] for seed in range(3))


def test_every_unit_is_as_likely() -> None:
    """5 of 8 over 400 seeds: 250 times each, with a standard deviation of 9.7."""
    counts = [0] * 8
    for seed in range(400):
        for unit in search(seed)["head:a"]:
            counts[unit] += 1
    assert counts == pytest.approx([250] * 8, abs=40)


def test_the_plugin_is_found_again_after_its_code_was_imported() -> None:
    """Importing ``search.py`` puts the module where the package's hook ``search`` stood."""
    make_part("search", "random", installed()).build()
    found = Registry.discover()
    assert found.get("search", "random").name == "random"
    assert [broken for broken in found.broken if broken.distribution == "dit-compress"] == []
