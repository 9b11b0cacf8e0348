"""Tri-level pruning: counts and budgets, what is refused, plan and run alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import context_in, part, tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle
from dit_compress.model.cut import example_output
from dit_compress.model.figures import count_parameters
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.testing.models import tiny_denoiser

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.model.denoiser import Denoiser

LEVELS = {"block": {"remove": 1}, "head": {"remove": 1}, "ffn": {"keep": 0.75}}


def shape(denoiser: Denoiser) -> tuple[int, set[int], set[int]]:
    structure = denoiser.structure()
    return (
        structure.main.length,
        {found.heads for found in structure.attentions},
        {found.width for found in structure.feed_forwards},
    )


def prune(folder: Path, **options: Any) -> tuple[Bundle, dict[str, Any]]:
    """The step on a tiny bundle: the bundle it gives, and its figures."""
    step = part("prune", "trilevel", **{"search": "magnitude", **options})
    context = context_in(folder / "step", input=tiny_bundle(folder / "input"))
    result = step.run(context)
    assert result.bundle is not None
    return result.bundle, result.metrics


def test_plan_and_run_give_the_same_shape(tmp_path: Path) -> None:
    bundle, metrics = prune(tmp_path, levels=LEVELS)
    planned = part("prune", "trilevel", levels=LEVELS, search="magnitude").plan(Bundle.open(tmp_path / "input").spec)
    assert shape(bundle.denoiser()) == shape(planned.build_denoiser().to("meta")) == (2, {3}, {48})
    assert metrics["params_after"] == count_parameters(bundle.denoiser().module)
    assert metrics["params_before"] == count_parameters(tiny_denoiser("video_dit").module)
    assert metrics["params_kept"] == pytest.approx(metrics["params_after"] / metrics["params_before"])


def test_the_reloaded_bundle_computes_what_the_pruned_model_did(tmp_path: Path) -> None:
    step = part("prune", "trilevel", levels=LEVELS, search="random")
    context = context_in(tmp_path / "step", input=tiny_bundle(tmp_path / "input"))
    modules: list[Any] = []
    give = context.give
    context.give = lambda given, **more: modules.append(given["denoiser"]) or give(given, **more)  # type: ignore[method-assign]
    bundle = step.run(context).bundle
    loader = part("model", "video_dit")
    assert torch.equal(example_output(bundle.denoiser()), example_output(loader.denoiser(modules[0])))


def test_what_went_is_written_for_the_report(tmp_path: Path) -> None:
    prune(tmp_path, levels=LEVELS)
    kept = json.loads((tmp_path / "step" / "kept.json").read_text())
    assert {axis["level"] for axis in kept["axes"]} == {"block", "head", "ffn"}
    assert kept["kept"]["block:transformer_blocks"]["of"] == 3
    assert sum(stop - start for start, stop in kept["kept"]["block:transformer_blocks"]["units"]) == 2
    assert "scores" in json.loads((tmp_path / "step" / "search.json").read_text())


def test_a_level_that_is_not_named_stays(tmp_path: Path) -> None:
    bundle, _ = prune(tmp_path, levels={"head": {"remove": 2}})
    assert shape(bundle.denoiser()) == (3, {2}, {64})


def test_a_budget_is_met_within_one_percent_from_below(tmp_path: Path) -> None:
    budget = round(0.7 * count_parameters(tiny_denoiser("video_dit").module))
    _, metrics = prune(tmp_path, budget={"params": budget})
    assert 0.99 * budget <= metrics["params_after"] <= budget


def test_pruned_twice_the_log_holds_both(tmp_path: Path) -> None:
    prune(tmp_path, levels={"block": {"remove": 1}})
    step = part("prune", "trilevel", levels={"head": {"remove": 1}}, search="magnitude")
    again = step.run(context_in(tmp_path / "again", input=Bundle.open(tmp_path / "step" / "bundle"))).bundle
    assert [entry["name"] for entry in again.data["components"]["denoiser"]["log"]] == ["prune", "prune"]
    assert shape(again.denoiser()) == (2, {3}, {64})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": {"head": {"remove": 4}}}, r"head:\S+ has 4 units and would keep 0. Keep 1 to 4"),
        ({"levels": {"block": {"remove": 9}}}, r"block:\S+ has 3 units and would keep -6. Keep 1 to 3"),
        ({"levels": {"block": {}}}, "level 'block' has neither 'remove' nor 'keep'. Give a count, or use 'budget'"),
        (
            {"budget": {"params": 10}},
            r"no plan comes within 1% of 10 parameters.* The nearest that can be met is [\d,]+",
        ),
        (
            {"levels": {"block": {"remove": 1}}, "limit": {"params": 10}},
            r"has [\d,]+ parameters, the limit is 10. Remove",
        ),
    ],
)
def test_what_can_not_be_is_refused_by_plan_and_run_alike(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    step = part("prune", "trilevel", search="magnitude", **options)
    context = context_in(tmp_path / "step", input=tiny_bundle(tmp_path / "input"))
    with pytest.raises(UserError, match=message):
        step.plan(context.input.spec)
    with pytest.raises(UserError, match=message):
        step.run(context)
    assert list((tmp_path / "step").iterdir()) == []


def test_the_nearest_budget_named_can_be_met(tmp_path: Path) -> None:
    spec = tiny_bundle(tmp_path / "input").spec
    with pytest.raises(UserError) as caught:
        part("prune", "trilevel", search="magnitude", budget={"params": 10}).plan(spec)
    nearest = int(str(caught.value).rsplit(" ", 1)[-1].replace(",", ""))
    assert nearest < count_parameters(spec.build_denoiser().module) / 2
    after = part("prune", "trilevel", search="magnitude", budget={"params": nearest}).plan(spec)
    assert count_parameters(after.build_denoiser().module) <= nearest


def test_levels_and_budget_exclude_each_other() -> None:
    both = {"use": "trilevel", "search": "magnitude", "levels": {"block": {"remove": 1}}, "budget": {"params": 10}}
    with pytest.raises(UserError, match="'levels' and 'budget' exclude each other"):
        make_part("prune", both, installed())
    with pytest.raises(UserError, match=r"give 'levels' \(explicit counts\) or 'budget'"):
        make_part("prune", {"use": "trilevel", "search": "magnitude"}, installed())
