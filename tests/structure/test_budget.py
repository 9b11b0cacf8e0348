"""From a budget to counts: prices by hand and against compaction, exact optima, the paper's case at full size."""

from __future__ import annotations

import itertools
import re
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dit_compress.core.errors import UserError
from dit_compress.model.cut import compact
from dit_compress.model.denoiser import Denoiser
from dit_compress.model.figures import count_flops, count_parameters
from dit_compress.model.one_of_each import shorten
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.allocate import SLACK, Question, allocate, allocate_each, counts_of, proportional, thinned
from dit_compress.search.budget import Price, flops_price, parameter_price
from dit_compress.search.curves import Curve, Curves, curves_from_report, default_curves
from dit_compress.search.field import PAPER, enter, families, halved
from dit_compress.structure.facts import Axis, Stack
from dit_compress.testing.models import MODELS, tiny_denoiser

STEPS = {"block": 1, "head": 1, "ffn": 8}
STACK = Stack("s", 10, 0, None)
BLOCKS = Axis("block:s", "block", 10, "s", blocks=STACK)
HAND_AXES = (
    BLOCKS,
    *(Axis(f"head:s.{index}.a", "head", 4, "s", index) for index in range(10)),
    *(Axis(f"ffn:s.{index}.f", "ffn", 16, "s", index) for index in range(10)),
)
HAND = Price(
    100,
    {"block:s": (18.0,) * 10},
    {axis.name: 10.0 if axis.level == "head" else 2.0 for axis in HAND_AXES if not axis.blocks},
)
"""Ten blocks of 18 + 4 heads of 10 + 16 channels of 2 = 90; 100 stand outside: 1000."""


def axes_of(denoiser: Denoiser) -> list[Any]:
    structure = denoiser.structure()
    levels = [make_part("granularity", name, installed()).build() for name in STEPS]
    return [axis for level in levels for axis in level.axes(structure)]


def asked(
    budget: float, levels: tuple[str, ...] = ("block", "head", "ffn"), step: int = 2, curves: Curves | None = None
) -> Question:
    axes = [axis for axis in HAND_AXES if axis.level in levels]
    away = [axis for axis in HAND_AXES if axis.level not in levels and not axis.blocks]
    price = HAND
    if away and "block" in levels:
        extra = sum(HAND.units[axis.name] * axis.units for axis in away) / 10
        price = Price(100, {"block:s": (18.0 + extra,) * 10}, HAND.units)
    elif "block" not in levels:
        price = Price(100 + 180 + sum(HAND.units[axis.name] * axis.units for axis in away), {}, HAND.units)
    return Question(axes, {"ffn": step}, price, curves or default_curves(price, axes), budget)


def removed(question: Question) -> dict[str, int]:
    keep = allocate(question)
    return {axis.level: axis.units - keep[axis.name] for axis in question.axes}


def first(keep: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(range(count)) for name, count in keep.items()}


# ------------------------------------------------------------------ prices by hand


@pytest.mark.parametrize(
    ("blocks", "heads", "channels", "left"),
    [
        (0, 0, 0, 1000),
        (1, 0, 0, 910),
        (0, 1, 0, 1000 - 10 * 10),
        (0, 0, 3, 1000 - 10 * 3 * 2),
        (2, 1, 4, 1000 - 2 * 90 - 8 * (10 + 8)),
    ],
)
def test_what_is_left_after_removing(blocks: int, heads: int, channels: int, left: int) -> None:
    gone = {"block": blocks, "head": heads, "ffn": channels}
    assert HAND.of(HAND_AXES, {axis.name: tuple(range(axis.units - gone[axis.level])) for axis in HAND_AXES}) == left


def test_a_price_survives_json() -> None:
    assert Price.from_data(HAND.as_data()) == HAND


# ------------------------------------------------------------------ allocation


def test_an_allocation_comes_near_the_papers_proportions() -> None:
    """Two of ten blocks, one of four heads, four of sixteen channels: 1000 - 2·90 - 8·(10 + 8) = 676.

    Three blocks, no head, four channels (674) would fit as well, and is far from 8/28 : 12/32 : 1/4.
    """
    assert removed(asked(680)) == {"block": 2, "head": 1, "ffn": 4}


def test_only_the_levels_that_may_be_cut_are_cut() -> None:
    assert removed(asked(730, ("block",))) == {"block": 3}
    assert removed(asked(800, ("head",))) == {"head": 2}


def test_channels_stay_a_multiple() -> None:
    assert removed(asked(920, ("ffn",), step=4)) == {"ffn": 4}


def test_curves_decide() -> None:
    """Blocks for nothing, heads dear: 730 is three blocks. Heads for nothing: 1000 - 2·100 = 800 and channels."""
    cheap, dear = Curve(((1.0, 0.0),)), Curve(((1.0, 10.0),))
    assert removed(asked(730, curves=Curves({"block": cheap, "head": dear, "ffn": dear}))) == {
        "block": 3,
        "head": 0,
        "ffn": 0,
    }
    gone = removed(asked(700, curves=Curves({"block": dear, "head": cheap, "ffn": dear})))
    assert gone == {"block": 0, "head": 3, "ffn": 0}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(300, 1000), st.lists(st.floats(0.0, 1.0), min_size=9, max_size=9))
def test_it_is_the_best_of_all_plans(budget: int, heights: list[float]) -> None:
    """Against every plan, one by one, for any curves."""
    curves = Curves(
        {
            level: Curve(tuple(zip((0.3, 0.6, 1.0), heights[3 * place : 3 * place + 3], strict=True)))
            for place, level in enumerate(("block", "head", "ffn"))
        }
    )
    question = asked(budget, curves=curves)
    best = None
    for blocks, heads, channels in itertools.product(range(1, 11), range(1, 5), range(2, 17, 2)):
        price = 100 + blocks * (18 + heads * 10 + channels * 2)
        if SLACK * budget <= price <= budget:
            shares = {"block": 1 - blocks / 10, "head": 1 - heads / 4, "ffn": 1 - channels / 16}
            loss = sum(curves.levels[level](share) for level, share in shares.items())
            best = loss if best is None else min(best, loss)
    if best is None:
        with pytest.raises(UserError, match="no plan comes within 1%"):
            allocate(question)
        return
    keep = allocate(question)
    assert SLACK * budget <= HAND.of(HAND_AXES, first(keep)) <= budget
    shares = {axis.level: 1 - keep[axis.name] / axis.units for axis in HAND_AXES}
    assert sum(curves.levels[level](share) for level, share in shares.items()) == pytest.approx(best, abs=1e-6)


def test_a_budget_that_can_not_be_met_names_the_nearest_that_can() -> None:
    with pytest.raises(UserError, match=r"within 1% of 950 parameters from below. The nearest .* is 910$"):
        allocate(asked(950, ("block",)))
    assert removed(asked(910, ("block",))) == {"block": 1}


@pytest.mark.parametrize(("budget", "nearest"), [(5, 132), (10**6, 1000)])
def test_a_budget_out_of_all_reach_names_the_smallest_or_the_whole(budget: int, nearest: int) -> None:
    """All but one block, one head and two channels: 100 + 18 + 10 + 2·2 = 132."""
    with pytest.raises(UserError, match=rf"The nearest that can be met is {nearest:,}$") as caught:
        allocate(asked(budget))
    assert ("what can't be removed weighs 132" in str(caught.value)) == (budget == 5)


def test_axes_of_other_sizes_keep_the_same_share() -> None:
    assert proportional(20, 32, 16, 1) == 10
    assert proportional(6144, 8192, 1024, 8) == 768
    assert proportional(1, 32, 8, 1) == 1
    assert proportional(32, 32, 5, 4) == 5
    assert counts_of(10, 4) == [4, 8, 10]
    assert len(thinned(list(range(1, 1001)))) == 64
    assert (thinned(list(range(1, 1001)))[0], thinned(list(range(1, 1001)))[-1]) == (1, 1000)


# ------------------------------------------------------------------ widths of each block


def each_question(budget: float, heads: list[float], channels: list[float], blocks: tuple[float, ...]) -> Question:
    """Three blocks of two heads and four channels; the loss rises with every unit that goes."""
    stack = Stack("s", 3, 0, None)
    axes = [Axis("block:s", "block", 3, "s", blocks=stack)]
    axes += [Axis(f"head:s.{index}.a", "head", 2, "s", index) for index in range(3)]
    axes += [Axis(f"ffn:s.{index}.f", "ffn", 4, "s", index) for index in range(3)]
    units = {axis.name: 10.0 if axis.level == "head" else 3.0 for axis in axes[1:]}
    weights = dict(zip([axis.name for axis in axes[1:]], [*heads, *channels], strict=True))
    curves = Curves({}, {name: Curve(((1.0, weight),)) for name, weight in weights.items()}, {"block:s": blocks})
    return Question(axes, {}, Price(5, {"block:s": (7.0, 8.0, 9.0)}, units), curves, budget)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(45, 130),
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
    st.tuples(*[st.floats(0.01, 3.0)] * 3),
)
def test_widths_of_each_block_are_the_best_of_all_plans(
    budget: int, heads: list[float], channels: list[float], blocks: tuple[float, ...]
) -> None:
    question = each_question(budget, heads, channels, blocks)
    best = None
    for stay in itertools.chain.from_iterable(itertools.combinations(range(3), size) for size in (1, 2, 3)):
        gone = sum(blocks[index] for index in set(range(3)) - set(stay))
        for widths in itertools.product(itertools.product((1, 2), range(1, 5)), repeat=len(stay)):
            price = 5 + sum((7.0, 8.0, 9.0)[index] + 10 * h + 3 * c for index, (h, c) in zip(stay, widths, strict=True))
            if SLACK * budget <= price <= budget:
                loss = gone + sum(
                    heads[index] * (1 - h / 2) + channels[index] * (1 - c / 4)
                    for index, (h, c) in zip(stay, widths, strict=True)
                )
                best = loss if best is None else min(best, loss)
    if best is None:
        with pytest.raises(UserError, match="no plan comes within 1%"):
            allocate_each(question)
        return
    kept = allocate_each(question)
    assert SLACK * budget <= question.price.of(question.axes, kept) <= budget
    stay = kept["block:s"]
    loss = sum(blocks[index] for index in set(range(3)) - set(stay))
    for index in stay:
        loss += heads[index] * (1 - len(kept[f"head:s.{index}.a"]) / 2)
        loss += channels[index] * (1 - len(kept[f"ffn:s.{index}.f"]) / 4)
    assert loss == pytest.approx(best, rel=1e-3, abs=1e-3)


def test_widths_of_each_block_need_curves_of_each_axis() -> None:
    with pytest.raises(UserError, match=r"there is none for ffn:s.0.f. Measure them: dit-compress sensitivity --each"):
        allocate_each(asked(700))


# ------------------------------------------------------------------ a field of plans


def test_families_of_levels() -> None:
    assert families(["block", "head", "head", "ffn"]) == [
        ("block", "head", "ffn"), ("block", "head"), ("block", "ffn"), ("head", "ffn"), ("block",), ("head",), ("ffn",)
    ]  # fmt: skip
    assert families(["ffn", "ffn"]) == [("ffn",)]


def listed(question: Question) -> dict[str, list[tuple[float, float]]]:
    """Every plan by the family that it cuts: (price, what the curves expect)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for blocks, heads, channels in itertools.product(range(1, 11), range(1, 5), range(2, 17, 2)):
        kept = {"block": blocks / 10, "head": heads / 4, "ffn": channels / 16}
        cut = [level for level, share in kept.items() if share < 1]
        loss = sum(question.curves.levels[level](1 - share) for level, share in kept.items())
        name = " + ".join(cut) if len(cut) > 1 else f"{''.join(cut)} alone"
        found.setdefault(name, []).append((100 + blocks * (18 + 10 * heads + 2 * channels), loss))
    return found


@pytest.mark.parametrize("budget", [700.0, 760.0])
def test_the_best_of_each_family_is_in_the_field(budget: float) -> None:
    """Against every plan, one by one. Channels alone come down to 720 at least; blocks alone to 640, not to 700."""
    question = asked(budget, curves=Curves({name: Curve(((1.0, loss),)) for name, loss in COSTS.items()}))
    entrants, none = enter(question, 100)
    assert none == (["ffn alone"] if budget == 700 else [])
    best: dict[str, tuple[float, float]] = {}
    for entrant in entrants:
        price = HAND.of(HAND_AXES, first(dict(entrant.keep)))
        for name in entrant.family.split(", "):
            if name not in best or entrant.expected < best[name][1]:
                best[name] = (price, entrant.expected)
    plans = listed(question)
    for name in plans.keys() - {*none, " alone"}:
        near = [(price, loss) for price, loss in plans[name] if 0.99 * budget <= price <= budget]
        highest = max(price for price, _ in plans[name] if price <= budget)
        near = near or [pair for pair in plans[name] if pair[0] == highest]
        assert best[name][0] <= budget, name
        assert best[name][1] == pytest.approx(min(loss for _, loss in near)), name
    assert best["block alone"][0] == {700: 640, 760: 730}[int(budget)]
    assert 0.99 * budget <= best[PAPER][0] <= budget
    assert len({tuple(entrant.keep.items()) for entrant in entrants}) == len(entrants)


COSTS = {"block": 3.0, "head": 1.0, "ffn": 2.0}


def test_a_small_field_has_the_best_of_the_families() -> None:
    question = asked(700, curves=Curves({name: Curve(((1.0, loss),)) for name, loss in COSTS.items()}))
    every, few = enter(question, 100)[0], enter(question, 3)[0]
    assert few == every[:3]
    assert few[0].expected == min(entrant.expected for entrant in every)


def test_halving_finds_the_one_that_heals_best() -> None:
    """Losses fall towards an end of their own; the one that ends lowest is not the lowest at first."""
    ends = [0.9, 0.8, 0.95, 0.5, 0.85, 0.7, 0.99]
    gaps = [0.0, 0.2, 0.0, 0.31, 0.3, 0.0, 0.0]
    calls = [0] * len(ends)

    def loss_of(which: int) -> float:
        calls[which] += 1
        return ends[which] + gaps[which] * 0.5 ** (calls[which] - 1)

    left = {which: which for which in range(len(ends))}
    rounds = halved(left, loss_of)
    assert [sorted(losses) for losses in rounds] == [[0, 1, 2, 3, 4, 5, 6], [0, 2, 3, 5], [3, 5]]
    assert left == {3: 3}
    assert rounds[0][5] < rounds[0][3]
    assert rounds[2][3] == pytest.approx(0.5 + 0.31 / 4)
    assert calls == [2, 1, 2, 3, 1, 3, 1]


def test_of_equals_the_first_stays() -> None:
    left = {0: 1.0, 1: 1.0, 2: 1.0}
    assert [len(losses) for losses in halved(left, float)] == [3, 2]
    assert left == {0: 1.0}
    assert halved({4: 2.0}, float) == [{4: 2.0}]


# ------------------------------------------------------------------ curves


def test_a_curve_by_hand() -> None:
    """Linear between points, flat where it would fall, as steep beyond as between the last two."""
    curve = Curve(((0.5, 2.0), (0.25, 1.0), (0.75, 1.5)))
    assert [curve(x) for x in (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)] == pytest.approx([0, 0.5, 1, 1.5, 2, 2])
    assert Curve(((0.5, 1.0),))(1.0) == pytest.approx(2.0)


def test_curves_are_read_from_a_report() -> None:
    report = {
        "quality": "flow_loss",
        "whole": {"flow_loss": 1.0},
        "levels": {"head": [{"removed": 2, "of": 8, "flow_loss": 1.25}]},
        "axes": {"head:a": [{"removed": 4, "of": 8, "flow_loss": 1.5}]},
        "blocks": {"block:s": [1.5, 2.0]},
    }
    curves = curves_from_report(report)
    assert curves.level("head")(0.25) == pytest.approx(0.25)
    assert curves.axes["head:a"](0.5) == pytest.approx(0.5)
    assert curves.blocks == {"block:s": (0.5, 1.0)}
    with pytest.raises(UserError, match="the sensitivity curves say nothing about level 'ffn'. They have head"):
        curves.level("ffn")


@pytest.mark.parametrize("data", [{}, {"quality": "x", "whole": {}}, [], {"quality": "q", "whole": {"q": 1}}])
def test_what_is_no_report_is_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"^r.json: no sensitivity report: .* missing. Write one"):
        curves_from_report(data, "r.json")


# ------------------------------------------------------------------ against real models


@pytest.mark.parametrize("name", MODELS)
def test_prices_are_those_of_the_compacted_model(name: str) -> None:
    """Parameters and FLOPs, to the last one, whichever block and units go."""
    denoiser = tiny_denoiser(name).to("meta")
    axes, size = axes_of(denoiser), (2, 4, 4)
    params, flops = parameter_price(denoiser.module, axes), flops_price(denoiser, axes, size)
    assert params.of(axes, {}) == count_parameters(denoiser.module)
    assert flops.of(axes, {}) == count_flops(denoiser, size)
    gone = {"block": 1, "head": 2, "ffn": 24}
    kept = {axis.name: tuple(range(gone[axis.level], axis.units)) for axis in axes}
    kept |= {"head:transformer_blocks.2.attn1": (0, 1, 2)} if name == "video_dit" else {}
    compact(denoiser, axes, kept)
    assert count_parameters(denoiser.module) == params.of(axes, kept)
    assert count_flops(denoiser, size) == flops.of(axes, kept)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.85, 0.7, 0.55])
def test_a_budget_is_met_within_one_percent_from_below(name: str, share: float) -> None:
    denoiser = tiny_denoiser(name)
    axes = axes_of(denoiser)
    price = parameter_price(denoiser.module, axes)
    steps, curves = {**STEPS, "ffn": 1}, default_curves(price, axes)
    budget = round(share * price.of(axes, {}))
    try:
        keep = allocate(Question(axes, steps, price, curves, budget))
    except UserError as error:
        budget = int(str(error).rsplit(" ", 1)[-1].replace(",", ""))
        keep = allocate(Question(axes, steps, price, curves, budget))
    compact(denoiser, axes, first(keep))
    assert SLACK * budget <= count_parameters(denoiser.module) <= budget


# ------------------------------------------------------------------ the paper


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


def shape(denoiser: Denoiser) -> tuple[int, set[int], set[int]]:
    """Blocks, heads of 64 and channels, read from the weights."""
    shapes = {name: list(value.shape) for name, value in denoiser.module.named_parameters()}
    blocks = {name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}
    heads = {shape[0] // 64 for name, shape in shapes.items() if name.endswith(".to_q.weight")}
    return len(blocks), heads, {shape[0] for name, shape in shapes.items() if name.endswith(".ff.net.0.proj.weight")}


def test_the_papers_counts() -> None:
    """28 blocks, 32 heads, 8192 channels → 20, 20, 6144: 1,923M → 966M."""
    denoiser, note = pruned(levels={"block": {"remove": 8}, "head": {"remove": 12}, "ffn": {"keep": 0.75}})
    params = count_parameters(denoiser.module)
    print(f"the paper's counts: {shape(denoiser)}, {params:,} parameters")  # noqa: T201 - shown by pytest -s
    assert shape(denoiser) == (20, {20}, {6144})
    assert round(params / 1e6) == 966
    assert note == "1,923,220,608 → 966,456,448 parameters"


@pytest.mark.parametrize(
    ("budget", "counts"), [(10**9, (20, {21}, {6296})), (966_456_448, (20, {20}, {6144}))], ids=["1e9", "966M"]
)
def test_the_papers_budget(budget: int, counts: tuple[int, set[int], set[int]]) -> None:
    """1B: next to the paper's counts. What the paper's counts weigh: exactly these, by the default curves."""
    denoiser, note = pruned(budget={"params": budget})
    params = count_parameters(denoiser.module)
    print(f"budget {budget:,}: {shape(denoiser)}, {params:,} parameters")  # noqa: T201 - shown by pytest -s
    assert SLACK * budget <= params <= budget
    assert shape(denoiser) == counts
    blocks, heads, widths = counts
    assert f"{blocks} of 28 block, {heads.pop()} of 32 head, {widths.pop()} of 8192 ffn" in note


def test_a_limit_is_checked_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"the pruned model has 1,\d+,\d+,\d+ parameters, the limit is 1,000,000,000"):
        pruned(levels={"block": {"remove": 8}}, limit={"params": 10**9})


def test_no_message_lacks_a_number() -> None:
    """The nearest that is named can be asked for: in FLOPs too, where it is written with an exponent."""
    denoiser = tiny_denoiser("video_dit").to("meta")
    axes = [axis for axis in axes_of(denoiser) if axis.level == "block"]
    price = flops_price(denoiser, axes, (8, 16, 16))
    with pytest.raises(UserError) as caught:
        allocate(Question(axes, {}, price, default_curves(price, axes), 0.9 * price.of(axes, {})))
    named = re.search(r"is ([\d,.e+]+)$", str(caught.value))
    assert named
    asked_again = Question(axes, {}, price, default_curves(price, axes), float(named[1].replace(",", "")))
    assert len(allocate(asked_again)) == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pruned", [False, True])
def test_flops_of_one_block_of_each_shape_are_those_of_the_whole(name, pruned):
    denoiser = tiny_denoiser(name)
    axes = axes_of(denoiser)
    if pruned:  # the first block has other shapes than the rest
        first = next(axis for axis in axes if axis.level == "head" and axis.block == 0)
        compact(denoiser, [first], {first.name: tuple(range(1, first.units))})
    size = denoiser.example_size
    whole = count_flops(denoiser, size)
    blocks = {stack.path: stack.length for stack in denoiser.structure().stacks}
    counts = shorten(denoiser)
    assert {path: sum(n for place, n in counts.items() if place.startswith(path)) for path in blocks} == blocks
    assert any(number > 1 for number in counts.values())
    assert count_flops(denoiser, size, each=counts) == whole
