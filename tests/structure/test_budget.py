"""From a budget to counts: costs by hand, exact against compaction, the paper's case at full size."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from dit_compress.denoiser import Denoiser
from dit_compress.errors import UserError
from dit_compress.measure import count_parameters
from dit_compress.plugins import installed
from dit_compress.recipe import make_part
from dit_compress.spec import ComponentSpec, Spec
from dit_compress.structure.budget import SLACK, Costs, allocate, costs
from dit_compress.structure.compact import compact
from dit_compress.testing.models import MODELS, tiny_denoiser

STEPS = {"block": 1, "head": 1, "ffn": 8}
HAND = Costs(total=1000, block=90, units={"block": 10, "head": 4, "ffn": 16}, cost={"head": 100, "ffn": 20})
"""Ten blocks of 90, of which a head costs 10 and a channel 2; 100 stand outside."""


def axes_of(denoiser: Denoiser) -> list[Any]:
    structure = denoiser.structure()
    levels = [make_part("granularity", name, installed()).build() for name in STEPS]
    return [axis for level in levels for axis in level.axes(structure)]


def prune(denoiser: Denoiser, removed: dict[str, int]) -> int:
    axes = axes_of(denoiser)
    compact(denoiser, axes, {axis.name: tuple(range(axis.units - removed[axis.level])) for axis in axes})
    return count_parameters(denoiser.module)


@cache
def paper_spec() -> Spec:
    part = make_part("model", {"use": "video_dit", "preset": "2b"}, installed())
    with torch.device("meta"):
        config = part.build().config_of(part.build().create())
    return Spec(denoiser=ComponentSpec("model", "video_dit", config))


def pruned(**options: Any) -> tuple[Denoiser, str]:
    part = make_part("prune", {"use": "trilevel", "search": "magnitude", **options}, installed())
    after = part.build().plan(paper_spec())
    return after.build_denoiser().to("meta"), after.notes[-1]


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("removed", "left"),
    [
        ({}, 1000),
        ({"block": 1}, 910),
        ({"head": 1}, 1000 - 10 * 10),
        ({"ffn": 3}, 1000 - 10 * 3 * 2),
        ({"block": 2, "head": 1, "ffn": 4}, 1000 - 2 * 90 - 8 * (10 + 8)),
    ],
)
def test_what_is_left_after_removing(removed: dict[str, int], left: int) -> None:
    assert HAND.after(removed) == left


def test_an_allocation_comes_near_the_papers_proportions() -> None:
    """Two of ten blocks, one of four heads, four of sixteen channels: 1000 - 2·90 - 8·(10 + 8) = 676.

    Three blocks, no head, four channels (674) would fit as well, and is far from 8/28 : 12/32 : 1/4.
    """
    assert allocate(HAND, {"block": 1, "head": 1, "ffn": 2}, 680) == {"block": 2, "head": 1, "ffn": 4}


def test_only_the_levels_that_may_be_cut_are_cut() -> None:
    assert allocate(HAND, {"block": 1}, 730) == {"block": 3, "head": 0}
    assert allocate(HAND, {"head": 1}, 800) == {"block": 0, "head": 2}


def test_channels_stay_a_multiple() -> None:
    removed = allocate(HAND, {"ffn": 4}, 920)
    assert removed["ffn"] == 4


def test_a_budget_that_can_not_be_met_names_the_nearest_that_can() -> None:
    with pytest.raises(UserError, match=r"within 1% of 950 parameters from below. The nearest .* is 910") as caught:
        allocate(HAND, {"block": 1}, 950)
    assert "910" in str(caught.value)
    assert HAND.after(allocate(HAND, {"block": 1}, 910)) == 910


@pytest.mark.parametrize(("budget", "nearest"), [(5, 132), (10**6, 1000)])
def test_a_budget_out_of_all_reach_names_the_smallest_or_the_whole(budget: int, nearest: int) -> None:
    """All but one block, one head and two channels: 100 + 90 - 3·10 - 14·2 = 132."""
    with pytest.raises(UserError, match=rf"The nearest that can be met is {nearest:,}$"):
        allocate(HAND, {"block": 1, "head": 1, "ffn": 2}, budget)


# ------------------------------------------------------------------ against real models


@pytest.mark.parametrize("name", MODELS)
def test_predicted_costs_are_those_of_the_compacted_model(name: str) -> None:
    denoiser = tiny_denoiser(name)
    predicted = costs(denoiser.module, axes_of(denoiser), 3)
    assert predicted.total == count_parameters(denoiser.module)
    removed = {"block": 1, "head": 2, "ffn": 24}
    assert prune(denoiser, removed) == predicted.after(removed)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.85, 0.7, 0.55])
def test_a_budget_is_met_within_one_percent_from_below(name: str, share: float) -> None:
    denoiser = tiny_denoiser(name)
    predicted = costs(denoiser.module, axes_of(denoiser), 3)
    budget = round(share * predicted.total)
    try:
        removed = allocate(predicted, {**STEPS, "ffn": 1}, budget)
    except UserError as error:
        budget = int(str(error).rsplit(" ", 1)[-1].replace(",", ""))
        removed = allocate(predicted, {**STEPS, "ffn": 1}, budget)
    assert SLACK * budget <= prune(denoiser, removed) <= budget


# ------------------------------------------------------------------ the paper


def test_the_papers_counts() -> None:
    """28 blocks, 32 heads, 8192 channels → 20, 20, 6144: 1,923M → 966M."""
    denoiser, note = pruned(levels={"block": {"remove": 8}, "head": {"remove": 12}, "ffn": {"keep": 0.75}})
    structure = denoiser.structure()
    assert structure.main.length == 20
    assert {attention.heads for attention in structure.attentions} == {20}
    assert {feed_forward.width for feed_forward in structure.feed_forwards} == {6144}
    assert round(count_parameters(denoiser.module) / 1e6) == 966
    assert note == "1,923M → 966M parameters"


def test_the_papers_budget() -> None:
    """Under 1B, within 1%, by counts near those of the paper."""
    denoiser, _ = pruned(budget={"params": 10**9})
    structure = denoiser.structure()
    assert 0.99e9 <= count_parameters(denoiser.module) <= 1e9
    assert abs(structure.main.length - 20) <= 2
    assert abs(structure.attentions[0].heads - 20) <= 3
    width = structure.feed_forwards[0].width
    assert width % 8 == 0
    assert abs(width - 6144) <= 1024


def test_a_limit_is_checked_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"the pruned model has 1,\d+,\d+,\d+ parameters, the limit is 1,000,000,000"):
        pruned(levels={"block": {"remove": 8}}, limit={"params": 10**9})
