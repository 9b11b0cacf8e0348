"""Greedy search: planted useless units go first and free of charge; it does what a straightforward loop does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from planted import USELESS_BLOCK, USELESS_CHANNELS, USELESS_HEADS, latents_in, planted, problem_of, search

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.search.removal import Removal
from dit_compress.search.trial import trial
from dit_compress.testing.models import tiny_denoiser

if TYPE_CHECKING:
    from pathlib import Path


def test_planted_useless_units_go_and_cost_nothing(tmp_path: Path) -> None:
    selection = search(tmp_path, problem_of(planted()), "greedy", batches=1)
    kept = selection.kept
    assert kept["block:transformer_blocks"] == tuple(index for index in range(3) if index != USELESS_BLOCK)
    for index, head in USELESS_HEADS.items():
        assert kept[f"head:transformer_blocks.{index}.attn1"] == tuple(unit for unit in range(4) if unit != head)
        assert set(range(64)) - set(kept[f"ffn:transformer_blocks.{index}.ff"]) == set(USELESS_CHANNELS[index])
    assert max(step["loss"] for step in selection.history["removed"]) < 1e-9
    assert {name: len(units) for name, units in kept.items()} == dict(problem_of(planted()).keep)


def test_it_is_the_straightforward_loop(tmp_path: Path) -> None:
    """One axis of four heads, two to keep: six losses first, then the rest, each time the least."""
    whole = problem_of(tiny_denoiser("video_dit"))
    axes = tuple(axis for axis in whole.axes if axis.level == "head")[:2]
    problem = SearchProblem(whole.denoiser, axes, {axes[0].name: 2, axes[1].name: 3})
    part = make_part("search", {"use": "greedy", "batches": 1, "batch": 4}, installed())
    selection = part.build().search(problem, latents_in(tmp_path / "a"))
    with trial(problem, latents_in(tmp_path / "b"), part.options.objective, part.options) as measured:
        kept = {axis.name: tuple(range(4)) for axis in axes}
        for _ in range(3):
            options = [
                {**kept, name: tuple(unit for unit in units if unit != gone)}
                for name, units in kept.items()
                if len(units) > problem.keep[name]
                for gone in units
            ]
            kept = min(options, key=measured.loss)
    assert selection.kept == kept


def test_scores_are_losses_in_the_order_of_removal() -> None:
    """Four units, two to go: 1 at a loss of 5, then 3 at 4, which counts as 5; what stays is 2 and 4 above that."""
    losses = {(1,): 5.0, (0,): 6, (2,): 8, (3,): 7, (1, 3): 4, (0, 1): 6, (1, 2): 8}
    axis = problem_of(tiny_denoiser("video_dit")).axes[1]
    removal = Removal({axis.name: ((0,), (1,), (2,), (3,))}, {axis.name: 2}, {})
    removal.run([axis], lambda kept: losses[tuple(sorted({0, 1, 2, 3} - set(kept[axis.name])))])
    assert removal.kept() == {axis.name: (0, 2)}
    assert removal.scores() == {axis.name: [7, 5, 9, 5]}
    pairs = Removal({axis.name: ((0, 3), (1, 2))}, {axis.name: 2}, {})
    pairs.run([axis], lambda kept: float(0 in kept[axis.name]))
    assert pairs.scores() == {axis.name: [0, 1, 1, 0]}
    assert Removal({axis.name: ((0, 3), (1, 2))}, {axis.name: 4}, {}).scores() == {}


def test_several_at_once_measure_less(tmp_path: Path) -> None:
    one, four = (
        search(tmp_path / str(count), problem_of(planted()), "greedy", batches=1, at_once=count) for count in (1, 4)
    )
    assert four.history["losses_measured"] < one.history["losses_measured"] / 2
    assert {name: len(units) for name, units in four.kept.items()} == dict(problem_of(planted()).keep)


def test_counts_are_exact_where_parts_do_not_divide_them(tmp_path: Path) -> None:
    problem = problem_of(planted())
    keep = {name: 43 if name.startswith("ffn") else count for name, count in problem.keep.items()}
    odd = SearchProblem(problem.denoiser, problem.axes, keep, problem.num_parts)
    kept = search(tmp_path, odd, "greedy", batches=1, at_once=8).kept
    assert {name: len(units) for name, units in kept.items()} == keep


def test_too_many_losses_are_an_error_before_any_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would measure up to [\d,]+ losses, 'most' is 10. Raise 'at_once' or 'most'"):
        search(tmp_path, problem_of(planted()), "greedy", most=10)


def test_a_plan_says_so_without_weights() -> None:
    whole = problem_of(planted())
    problem = replace(whole, denoiser=whole.denoiser.to("meta"))
    mixed = {"use": "mixed", "blocks": {"use": "greedy", "most": 1}}
    groupwise = {"use": "groupwise", "init": mixed, "lora": None, "objective": "flow"}
    for given in ({"use": "greedy", "most": 10}, mixed, groupwise):
        asked = make_part("search", given, installed()).build()
        with pytest.raises(UserError, match=r"would measure up to [\d,]+ losses, 'most' is 10?\."):
            asked.check(problem, settled=True)
        asked.check(problem, settled=False)
    make_part("search", {"use": "greedy"}, installed()).build().check(problem, settled=True)
    uneven = replace(problem, num_parts={"ffn": 7})
    with pytest.raises(UserError, match="64 units can't be cut into 7 equal parts"):
        make_part("search", {"use": "greedy"}, installed()).build().check(uneven, settled=False)
