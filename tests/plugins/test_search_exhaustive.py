"""Exhaustive search: every choice once, the true optimum, a clear word where there are too many."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from planted import USELESS_BLOCK, USELESS_HEADS, latents_in, planted, problem_of, search

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.parts import parts_of
from dit_compress.search.problem import SearchProblem
from dit_compress.search.trial import trial
from dit_compress.testing.models import tiny_denoiser
from dit_compress_plugins.search_exhaustive.search import choices, num_choices, symmetric_sum

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser


def small(denoiser: Denoiser) -> SearchProblem:
    """Two of three blocks, three of four heads of every self-attention: 3 · 4² = 48 choices."""
    whole = problem_of(denoiser)
    axes = tuple(axis for axis in whole.axes if axis.level == "block" or axis.name.endswith("attn1"))
    return SearchProblem(denoiser, axes, {axis.name: whole.keep[axis.name] for axis in axes})


def test_a_sum_of_products_by_hand() -> None:
    """2·3 + 2·5 + 3·5 = 31."""
    assert symmetric_sum([2, 3, 5], 2) == 31
    assert symmetric_sum([4], 1) == 4
    assert symmetric_sum([7, 9], 0) == 1


def test_every_choice_once_and_counted() -> None:
    problem = small(tiny_denoiser("video_dit"))
    parts = {axis.name: parts_of(problem, axis) for axis in problem.axes}
    listed = list(choices(problem, parts))
    assert num_choices(problem, parts) == len(listed) == 48
    assert len({tuple(sorted(kept.items())) for kept in listed}) == 48
    for kept in listed:
        assert {name: len(units) for name, units in kept.items()} == dict(problem.keep)


def test_it_is_the_best_of_all_by_an_independent_loop(tmp_path: Path) -> None:
    problem = small(tiny_denoiser("video_dit"))
    part = make_part("search", {"use": "exhaustive", "batches": 1, "batch": 4}, installed())
    selection = part.build().search(problem, latents_in(tmp_path / "a"))
    with trial(problem, latents_in(tmp_path / "b"), part.options.objective, part.options) as measured:
        losses = []
        for blocks in combinations(range(3), 2):
            for first in combinations(range(4), 3):
                for second in combinations(range(4), 3):
                    heads = dict(zip(blocks, (first, second), strict=True))
                    kept = {"block:transformer_blocks": blocks}
                    kept |= {f"head:transformer_blocks.{index}.attn1": units for index, units in heads.items()}
                    losses.append((measured.loss(kept), kept))
    best = min(losses, key=lambda pair: pair[0])
    assert selection.history["best"] == best[0]
    assert selection.history["worst"] == max(losses, key=lambda pair: pair[0])[0]
    assert {name: selection.kept[name] for name in best[1]} == best[1]


def test_it_finds_what_is_planted(tmp_path: Path) -> None:
    kept = search(tmp_path, small(planted()), "exhaustive", batches=1).kept
    assert kept["block:transformer_blocks"] == tuple(index for index in range(3) if index != USELESS_BLOCK)
    for index, head in USELESS_HEADS.items():
        assert kept[f"head:transformer_blocks.{index}.attn1"] == tuple(unit for unit in range(4) if unit != head)


def test_too_many_choices_are_counted_and_refused_at_once(tmp_path: Path) -> None:
    """Two of three blocks; in each, 4 · 4 heads and C(8, 6) = 28 ways with the channels: 3 · 448²."""
    problem = problem_of(tiny_denoiser("video_dit"))
    assert 3 * (4 * 4 * math.comb(8, 6)) ** 2 == 602_112
    with pytest.raises(UserError, match=r"there are 602,112 choices, 'most' is 10,000. Remove fewer units"):
        search(tmp_path, problem, "exhaustive")
