"""The parts that choose a layout, on planted losses: no model is there."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import generator
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.structure.choices import Choice, LayoutProblem, Prices, Remembered, every

SECONDS = {"full": 1.0, "linconv": 0.6, "stride": 0.4, "global_local": 0.7}
WORK = SimpleNamespace(seed=3, say=lambda _text: None)


def part(**given):
    return make_part("layout", given, installed()).build()


def planted(blocks: int = 4, budget: float = 2.6, *, interacting: bool = False) -> LayoutProblem:
    """What a kind adds to the loss grows with the block; neighbours of one kind that is not full cost extra."""
    choices = tuple(
        Choice(f"b{i}", {kind: Prices(seconds=s * (1 + i / 50)) for kind, s in SECONDS.items()}) for i in range(blocks)
    )

    def loss(layout: dict) -> float:
        kinds = list(layout.values())
        alone = sum((1 - SECONDS[kind]) * (i + 1) ** 1.5 for i, kind in enumerate(kinds))
        pairs = sum(a == b != "full" for a, b in zip(kinds, kinds[1:], strict=False))
        return 1 + alone + interacting * pairs

    return LayoutProblem(choices, {"seconds": budget}, loss)


def optimum(problem: LayoutProblem) -> float:
    return min(problem.loss(layout) for layout in every(problem.choices) if problem.fits(layout))


def test_the_programme_measures_each_kind_once_and_finds_the_optimum_of_separable_scores() -> None:
    problem, asked = planted(), []
    counted = LayoutProblem(problem.choices, problem.budget, lambda x: asked.append(dict(x)) or problem.loss(x))
    found = part(use="dp").choose(counted, WORK)
    assert problem.loss(found.layout) == pytest.approx(optimum(problem), abs=1e-12)
    assert found.history["expected"] == pytest.approx(found.history["loss"], abs=1e-12)
    alone = [layout for layout in asked if sum(kind != "full" for kind in layout.values()) == 1]
    assert len(alone) == 4 * 3, "each kind in each block, once"
    losses = [point["loss"] for point in found.history["front"]]
    assert losses == sorted(losses)
    assert all(point["seconds"] <= 2.6 for point in found.history["front"])


def test_interactions_show_as_the_difference_to_what_the_sum_expects() -> None:
    problem = planted(interacting=True)
    found = part(use="dp").choose(problem, WORK)
    assert found.history["loss"] - found.history["expected"] == pytest.approx(
        problem.loss(found.layout) - planted().loss(found.layout)
    )


def test_supplied_scores_need_no_loss_and_are_known_to_the_plan(tmp_path) -> None:
    problem = LayoutProblem(planted().choices, {"seconds": 3.75})
    scores = {f"b{i}": {"linconv": 1.0 + i, "stride": 3.0, "global_local": 0.5 + i} for i in range(4)}
    (tmp_path / "scores.json").write_text(json.dumps(scores), "utf-8")
    chosen = part(use="dp", scores=str(tmp_path / "scores.json"))
    assert list(chosen.foreseen(problem).values()) == ["linconv", "full", "full", "full"]
    assert chosen.choose(problem, WORK).layout == chosen.foreseen(problem)
    del scores["b2"]["stride"]
    (tmp_path / "scores.json").write_text(json.dumps(scores), "utf-8")
    with pytest.raises(UserError, match="no score of 'stride' in 'b2'"):
        chosen.foreseen(problem)


@pytest.mark.parametrize("use", ["dp", "evolution"])
def test_without_clips_or_budget_a_search_says_what_it_lacks(use: str) -> None:
    problem = LayoutProblem(planted().choices, {"seconds": 2.6})
    with pytest.raises(UserError, match="compared by their loss on clips"):
        part(use=use).choose(problem, WORK)
    with pytest.raises(UserError, match="nothing says what the layout may cost"):
        part(use=use).foreseen(LayoutProblem(problem.choices, {}))


def test_the_front_is_that_of_brute_force_where_everything_was_tried() -> None:
    problem = planted(3, 2.2, interacting=True)
    found = part(use="evolution", evaluations=64).choose(problem, WORK)
    fitting = [layout for layout in every(problem.choices) if problem.fits(layout)]
    assert found.history["tried"] == len(fitting) < 64, "it ends where none is left"
    points = {(problem.prices(layout).seconds, problem.loss(layout)) for layout in fitting}
    front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert {(point["seconds"], point["loss"]) for point in found.history["front"]} == front
    assert found.history["loss"] == optimum(problem)


def test_evolution_never_tries_what_is_above_the_budget_or_out_of_memory_and_repeats_nothing() -> None:
    problem, asked = planted(6, 3.4), []
    choices = tuple(
        Choice(c.block, {**c.options, "stride": Prices(seconds=math.inf)}) if c.block == "b1" else c
        for c in problem.choices
    )
    watched = LayoutProblem(choices, problem.budget, lambda layout: asked.append(dict(layout)) or problem.loss(layout))
    part(use="evolution", evaluations=50).choose(watched, WORK)
    assert len(asked) == len({tuple(layout.values()) for layout in asked}) == 50
    assert all(watched.fits(layout) and layout["b1"] != "stride" for layout in asked)


def test_evolution_finds_more_than_chance_with_as_many_trials() -> None:
    """64 of 4⁶ layouts, neighbours interacting, mean over five seeds: the benchmark has the rest."""
    problem = planted(6, 4.0, interacting=True)
    fitting, least = [layout for layout in every(problem.choices) if problem.fits(layout)], optimum(problem)
    ours, chance = [], []
    for seed in range(5):
        work = SimpleNamespace(seed=seed, say=lambda _text: None)
        ours.append(part(use="evolution", evaluations=64).choose(problem, work).history["loss"] - least)
        order = generator(seed, "chance").permutation(len(fitting))[:64]
        chance.append(min(problem.loss(fitting[place]) for place in order) - least)
    assert sum(ours) < 0.5 * sum(chance)


def test_a_killed_evolution_goes_on_to_the_same_result_bit_for_bit(tmp_path) -> None:
    problem = planted(5, 3.0, interacting=True)
    evolution = part(use="evolution", evaluations=30)

    def with_loss(loss, file: str) -> LayoutProblem:
        return LayoutProblem(problem.choices, problem.budget, Remembered(loss, tmp_path / file))

    def dies(layout: dict) -> float:
        if len((tmp_path / "killed").read_text("utf-8").splitlines() if (tmp_path / "killed").is_file() else []) == 17:
            raise KeyboardInterrupt
        return problem.loss(layout)

    whole = evolution.choose(with_loss(problem.loss, "whole"), WORK)
    with pytest.raises(KeyboardInterrupt):
        evolution.choose(with_loss(dies, "killed"), WORK)
    rest = with_loss(problem.loss, "killed")
    resumed = evolution.choose(rest, WORK)
    assert rest.loss.count == 30 - 17
    assert json.dumps([resumed.layout, resumed.history]) == json.dumps([whole.layout, whole.history])
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_given_layout_is_checked_against_what_is_there(tmp_path) -> None:
    problem = planted(2, 1.5)
    file = tmp_path / "layout.json"
    given = part(use="given", path=str(file))

    def refused(data: object) -> str:
        file.write_text(json.dumps(data), "utf-8")
        with pytest.raises(UserError) as caught:
            given.foreseen(problem)
        return str(caught.value).replace(f"{file}: ", "")

    assert refused([1]) == 'no layout: \'layout\' is missing. Give {"layout": {"<block>": "<kind>", …}}'
    assert refused({"layout": {"b0": "full", "b7": "full"}}) == (
        "'b7' is no block whose kind can be chosen here. The blocks are b0, b1"
    )
    kinds = "Give one of full, linconv, stride, global_local"
    assert refused({"layout": {"b0": "full"}}) == f"no kind of 'b1'. {kinds}"
    assert refused({"layout": {"b0": "full", "b1": "window"}}) == f"'b1' can't be 'window' here. {kinds}"
    assert refused({"layout": {"b0": "full", "b1": "linconv"}}) == (
        "the layout takes 1.612 seconds, the budget is 1.5 seconds. Raise the budget, or search with {use: dp}"
    )
    file.write_text(json.dumps({"layout": {"b1": "stride", "b0": "full"}}), "utf-8")
    assert list(given.choose(problem, WORK).layout.items()) == [("b0", "full"), ("b1", "stride")]
