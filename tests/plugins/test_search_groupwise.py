"""Learned binary masks: candidates and schedules by hand, and a search that finds what was planted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from planted import USELESS_BLOCK, USELESS_CHANNELS, USELESS_HEADS, latents_in, planted, problem_of
from planted import search as planted_search
from torch import nn
from toy import part, tiny_bundle

import dit_compress_plugins.search_groupwise as package
import dit_compress_plugins.search_groupwise.search as groupwise
from dit_compress.core.errors import UserError
from dit_compress.core.randomness import Streams
from dit_compress.plugin.options import Options, Part, Plugin
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.run.keys import Node
from dit_compress.search.importance import magnitude, top
from dit_compress.search.problem import Search, SearchProblem, Selection
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train import memory
from dit_compress_plugins.search_groupwise import compare
from dit_compress_plugins.search_groupwise.candidates import (
    candidate_rows,
    cut_axis,
    first_logits,
    gumbel_from,
    share_out,
    share_span,
    straight_through,
    temperature_at,
)
from dit_compress_plugins.search_groupwise.search import spread
from dit_compress_plugins.search_groupwise.start import unit_scores

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.slow(20)

# ------------------------------------------------------------------ candidates


@pytest.mark.parametrize(("size", "keep", "count"), [(7, 5, 21), (8, 5, 56), (4, 3, 4), (3, 3, 1), (3, 0, 1)])
def test_candidates_are_all_ways_to_keep_n(size: int, keep: int, count: int) -> None:
    rows = candidate_rows(tuple(range(2, 2 + size)), keep, size + 3)
    assert rows.shape == (count, size + 3)
    assert rows[:, 2 : 2 + size].sum(dim=1).tolist() == [keep] * count
    assert rows[:, [0, 1, -1]].sum() == 0
    assert len({tuple(row) for row in rows.tolist()}) == count


@pytest.mark.parametrize(
    ("total", "sizes", "shares"),
    [
        (20, [7, 7, 7, 7], (5, 5, 5, 5)),
        (20, [8, 8, 8, 8], (5, 5, 5, 5)),
        (5, [2, 2, 2], (2, 2, 1)),
        (7, [3, 4, 3], (2, 3, 2)),
        (10, [3, 4, 3], (3, 4, 3)),
        (1, [1, 1], (1, 0)),
    ],
)
def test_counts_are_shared_out_exactly(total: int, sizes: list[int], shares: tuple[int, ...]) -> None:
    """Where no part is worth more than another, the shares are those of the sizes, however far they may move."""
    alike = [[1.0] * size for size in sizes]
    assert [share_out(total, alike, bound) for bound in range(3)] == [shares] * 3


@pytest.mark.parametrize(
    ("total", "scores", "bound", "shares"),
    [
        # 5 of 6: the one that goes is the cheapest of all (1), not one of a group that stands last.
        (5, [[9, 8], [7, 1], [5, 4]], 0, (2, 1, 2)),
        (5, [[9, 1], [7, 2], [5, 4]], 0, (1, 2, 2)),
        # 4 of 6, an equal share of 2: the two cheapest (1, 2) stand in one group, which a bound of 1 lets go.
        (4, [[9, 1, 2], [8, 7, 6]], 0, (2, 2)),
        (4, [[9, 1, 2], [8, 7, 6]], 1, (1, 3)),
        # 4 of 8: all of the second is worth more; each bound lets one more follow.
        (4, [[1, 2, 3, 4], [8, 7, 6, 5]], 1, (1, 3)),
        (4, [[1, 2, 3, 4], [8, 7, 6, 5]], 2, (0, 4)),
        (4, [[1, 2, 3, 4], [8, 7, 6, 5]], 9, (0, 4)),
    ],
)
def test_counts_follow_the_scores_within_a_bound(
    total: int, scores: list[list[float]], bound: int, shares: tuple[int, ...]
) -> None:
    assert share_out(total, scores, bound) == shares


def test_every_unit_may_go_wherever_the_remainder_falls() -> None:
    """7 of 8 in two groups: whichever is the cheapest, its group is the one that gives it."""
    for cheapest in range(8):
        scores = [float(unit != cheapest) for unit in range(8)]
        cut = cut_axis(scores, 7, 8, 2, "head:x")
        assert cut.keep == ((3, 4) if cheapest < 4 else (4, 3))


def test_no_bound_leads_to_too_many_candidates() -> None:
    """Of 11, three have C(11, 3) = 165 candidates and four would have 330; equal shares are left to the caller."""
    assert share_span(11, 3, 11, 0) == (3, 3)
    assert share_span(11, 3, 11, 2) == (1, 3)
    assert share_span(22, 40, 44, 1) == (20, 21)
    assert share_span(4, 5, 8, 1) == (1, 4)


def test_first_logits_by_hand() -> None:
    """Keeping two of 1, 2, 6 is worth 3, 7, 8: less their mean 6 and over their deviation, the root of 14 / 3."""
    rows = candidate_rows((0, 1, 2), 2, 3)
    spread_of = math.sqrt(14 / 3)
    expected = [0.5 * value / spread_of for value in (-3, 1, 2)]
    assert first_logits(rows, (1.0, 2.0, 6.0), 0.5).tolist() == pytest.approx(expected)
    assert first_logits(rows, (2.0, 2.0, 2.0), 0.5).tolist() == [0, 0, 0]
    assert first_logits(candidate_rows((0, 1), 2, 2), (1.0, 2.0), 0.5).tolist() == [0]


def test_blocks_are_cut_into_neighbours() -> None:
    cut = cut_axis([1.0] * 7, 5, 7, 3, "block:x")
    assert cut.groups == ((0, 1), (2, 3, 4), (5, 6))
    assert cut.parts == tuple((index,) for index in range(7))
    assert sum(cut.keep) == 5


def test_the_papers_groups() -> None:
    """28 blocks in 4 groups: 21 candidates each; 32 heads in 4 groups keeping 20: 56 each."""
    blocks, heads = (cut_axis([1.0] * units, 20, units, 4, "x") for units in (28, 32))
    assert [len(blocks.candidates(group)) for group in range(4)] == [21] * 4
    assert [len(heads.candidates(group)) for group in range(4)] == [56] * 4


BY_UNIT = [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 2.0, 1.0]
"""Scores by which the units 5, 4, 3, 2, 1, 0, 6, 7 follow each other."""


def test_channels_are_cut_by_importance_and_every_group_sees_the_whole_range() -> None:
    cut = cut_axis(BY_UNIT, 6, 4, 2, "ffn:x")
    assert cut.parts == ((4, 5), (2, 3), (0, 1), (6, 7))
    assert cut.scores == (15, 11, 7, 3)
    assert cut.groups == ((0, 2), (1, 3))
    assert cut.keep == (2, 1)


def test_too_many_candidates_and_uneven_parts_are_errors() -> None:
    with pytest.raises(UserError, match="head:x: a group of 16 keeping 8 has 12870 candidates. Use more groups"):
        cut_axis([1.0] * 16, 8, 16, 1, "head:x")
    with pytest.raises(UserError, match="ffn:x: 10 units can't be cut into 4 equal parts. Choose a divisor of 10"):
        cut_axis([1.0] * 10, 8, 4, 1, "ffn:x")


@pytest.mark.parametrize(
    ("parts", "keep", "count"), [(8, 4, 1), (10, 5, 1), (11, 5, 2), (16, 8, 2), (32, 20, 4), (5, 5, 1)]
)
def test_levels_without_a_number_get_the_fewest_groups(parts: int, keep: int, count: int) -> None:
    """C(10, 5) = 252 candidates may be; C(11, 5) = 462 may not. 32 keeping 20: C(8, 5) = 56 in four groups."""
    cut = cut_axis([1.0] * parts, keep, parts, None, "x")
    assert len(cut.groups) == count
    assert max(math.comb(len(group), kept) for group, kept in zip(cut.groups, cut.keep, strict=True)) <= 256


def test_a_mask_over_parts_reaches_their_units() -> None:
    cut = cut_axis(BY_UNIT, 6, 4, 2, "ffn:x")
    assert spread(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), cut).tolist() == [[3, 3, 2, 2, 1, 1, 4, 4]]


# ------------------------------------------------------------------ Gumbel-softmax


def test_gumbel_noise_by_hand() -> None:
    """-log(-log u): 0 at 1/e, -log(log 2) at 1/2; finite at 0."""
    found = gumbel_from(torch.tensor([math.exp(-1), 0.5, 0.0]))
    assert found[:2].tolist() == pytest.approx([0.0, -math.log(math.log(2))], abs=1e-6)
    assert torch.isfinite(found).all()


def test_forward_is_one_hot_at_the_largest_perturbed_logit() -> None:
    logits, gumbel = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    found = straight_through(logits, gumbel, 0.7)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), rtol=0, atol=1e-6)


def test_backward_is_that_of_the_softmax() -> None:
    gumbel, weights = torch.randn(5, 4), torch.randn(5, 4)
    hard, soft = (torch.randn(4, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    (straight_through(hard, gumbel, 0.7) * weights).sum().backward()
    (torch.softmax((soft + gumbel) / 0.7, dim=-1) * weights).sum().backward()
    assert hard.grad is not None
    assert soft.grad is not None
    assert float(soft.grad.abs().max()) > 0
    torch.testing.assert_close(hard.grad, soft.grad)


def test_draws_follow_the_softmax_of_the_logits() -> None:
    """Gumbel-max: an argmax of logits + Gumbel noise is a draw from softmax(logits) = 1/2, 1/3, 1/6."""
    logits = torch.log(torch.tensor([3.0, 2.0, 1.0]))
    gumbel = gumbel_from(Streams(0, 0, range(3000)).uniform("g", (3,)))
    assert straight_through(logits, gumbel, 1.0).mean(dim=0).tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.03)


def test_the_temperature_falls_geometrically() -> None:
    assert [temperature_at(step, 3, 4.0, 0.25) for step in range(3)] == pytest.approx([4.0, 1.0, 0.25])
    assert temperature_at(0, 1, 4.0, 0.25) == 4.0


# ------------------------------------------------------------------ the whole search


def search(folder: Path, problem: SearchProblem, **options: Any) -> Selection:
    """From noise, the weights frozen, unless the options say more."""
    return planted_search(
        folder, problem, "groupwise", **{"lr": 0.3, "init": None, "lora": None, "compare": None, **options}
    )


def test_it_finds_the_planted_block_heads_and_channels(tmp_path: Path) -> None:
    problem = problem_of(planted())
    before = {key: value.clone() for key, value in problem.denoiser.state_dict().items()}
    groups = {"block": 1, "head": 1, "ffn": 2}
    selection = search(tmp_path, problem, steps=120, groups=groups)
    kept = selection.kept
    assert kept["block:transformer_blocks"] == (0, 2)
    for index, head in USELESS_HEADS.items():
        for attention in ("attn1", "attn2"):
            assert kept[f"head:transformer_blocks.{index}.{attention}"] == tuple(h for h in range(4) if h != head)
        gone = set(range(64)) - set(kept[f"ffn:transformer_blocks.{index}.ff"])
        assert gone == set(USELESS_CHANNELS[index])
    assert all(torch.equal(value, before[key]) for key, value in problem.denoiser.state_dict().items())


def test_the_report_sees_the_probabilities_move(tmp_path: Path) -> None:
    selection = search(tmp_path, problem_of(planted()), steps=30, groups={"block": 1, "head": 1, "ffn": 2})
    rows = selection.history["probabilities"]
    blocks = [row["keep"]["block:transformer_blocks"] for row in rows]
    assert [row["step"] for row in rows] == list(range(30))
    assert blocks[0] == pytest.approx([2 / 3] * 3, abs=0.02)
    assert blocks[-1][USELESS_BLOCK] < 0.2
    assert sum(blocks[-1]) == pytest.approx(2, abs=1e-5)


def test_counts_are_exact_where_parts_do_not_divide_them(tmp_path: Path) -> None:
    """Keeping 43 of 64 channels in parts of 8: five parts, and the three best channels of the rest."""
    problem = problem_of(planted())
    keep = {name: 43 if name.startswith("ffn") else count for name, count in problem.keep.items()}
    odd = SearchProblem(problem.denoiser, problem.axes, keep, problem.num_parts)
    kept = search(tmp_path, odd, steps=2, groups={"block": 1, "head": 1, "ffn": 2}).kept
    assert {name: len(units) for name, units in kept.items()} == keep


# ------------------------------------------------------------------ from another search


class Fixed(Search):
    """A search that gives what a test has settled."""

    selection: Selection

    def __init__(self, options: Options) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Any) -> Selection:
        return Fixed.selection


def found_by(scores: dict[str, Any], problem: SearchProblem) -> Selection:
    """What a search gives that ranks by these scores."""
    kept = {axis.name: top(torch.tensor(scores[axis.name]), problem.keep[axis.name]) for axis in problem.axes}
    return Selection(kept, {"scores": scores})


def scored(problem: SearchProblem, *, right: bool) -> dict[str, Any]:
    """Scores of every unit of a planted model: 1 where it is of use and 0 where not, or the other way round."""
    scores = {}
    for axis in problem.axes:
        useless: Any = {USELESS_BLOCK} if axis.blocks else ()
        if axis.block in USELESS_HEADS:
            useless = {USELESS_HEADS[axis.block]} if axis.level == "head" else USELESS_CHANNELS[axis.block]
        scores[axis.name] = [float((unit not in useless) == right) for unit in range(axis.units)]
    return scores


def search_from(folder: Path, problem: SearchProblem, selection: Selection, **options: Any) -> Selection:
    """Begin from what a search gave."""
    Fixed.selection = selection
    plain = make_part("search", {"use": "groupwise", "batch": 4, "objective": "affine", **options}, installed())
    given = {
        "objective": Part("distill", Plugin("copy", Options, "planted:Copy"), Options()),
        "init": Part("search", Plugin("fixed", Options, f"{__name__}:Fixed"), Options()),
    }
    part = Part("search", plain.plugin, plain.options.model_copy(update=given))
    return part.build().search(problem, latents_in(folder))


ONE_GROUP = {"block": 1, "head": 1, "ffn": 2}


def test_an_optimal_start_is_kept(tmp_path: Path) -> None:
    """After one step of a small rate the first logits decide, and their best candidates are the start's choice."""
    problem = problem_of(planted())
    start = found_by(scored(problem, right=True), problem)
    found = search_from(tmp_path, problem, start, steps=1, lr=1e-3, groups=ONE_GROUP)
    assert found.kept == start.kept
    assert found.history["comparison"] == {"start": "fixed", "kept": "start", "same": True}


def test_an_optimal_start_is_kept_over_a_whole_search(tmp_path: Path) -> None:
    """Of blocks and heads there is one best choice; block 1 does nothing, whichever of its units stay."""
    problem = problem_of(planted())
    start = found_by(scored(problem, right=True), problem)
    found = search_from(tmp_path, problem, start, steps=40, lr=0.3, groups=ONE_GROUP, lora=None)
    for axis in problem.axes:
        if axis.block != USELESS_BLOCK:
            assert found.kept[axis.name] == start.kept[axis.name]


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_wrong_start_is_overcome(tmp_path: Path, lora: dict[str, int] | None) -> None:
    """It would keep the block that does nothing, and heads and channels that reach no output.

    The other heads of the cross-attentions change the loss by less than 1e-8; LoRA makes up for a head.
    """
    problem = problem_of(planted())
    start = found_by(scored(problem, right=False), problem)
    assert USELESS_BLOCK in start.kept["block:transformer_blocks"]
    more = {"lora": lora, "compare": {"batches": 1, "batch": 4}}
    found = search_from(tmp_path, problem, start, steps=200, lr=0.2, groups=ONE_GROUP, **more)
    assert found.kept["block:transformer_blocks"] == (0, 2)
    for index, head in USELESS_HEADS.items() if lora is None else ():
        assert found.kept[f"head:transformer_blocks.{index}.attn1"] == tuple(h for h in range(4) if h != head)
        assert set(range(64)) - set(found.kept[f"ffn:transformer_blocks.{index}.ff"]) == set(USELESS_CHANNELS[index])
    said = found.history["comparison"]
    assert (said["start"], said["kept"], said["same"], said["healed"]) == ("fixed", "result", False, 50 if lora else 0)
    assert said["losses"]["result"] < said["losses"]["start"] / (2 if lora else 100)
    assert found.history["chosen"]["block:transformer_blocks"] == [1, 0, 1]


@pytest.mark.parametrize("heal", [0.0, 1.0])
def test_a_result_that_is_worse_gives_way_to_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heal: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """The masks are led astray on purpose: every logit is turned round when the training ends."""
    train = groupwise.GroupwiseSearch.train

    def astray(self: Any, problem: Any, context: Any, logits: Any, notes: Any) -> None:
        train(self, problem, context, logits, notes)
        with torch.no_grad():
            for logit in logits.table.values():
                logit.neg_()

    monkeypatch.setattr(groupwise.GroupwiseSearch, "train", astray)
    problem = problem_of(planted())
    before = {key: value.clone() for key, value in problem.denoiser.state_dict().items()}
    start = found_by(scored(problem, right=True), problem)
    options = {"steps": 4, "lr": 1e-3, "groups": ONE_GROUP, "compare": {"batches": 1, "batch": 4, "heal": heal}}
    found = search_from(tmp_path, problem, start, **options)
    assert found.kept == start.kept
    said = found.history["comparison"]
    assert (said["kept"], said["same"], said["healed"]) == ("start", False, round(4 * heal))
    assert said["losses"]["start"] < said["losses"]["result"]
    assert found.history["chosen"]["block:transformer_blocks"] == [1, 0, 1]
    assert "on held-out data the start (fixed) has a loss of" in capsys.readouterr().err
    assert problem.denoiser.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in problem.denoiser.state_dict().items())
    assert not any(parameter.requires_grad for parameter in problem.denoiser.parameters())
    lines = (tmp_path / "curves.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3], "healing writes no curves of its own"
    unlike = search_from(tmp_path / "unlike", problem, start, **{**options, "compare": None})
    assert "comparison" not in unlike.history
    assert unlike.kept != start.kept


def test_channels_are_sorted_by_the_starts_scores(tmp_path: Path) -> None:
    """Not by magnitude, by which the useless ones of block 0 stand among the others."""
    problem = problem_of(planted())
    search_ = make_part("search", {"use": "groupwise", "objective": "flow"}, installed()).build()
    axis = next(axis for axis in problem.axes if axis.name == "ffn:transformer_blocks.0.ff")
    scores = torch.tensor(scored(problem, right=True)[axis.name])
    assert search_.cut(axis, problem, scores).parts[-2:] == (tuple(range(16, 24)), tuple(range(24, 32)))
    assert search_.cut(axis, problem, magnitude(problem.denoiser.module, axis)).parts[-2:] != (
        tuple(range(16, 24)),
        tuple(range(24, 32)),
    )


def test_a_choice_without_scores_ranks_as_what_stays_above_what_goes() -> None:
    axis = problem_of(planted()).axes[0]
    found = unit_scores(Selection({axis.name: (1,)}), axis, torch.tensor([4.0, 1.0, 2.0]))
    assert found.tolist() == [0.5, 1.125, 0.25]
    given = unit_scores(Selection({axis.name: (1,)}, {"scores": {axis.name: [3, 2, 1]}}), axis, torch.zeros(3))
    assert given.tolist() == [3, 2, 1]


def test_what_parts_leave_over_goes_to_the_best_by_the_starts_scores(tmp_path: Path) -> None:
    """Keeping 43 of 64 channels in parts of 8: five parts, and three more, which the scores name."""
    problem = problem_of(planted())
    keep = {name: 43 if name.startswith("ffn") else count for name, count in problem.keep.items()}
    odd = SearchProblem(problem.denoiser, problem.axes, keep, problem.num_parts)
    name = "ffn:transformer_blocks.0.ff"
    scores = scored(problem, right=True) | {name: [float(unit) for unit in range(64)]}
    found = search_from(tmp_path, odd, found_by(scores, odd), steps=1, lr=1e-3, groups=ONE_GROUP)
    assert found.kept[name] == tuple(range(21, 64))


def test_removals_and_lora_are_the_defaults_and_held_out_data_is_asked_for() -> None:
    options = make_part("search", {"use": "groupwise", "objective": "flow"}, installed()).options
    assert (options.init.name, options.lora.rank, options.compare.heal, options.held_out) == ("mixed", 8, 0.25, True)
    assert (options.init.options.blocks.name, options.init.options.rest.name) == ("greedy", "taylor")
    for off in ("init", "compare"):
        part = make_part("search", {"use": "groupwise", "objective": "flow", off: None}, installed())
        assert not part.options.held_out


# ------------------------------------------------------------------ levels of strangers


def renamed(problem: SearchProblem) -> SearchProblem:
    """The same problem, its FFN channels at a level that nobody foresaw."""
    axes = tuple(replace(axis, level="ffn_pair") if axis.level == "ffn" else axis for axis in problem.axes)
    return SearchProblem(problem.denoiser, axes, problem.keep, {"ffn_pair": 8})


@pytest.mark.parametrize("groups", [{"block": 1, "head": 1, "ffn_pair": 2}, {"block": 1, "head": 1}])
def test_any_level_can_be_grouped(tmp_path: Path, groups: dict[str, int]) -> None:
    kept = search(tmp_path, renamed(problem_of(planted())), steps=120, groups=groups).kept
    for index, channels in USELESS_CHANNELS.items():
        assert set(range(64)) - set(kept[f"ffn:transformer_blocks.{index}.ff"]) == set(channels)


def test_a_group_for_no_level_of_the_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'groups' names the level 'haed'; .* block, ffn, head. Did you mean 'head'?"):
        search(tmp_path, problem_of(planted()), groups={"haed": 2})


UNSUITED: dict[str, tuple[dict[str, Any], dict[str, int], str]] = {
    "a level of nobody": (
        {"levels": {"head": {"remove": 1}}}, {"haed": 2}, "'groups' names the level 'haed'; this step prunes head",
    ),
    "before it is measured": (
        {"budget": {"params": 76_600, "curves": "measured", "levels": ["head", "ffn"]}}, {"haed": 2},
        "'groups' names the level 'haed'; this step prunes ffn, head",
    ),
    "too few groups": (
        {"levels": {"ffn": {"keep": 0.5}}}, {"ffn": 1},
        "ffn:transformer_blocks.0.ff: a group of 32 keeping 16 has 601080390 candidates. Use more groups",
    ),
    "unequal parts": (
        {"levels": {"ffn": {"keep": 0.5, "units": 24}}}, {}, "64 units can't be cut into 24 equal parts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUITED)
def test_groups_that_do_not_fit_are_refused_by_the_plan(tmp_path: Path, case: str) -> None:
    """Before curves and trials are paid for; what is not cut may have any number of units."""
    options, groups, message = UNSUITED[case]
    spec = replace(tiny_bundle(tmp_path / "bundle").spec, data=True)
    wanted = {"use": "groupwise", "objective": "flow", "groups": groups}
    with pytest.raises(UserError) as caught:
        part("prune", "trilevel", **options, search=wanted).plan(spec)
    assert message in str(caught.value)
    if case == "unequal parts":
        options = {"levels": {"ffn": {"remove": 0, "units": 24}, "head": {"remove": 1}}}
    part("prune", "trilevel", **options, search={**wanted, "groups": {"ffn": 8}}).plan(spec)


def test_the_defaults_stand_beside_what_is_named() -> None:
    options = make_part("search", {"use": "groupwise", "objective": "flow", "groups": {"pair": 2}}, installed()).options
    assert options.groups == {"block": 4, "head": 4, "ffn": 8, "pair": 2}


# ------------------------------------------------------------------ co-optimised weights


def watched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What LoRA's trainable parameters are when the search begins and ends, and every role's learning rate."""
    seen: list[dict[str, Tensor]] = []
    fit = groupwise.fit

    def watch(objective: Any, *rest: Any) -> None:
        student = objective.roles["student"]
        assert student.lr == pytest.approx(objective.roles["masks"].lr / 10)
        named = {key: value for key, value in student.module.named_parameters() if value.requires_grad}
        seen.append({key: value.detach().clone() for key, value in named.items()})
        fit(objective, *rest)
        seen.append({key: value.detach().clone() for key, value in named.items()})

    monkeypatch.setattr(groupwise, "fit", watch)
    return seen


@pytest.mark.parametrize("after", ["discard", "merge"])
def test_lora_moves_with_the_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    problem, seen = problem_of(planted()), watched(monkeypatch)
    module = problem.denoiser.module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    kinds = {path: type(item) for path, item in module.named_modules()}
    kept = search(tmp_path, problem, steps=20, groups={"block": 1, "head": 1}, lora={"rank": 2, "after": after}).kept
    first, last = seen
    assert first.keys() == {
        f"module.{path}.lora_{side}.default.weight"
        for path, kind in kinds.items()
        if path.startswith("transformer_blocks.") and kind is nn.Linear
        for side in "AB"
    }
    assert {value.shape[0] for key, value in first.items() if "lora_A" in key} == {2}
    assert all(not value.any() for key, value in first.items() if "lora_B" in key)
    assert max(float(value.abs().max()) for key, value in last.items() if "lora_B" in key) > 1e-3
    assert {path: type(item) for path, item in module.named_modules()} == kinds
    assert {name: len(units) for name, units in kept.items()} == dict(problem.keep)
    name = "transformer_blocks.0.attn1.to_v"
    added = last[f"module.{name}.lora_B.default.weight"] @ last[f"module.{name}.lora_A.default.weight"]
    expected = before[f"{name}.weight"] + (added if after == "merge" else 0)
    torch.testing.assert_close(module.get_parameter(f"{name}.weight").detach(), expected)
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    linears = {f"{path}.weight" for path, kind in kinds.items() if kind is nn.Linear and "blocks" in path}
    assert changed <= (linears if after == "merge" else set())
    assert not any(parameter.requires_grad for parameter in problem.denoiser.parameters())


def test_the_start_is_compared_before_lora_is_merged(tmp_path: Path) -> None:
    """What becomes of LoRA changes no loss of the comparison: both choices are healed from the weights as given."""
    said, weights = [], []
    for after in ("discard", "merge"):
        problem = problem_of(planted())
        start = found_by(scored(problem, right=False), problem)
        options = {"steps": 6, "lr": 0.3, "lora": {"rank": 2, "after": after}, "trust": 1e-3, "groups": ONE_GROUP}
        by = {"batches": 1, "batch": 4, "heal": 0.5}
        found = search_from(tmp_path / after, problem, start, **options, compare=by)
        said.append(found.history["comparison"])
        weights.append(problem.denoiser.module.get_parameter("transformer_blocks.0.attn1.to_v.weight"))
    assert not said[0]["same"]
    assert said[0] == said[1]
    assert not torch.equal(*weights), "one of them was merged"


def test_weights_that_give_way_lower_the_loss_of_the_masked_model(tmp_path: Path) -> None:
    """Equal draws of masks: at the end the loss with LoRA is below that of frozen weights."""
    means = []
    for name, lora in (("frozen", None), ("lora", {"rank": 4})):
        problem = problem_of(tiny_denoiser("video_dit"))
        search(tmp_path / name, problem, steps=60, groups={"block": 1, "head": 1}, lora=lora)
        rows = [json.loads(line) for line in (tmp_path / name / "curves.jsonl").read_text().splitlines()]
        means.append(sum(row["loss"] for row in rows[30:]) / 30)
    assert means[1] < means[0]


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_recomputed_activations_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, int] | None
) -> None:
    """Blocks run again in the backward pass under the masks of their first; in frozen models as well."""
    calls: list[None] = []
    again = memory.checkpoint
    monkeypatch.setattr(memory, "checkpoint", lambda *given, **named: (calls.append(None), again(*given, **named))[1])
    for name, on in (("kept", False), ("again", True)):
        problem = problem_of(planted())
        given = {"groups": {"block": 1, "head": 1}, "lora": lora, "checkpoint_activations": on}
        search(tmp_path / name, problem, steps=6, **given)
        assert not any(module._forward_hooks for module in problem.denoiser.module.modules())
        assert bool(calls) is on
    one, other = ((tmp_path / name / "curves.jsonl").read_text() for name in ("kept", "again"))
    assert one == other


def test_lora_without_peft_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"'lora' needs the package 'peft': run pip install .dit-compress\[lora\]"):
        make_part("search", {"use": "groupwise", "objective": "flow", "lora": {}}, installed())


def test_it_does_not_begin_from_itself() -> None:
    given = {"use": "groupwise", "objective": "flow"}
    with pytest.raises(UserError) as caught:
        make_part("search", {**given, "init": given}, installed())
    assert len(caught.value.problems) == 1
    assert "'groupwise' begins from another search's scores: name one that is not learnt (mixed)" in str(caught.value)


def test_what_belongs_to_a_start_is_refused_without_one() -> None:
    given = {"use": "groupwise", "objective": "flow", "init": None}
    message = r"'trust' and 'compare' belong to a search to begin from \('init'\)"
    with pytest.raises(UserError, match=message):
        make_part("search", {**given, "trust": 2.0, "compare": {"heal": 0.0}}, installed())
    make_part("search", {**given, "compare": None}, installed())


def test_nothing_to_search_keeps_everything(tmp_path: Path) -> None:
    problem = problem_of(planted())
    whole = SearchProblem(problem.denoiser, problem.axes, {axis.name: axis.units for axis in problem.axes})
    assert search(tmp_path, whole, steps=2).kept == {axis.name: tuple(range(axis.units)) for axis in problem.axes}


def test_a_share_of_kd_is_that_of_the_masks_gradient(tmp_path: Path) -> None:
    """The objective's weight is set by what moves in a search, and noted in its curves."""
    objective = {"use": "affine", "kd_share": 0.3, "share_every": 2}
    made = part(
        "search", "groupwise", steps=4, batch=4, groups=dict.fromkeys(("block", "head", "ffn"), 1), objective=objective
    )
    made.search(problem_of(tiny_denoiser("video_dit")), latents_in(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert rows[0]["alpha"] == rows[1]["alpha"] > 0
    assert rows[2]["alpha"] == rows[3]["alpha"] != rows[1]["alpha"]
    trained_by = 0.3 * rows[1]["alpha"] / rows[2]["alpha"]  # the share which the first alpha had by the second's norms
    assert [row["kd_share"] for row in rows] == pytest.approx([0.3, 0.3, trained_by, trained_by], rel=1e-4)
    assert rows[0]["loss"] == pytest.approx(rows[0]["flow_loss"] + rows[0]["alpha"] * rows[0]["feature_loss"], rel=1e-4)


def test_a_share_of_kd_heals_what_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start and result are each healed with an alpha of their own, and compared by the flow's loss."""
    alphas: list[float] = []
    loss = compare.LoraObjective.loss

    def seen(self: Any, *given: Any) -> dict[str, Tensor]:
        found = loss(self, *given)
        alphas.append(float(found["alpha"]))
        return found

    monkeypatch.setattr(compare.LoraObjective, "loss", seen)
    options = part("search", "groupwise", batch=4, steps=2, objective={"use": "affine", "kd_share": 0.3}).options
    problem, by = problem_of(tiny_denoiser("video_dit")), package.Compare(batches=1, batch=4, heal=1.0)
    made = compare.Comparison(problem, latents_in(tmp_path), options, by)
    kept = {axis.name: tuple(range(problem.keep[axis.name])) for axis in problem.axes}
    assert made.loss(kept, "start") > 0
    assert alphas[:2] == [0.0, 0.0], "the two terms are measured"
    assert len(alphas) == 4
    assert min(alphas[2:]) > 0


@pytest.mark.parametrize(
    ("off", "splits"), [({}, ("train", "test")), ({"init": None}, ("train",)), ({"compare": None}, ("train",))]
)
def test_data_without_held_out_clips_is_refused_before_the_first_step(off: dict[str, None], splits: Any) -> None:
    given = {"use": "trilevel", "levels": {"head": {"remove": 1}}}
    part = make_part("prune", {**given, "search": {"use": "groupwise", "objective": "flow", **off}}, installed())
    assert Node("pruned", "prune", {"step": part}).splits == splits
