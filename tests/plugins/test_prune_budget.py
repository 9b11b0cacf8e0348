"""Budgets of the prune step on a bundle of a run: FLOPs, latency, measured curves, widths of each block."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import context_in, part, tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.measure.figure3 import axes_of, opened
from dit_compress.measure.latency import machine
from dit_compress.measure.table import table_of
from dit_compress.model.figures import count_flops, count_parameters
from dit_compress.plugin.registry import installed, use
from dit_compress.recipe import load, make_part
from dit_compress.report.trials import read_trials
from dit_compress.run.plan import plan
from dit_compress.search.allocate import Question
from dit_compress.search.budget import Price, flops_price, parameter_price
from dit_compress.search.curves import default_curves
from dit_compress.search.problem import SearchProblem
from dit_compress.search.trial import Trial
from dit_compress.step.context import Context
from dit_compress.structure.facts import Axis
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.train.healing import FlowMatching
from dit_compress.train.loop import draw_batch
from dit_compress_plugins.prune_trilevel import Budget, counts, evidence

SIZE = (2, 2, 2)


def context(smoke: Path, tmp_path: Path) -> Context:
    made, _ = opened(str(smoke / "steps" / "teacher" / "bundle"), tmp_path / "step")
    made.folder.mkdir(parents=True, exist_ok=True)
    return replace(made, record={"kind": "prune"})


def prune(where: Context, search: Any = "magnitude", *, budget: dict[str, Any]) -> Any:
    """The step, by the formula unless the budget names other curves: measuring takes seconds."""
    return part("prune", "trilevel", search=search, budget={"curves": "default", **budget}).run(where)


def total(where: Context) -> tuple[float, int]:
    """FLOPs and parameters of the whole."""
    denoiser = where.input.denoiser()
    params = count_parameters(denoiser.module)
    return count_flops(denoiser, SIZE), params


def test_a_budget_of_flops_is_met_by_the_model_that_is_written(smoke: Path, tmp_path: Path) -> None:
    where = context(smoke, tmp_path)
    budget = 0.6 * total(where)[0]
    result = prune(where, budget={"flops": budget})
    flops = count_flops(result.bundle.denoiser(), SIZE)
    assert 0.99 * budget <= flops <= budget
    assert result.metrics["flops"] == flops
    planned = part("prune", "trilevel", search="magnitude", budget={"flops": budget, "curves": "default"}).plan(
        replace(where.input.spec, video=where.video)
    )
    assert count_flops(planned.build_denoiser().to("meta"), SIZE) == flops


def test_a_level_too_coarse_is_planned_below_the_budget_where_plans_are_tried(smoke: Path, tmp_path: Path) -> None:
    """Blocks alone: the whole weighs 1, a block less does not come within 1% of 0.9999."""
    where = context(smoke, tmp_path)
    whole = count_parameters(where.input.denoiser())
    budget: dict[str, Any] = {"params": int(0.9999 * whole), "levels": ["block"], "curves": "default"}
    spec = replace(where.input.spec, video=where.video, data=True)
    with pytest.raises(UserError, match="no plan comes within 1%"):
        part("prune", "trilevel", search="magnitude", budget=budget).plan(spec)
    after = part("prune", "trilevel", search="magnitude", budget={**budget, "trials": {}}).plan(spec)
    before, left = (each.build_denoiser().structure().main.length for each in (spec, after))
    assert left == before - 1


def test_flops_need_a_video_size(tmp_path: Path) -> None:
    bare = context_in(tmp_path / "step", input=tiny_bundle(tmp_path / "input"))
    with pytest.raises(UserError, match="no VAE tells it. Give 'size', its cells .T, H, W., or put a 'latent'"):
        prune(bare, budget={"flops": 1e9})


def a_table(where: Context, path: Path) -> Price:
    """A machine on which seconds are FLOPs."""
    denoiser = where.input.spec.build_denoiser().to("meta")
    axes = [axis for found in axes_of(denoiser, ("block", "head", "ffn")).values() for axis in found]
    price = replace(flops_price(denoiser, axes, SIZE), unit="seconds")
    path.write_text(json.dumps(table_of(price, axes, SIZE, "a phone")))
    return price


def test_a_budget_of_seconds_by_a_supplied_table(smoke: Path, tmp_path: Path) -> None:
    where = context(smoke, tmp_path)
    a_table(where, tmp_path / "table.json")
    seconds = 0.7 * total(where)[0]
    latency = {"seconds": seconds, "table": str(tmp_path / "table.json")}
    with pytest.raises(UserError, match=r"measured on 'a phone', the budget is for '.*'"):
        prune(where, budget={"latency": latency})
    assert list(where.folder.iterdir()) == []
    result = prune(where, budget={"latency": {**latency, "machine": "a phone"}})
    flops = count_flops(result.bundle.denoiser(), SIZE)
    assert 0.99 * seconds <= flops <= seconds
    assert result.metrics["seconds"] == flops


def test_a_budget_of_seconds_by_a_table_measured_here(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine says: the table is written beside the result, and by it the budget is met."""
    where = context(smoke, tmp_path)
    monkeypatch.setattr(counts, "measured_table", cache_one(counts.measured_table))
    with pytest.raises(UserError, match=r"no plan comes within 1% of 1000 seconds from below. The nearest") as caught:
        prune(where, budget={"latency": {"seconds": 1000}})
    seconds = 0.7 * float(str(caught.value).rsplit(" ", 1)[-1])
    try:
        result = prune(where, budget={"latency": {"seconds": seconds}})
    except UserError as error:
        seconds = float(str(error).rsplit(" ", 1)[-1])
        result = prune(where, budget={"latency": {"seconds": seconds}})
    table = json.loads((where.folder / result.files["latency"]).read_text())
    assert table["machine"] == machine()
    assert 0.99 * seconds <= result.metrics["seconds"] <= seconds
    assert result.metrics["params_kept"] < 1


def cache_one(measure: Any) -> Any:
    """Measure once: a second measurement would say something else."""
    found: list[Any] = []

    def once(*given: Any) -> Any:
        found.extend([] if found else [measure(*given)])
        return found[0]

    return once


def test_measured_curves_are_written_and_decide(smoke: Path, tmp_path: Path) -> None:
    where = context(smoke, tmp_path)
    budget = round(0.8 * total(where)[1])
    result = prune(where, budget={"params": budget, "curves": None})
    assert result.metrics["curves"] == "measured", "the default, where there is data"
    assert 0.99 * budget <= result.metrics["params_after"] <= budget
    report = json.loads((where.folder / result.files["sensitivity"]).read_text())
    assert report["quality"] == "flow_loss"
    assert set(report["levels"]) == {"block", "head", "ffn"}
    again = replace(where, folder=tmp_path / "again")
    again.folder.mkdir()
    path = str(where.folder / "sensitivity.json")
    assert prune(again, budget={"params": budget, "curves": path}).bundle.digest() == result.bundle.digest()
    assert where.notes == []
    planned = part("prune", "trilevel", search="magnitude", budget={"params": budget})
    assert (
        planned.plan(replace(where.input.spec, data=True))
        .notes[-1]
        .endswith("an estimate by the formula: what is measured when the step runs settles the allocation")
    )
    assert (
        planned.plan(where.input.spec)
        .notes[-1]
        .endswith("; there is no data to measure sensitivity on: the budget is shared out by the paper's proportions")
    )


def test_points_of_the_curves_are_ranked_by_taylor(smoke: Path, tmp_path: Path, few: None) -> None:
    """What a point of ``measured`` loses is what the masks of the best units by their derivatives lose."""
    where = context(smoke, tmp_path)
    denoiser = where.input.denoiser()
    axes = tuple(axis for found in axes_of(denoiser, ("block", "head", "ffn")).values() for axis in found)
    budget = Budget(params=1, curves="recovered", heal={"steps": 2, "batch": 4, "lr": 1e-3})
    with evidence.evidence(budget, denoiser, axes, where) as found:
        heads = [axis for axis in axes if axis.level == "head"]
        trial = Trial(FlowMatching(denoiser, found.text, where.input.flow), problem_of(denoiser, axes), batches(found))
        slopes = trial.gradients()
        kept = {}
        for axis in heads:
            order = slopes[axis.name].square().mean(dim=0).sqrt().argsort(descending=True)[:2]
            kept[axis.name] = tuple(sorted(order.tolist()))
        with masked(denoiser.module, heads, hard_masks(heads, kept, next(denoiser.parameters()))):
            expected = found.grid("train").loss(denoiser)
        rows = {row["removed"]: row["flow_loss"] for row in found.curves("measured")["levels"]["head"]}
        recovered = found.curves("recovered")
    assert rows[2] == expected
    assert recovered["whole"]["flow_loss"] < evidence_loss(found, denoiser)
    assert recovered["levels"].keys() == {"block", "head", "ffn"}


def problem_of(denoiser: Any, axes: Any) -> SearchProblem:
    return SearchProblem(denoiser, axes, {})


def batches(found: Any) -> list[Any]:
    return [draw_batch(found.samples, evidence.BATCH, found.context.seed, step) for step in range(evidence.BATCHES)]


def evidence_loss(found: Any, denoiser: Any) -> float:
    """The whole model's held-out loss, not healed."""
    return found.grid("test").loss(denoiser)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less data to look at."""
    monkeypatch.setattr(evidence, "SAMPLES", 4)
    monkeypatch.setattr(evidence, "BATCHES", 2)
    monkeypatch.setattr(evidence, "BATCH", 4)


def test_whole_plans_of_every_family_are_tried(smoke: Path, tmp_path: Path, few: None) -> None:
    """Every family is in the field, the one that stays has the least loss, is what was written, and always the same."""
    where = context(smoke, tmp_path / "one")
    budget = round(0.8 * total(where)[1])
    asked = {"params": budget, "trials": {"plans": 20, "steps": 2}, "heal": {"batch": 4}}
    result = prune(where, budget=asked)
    field = result.metrics["trials"]
    names = {name for plan in field["plans"] for name in plan["family"].split(", ")}
    pairs = {"block + head", "block + ffn", "head + ffn"}
    assert names == {"block + head + ffn", *pairs, "block alone", "head alone", "ffn alone", "paper's proportions"}
    assert (field["none"], field["steps"], field["budget"]) == ([], 2, budget)
    assert all(plan["cost"] <= budget for plan in field["plans"])
    (chosen,) = (plan for plan in field["plans"] if plan["chosen"])
    rounds = len(chosen["losses"])
    assert chosen["losses"][-1] == min(plan["losses"][-1] for plan in field["plans"] if len(plan["losses"]) == rounds)
    assert chosen["losses"][-1] == min(loss for plan in field["plans"] for loss in plan["losses"])
    assert result.metrics["params_after"] == chosen["cost"]
    structure = result.bundle.denoiser().structure()
    assert chosen["counts"] == {
        "block": [structure.main.length, 4],
        "head": [structure.attentions[0].heads, 4],
        "ffn": [structure.feed_forwards[0].width, 128],
    }
    with evidence.evidence(Budget(**asked), where.input.denoiser(), *field_of(where, budget)[:1], where) as found:
        again = found.trials(field_of(where, budget)[1], 2, 20)[1]
    assert again == field
    ranked = read_trials(json.loads(json.dumps(field))).ranked
    assert ranked[0].chosen
    assert [len(plan.losses) for plan in ranked] == sorted(
        (len(plan["losses"]) for plan in field["plans"]), reverse=True
    )


def field_of(where: Context, budget: int) -> tuple[tuple[Axis, ...], Question]:
    """The axes, and what the step asks of them."""
    denoiser = where.input.denoiser()
    axes = tuple(axis for found in axes_of(denoiser, ("block", "head", "ffn")).values() for axis in found)
    price = parameter_price(denoiser.module, axes)
    return axes, Question(axes, {"block": 1, "head": 1, "ffn": 8}, price, default_curves(price, axes), budget)


def test_curves_that_make_heads_free_take_heads(smoke: Path, tmp_path: Path) -> None:
    where = context(smoke, tmp_path)
    whole = total(where)[1]
    heads = {"quality": "q", "whole": {"q": 0}, "levels": {}}
    for level, loss in (("block", 9.0), ("head", 0.0), ("ffn", 9.0)):
        heads["levels"][level] = [{"removed": 1, "of": 2, "q": loss}]
    (tmp_path / "curves.json").write_text(json.dumps(heads))
    one_head = where.input.denoiser()
    axes = axes_of(one_head, ["head"])["head"]
    budget = round(whole - sum(parameter_price(one_head.module, axes).units.values()))
    result = prune(where, budget={"params": budget, "curves": str(tmp_path / "curves.json")})
    structure = result.bundle.denoiser().structure()
    assert {attention.heads for attention in structure.attentions} == {3}
    assert structure.main.length == 4


@pytest.mark.parametrize("search", ["magnitude", "random", "taylor", "greedy"])
def test_widths_of_each_block(smoke: Path, tmp_path: Path, search: str) -> None:
    """Heads of block 0 and channels of block 1 are dear; block 2 costs nothing: it goes, the dear ones stay."""
    where = context(smoke, tmp_path)
    denoiser = where.input.denoiser()
    levels = axes_of(denoiser, ("block", "head", "ffn"))
    report: dict[str, Any] = {"quality": "q", "whole": {"q": 0.0}, "levels": {}, "axes": {}}
    report["blocks"] = {"block:transformer_blocks": [5.0, 5.0, 0.0, 5.0]}
    for axis in (*levels["head"], *levels["ffn"]):
        dear = axis.name.startswith(("head:transformer_blocks.0.", "ffn:transformer_blocks.1."))
        report["axes"][axis.name] = [{"removed": 1, "of": 2, "q": 4.0 if dear else 0.1}]
    (tmp_path / "curves.json").write_text(json.dumps(report))
    budget = round(0.6 * count_parameters(denoiser.module))
    asked = {"params": budget, "curves": str(tmp_path / "curves.json"), "heterogeneous": True}
    few = {} if search in ("magnitude", "random") else {"batches": 1, "batch": 2}
    few |= {"at_once": 50} if search == "greedy" else {}
    result = prune(where, search={"use": search, **few}, budget=asked)
    assert 0.99 * budget <= result.metrics["params_after"] <= budget
    kept = json.loads((where.folder / "kept.json").read_text())["kept"]
    assert kept["block:transformer_blocks"]["units"] == [[0, 2], [3, 4]]
    structure = result.bundle.denoiser().structure()
    heads = [attention.heads for attention in structure.attentions]
    widths = [feed_forward.width for feed_forward in structure.feed_forwards]
    assert heads[:2] == [4, 4]
    assert widths[1] == 128
    assert min(heads) < 4 or min(widths) < 128


def test_widths_of_each_block_are_planned_where_equal_ones_come_too_far_from_the_budget(tmp_path: Path) -> None:
    """Four blocks of 256 channels at 60%, before data are looked at."""
    path = tmp_path / "r.yaml"
    path.write_text("""
name: each
model: {use: video_dit, preset: tiny, layers: 4, heads: 4, head_width: 8, ffn: 256, channels: 16, text_width: 16}
text: {use: words, width: 16, length: 4, layers: 1, heads: 4}
data: {use: mixture, composed: 0.9, num_clips: 64, num_test: 16}
steps:
  - latent: {use: given}
  - distill: {use: flow, steps: 4, batch: 4}
  - prune: {use: trilevel, search: magnitude, budget: {params: 60%, heterogeneous: true, levels: [block, ffn]}}
""")
    *_, before, after = (row.after["params"] for row in plan(load(path, use()), deep=False))
    assert 0.99 * 0.6 * before <= after <= 0.6 * before
    path.write_text(path.read_text().replace("heterogeneous: true, ", ""))
    with pytest.raises(UserError, match="no plan comes within 1%"):
        plan(load(path, use()), deep=False)


@pytest.mark.parametrize(
    ("units", "parts"), [([256, 256], 32), ([200], 25), ([6296], 8), ([96, 64], 32), ([7], 7), ([37], 1)]
)
def test_a_budget_cuts_axes_into_parts_that_divide_them(units: list[int], parts: int) -> None:
    axes = [Axis(f"ffn:{index}", "ffn", number, "blocks") for index, number in enumerate(units)]
    assert counts._dividing(32, axes, "ffn") == parts


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "give one of 'params', 'flops', 'latency', not none"),
        ({"params": 5, "flops": 6.0}, "give one of 'params', 'flops', 'latency', not params and flops"),
        (
            {"params": 5, "heterogeneous": True, "curves": "default"},
            "'heterogeneous' needs curves of each axis: set 'curves' to 'measured'",
        ),
        ({"latency": {"seconds": 0}}, "seconds"),
        ({"params": 5, "levels": []}, "levels"),
        ({"params": 5, "heterogeneous": True, "trials": {}}, "'trials' are of plans with equal widths"),
        ({"params": 5, "heal": {"steps": 5}}, "'heal' belongs to 'curves: recovered' and 'trials': leave out"),
        (
            {"params": 5, "curves": "default", "blocks_by": "removals", "heal": {"lora": 4}},
            "'heal' belongs to .*; 'blocks_by' belongs to measured curves and 'trials'",
        ),
    ],
)
def test_options_that_contradict_each_other(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_part("prune", {"use": "trilevel", "search": "magnitude", "budget": budget}, installed())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"params": 10},
            r"no plan comes within 1% of 10 parameters from below: what can't be removed weighs [\d,]+\. ",
        ),
        ({"params": 200_000, "levels": ["blok"]}, "'budget' names the level 'blok'; .* Did you mean 'block'?"),
        ({"params": 200_000, "curves": "none.json"}, "none.json: no such file"),
        ({"params": 200_000, "curves": "measure"}, "'curves' is 'measure', which is no file. Did you mean 'measured'?"),
    ],
)
def test_budgets_that_can_not_be_met_leave_nothing(
    smoke: Path, tmp_path: Path, budget: dict[str, Any], message: str
) -> None:
    where = context(smoke, tmp_path)
    with pytest.raises(UserError, match=message):
        prune(where, budget=budget)
    assert list(where.folder.iterdir()) == []


def test_one_level_alone(smoke: Path, tmp_path: Path) -> None:
    where = context(smoke, tmp_path)
    with pytest.raises(UserError, match="The nearest that can be met is") as caught:
        prune(where, budget={"params": round(0.8 * total(where)[1]), "levels": ["ffn", "head"]})
    budget = int(str(caught.value).rsplit(" ", 1)[-1].replace(",", ""))
    result = prune(where, budget={"params": budget, "levels": ["ffn", "head"]})
    assert result.bundle.denoiser().structure().main.length == 4
    assert 0.99 * budget <= result.metrics["params_after"] <= budget
