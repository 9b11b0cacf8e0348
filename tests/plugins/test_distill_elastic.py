"""Elastic training: the loss by hand and of models cut out, draws, resume, validation, what each width is worth."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.model import flow
from dit_compress.model.flow import Flow
from dit_compress.plugin.options import Options, Plugin
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.report.data import Run
from dit_compress.report.page import render
from dit_compress.report.result import outcome
from dit_compress.report.widths import width_tables
from dit_compress.step.context import Result
from dit_compress.structure.nesting import Nesting
from dit_compress.testing.distillers import DistillerContract
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.loop import fit
from dit_compress.train.options import check_objectives
from dit_compress_plugins.distill_elastic import ElasticOptions
from dit_compress_plugins.distill_elastic.distiller import ElasticObjective, drawn, over_networks
from dit_compress_plugins.evaluate_widths.step import WidthsEvaluation
from dit_compress_plugins.prune_nested import NestedOptions
from dit_compress_plugins.prune_nested.step import Widths

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.train.objective import Batch, Objective


@cache
def nesting() -> Nesting:
    student = tiny_denoiser("video_dit")
    widths = Widths.of(NestedOptions(levels=["block", "head", "ffn"]), student)
    return widths.proven(student, lambda axis: tuple(range(axis.units))[::-1])[0]


def objective(rate: float | None = None, **options: Any) -> ElasticObjective:
    return ElasticObjective(ElasticOptions(**options), tiny_denoiser("video_dit"), nesting(), words(), Flow(), rate)


class TestElasticContract(DistillerContract):
    def objective(self) -> Objective:
        return objective(1e-3, lr=1e-3, subnets=2)

    def batch(self) -> Batch:
        return batch(words())


# ------------------------------------------------------------------ the loss


def test_the_loss_by_hand() -> None:
    """Velocities 1 (whole) and 0.5, target 0: (1 + 0.25 + w·0.25) / 2."""
    flows, distance = torch.tensor([0.25, 1.0]), torch.tensor([0.25])
    assert [float(over_networks(flows, distance, weight)) for weight in (0.0, 1.0, 3.0)] == [0.625, 0.75, 1.0]


def test_the_loss_is_that_of_the_models_cut_out() -> None:
    """Each width's model compacted, called by itself; the whole one's velocity is no way for gradients."""
    made = objective(subnets=2, caption_dropout=0.0, kd_weight=0.5)
    given = batch(made.text)
    losses = made.loss(made.phases[0], given)
    noise = given.streams.normal("noise", given.x0.shape[1:])
    sigma = Flow().warp(torch.sigmoid(given.streams.normal("sigma", ())))
    x, cond = flow.interpolate(given.x0, noise, sigma), made.text(given.tokens)
    whole, flows, distances = made.student(x, sigma, cond), [], []
    for width in (0.375, 0.5, 1.0):
        small = copy.deepcopy(made.student)
        cut_out(small, made.nesting, width)
        velocity = small(x, sigma, cond)
        flows.append((velocity - (noise - given.x0)).square().mean())
        distances.append((velocity - whole.detach()).square().mean())
    assert float(losses["loss"]) == pytest.approx(float(sum(flows) + 0.5 * sum(distances)) / 3, rel=1e-5)
    assert float(losses["flow_loss"]) == pytest.approx(float(flows[2]), rel=1e-5)
    assert float(losses["sub_flow_loss"]) == pytest.approx(float(flows[0] + flows[1]) / 2, rel=1e-5)
    assert float(losses["kd_loss"]) == pytest.approx(float(distances[0] + distances[1]) / 2, rel=1e-4)
    # What no narrow width has learns from the flow of the whole model alone.
    made.student.zero_grad()
    losses["loss"].backward()
    axis = next(axis for axis in made.axes if axis.level == "ffn" and axis.block == 2)
    member = next(member for member in axis.members if member.dim == 1)
    weight = made.student.module.get_parameter(member.tensor)
    found, only = weight.grad.clone(), torch.autograd.grad(flows_of_whole(made, given) / 3, weight)[0]
    gone = member.indices[[unit for unit in range(64) if unit not in made.nesting.kept(0.5)[axis.name]]].ravel()
    assert gone.shape == (32,)
    torch.testing.assert_close(found[:, gone], only[:, gone], rtol=1e-4, atol=1e-8)
    assert not torch.allclose(found, only, rtol=1e-2)


def cut_out(denoiser: Any, nesting: Nesting, width: float) -> None:
    from dit_compress.structure.apply import apply_edits
    from dit_compress.structure.edits import edits_from_data

    apply_edits(denoiser.module, edits_from_data(nesting.cut(width)["data"]["edits"]))


def flows_of_whole(made: ElasticObjective, given: Batch) -> torch.Tensor:
    return made.loss(made.phases[0], given)["flow_loss"]


def test_a_validation_sees_every_width() -> None:
    made = objective(caption_dropout=0.0)
    given = batch(made.text)
    given.held_out = True
    with torch.no_grad():
        found = made.loss(made.phases[0], given)
    shown = [float(found[name]) for name in made.phases[0].shown]
    assert list(made.phases[0].shown) == ["flow_loss_0.375", "flow_loss_0.5", "flow_loss_1"]
    assert shown[2] == float(found["flow_loss"])
    assert sum(shown[:2]) / 2 == pytest.approx(float(found["sub_flow_loss"]))
    given.held_out = False
    with torch.no_grad():
        assert made.phases[0].shown[0] not in made.loss(made.phases[0], given)


# ------------------------------------------------------------------ draws


def test_each_set_of_widths_is_equally_likely() -> None:
    widths, steps = [0.25, 0.375, 0.5], range(3000)
    seen = Counter(tuple(drawn(ElasticOptions(subnets=2), widths, 7, step)) for step in steps)
    assert set(seen) == {(0.25, 0.375), (0.25, 0.5), (0.375, 0.5)}
    assert all(900 < count < 1100 for count in seen.values())
    sandwich = Counter(tuple(drawn(ElasticOptions(subnets=2, sandwich=True), widths, 7, step)) for step in steps)
    assert set(sandwich) == {(0.25, 0.375), (0.25, 0.5)}
    assert all(1400 < count < 1600 for count in sandwich.values())
    one = [drawn(ElasticOptions(), widths, 7, step) for step in range(20)]
    assert one == [drawn(ElasticOptions(), widths, 7, step) for step in range(20)]
    assert one != [drawn(ElasticOptions(), widths, 8, step) for step in range(20)]


def trained(folder: Path) -> ElasticObjective:
    made = objective(steps=6, batch=4, lr=1e-3, warmup=0, checkpoint_every=3)
    given = batch(made.text, size=8)
    samples = Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False)
    context = context_in(folder)
    context.trackers = [make_part("tracker", "jsonl", installed())]
    fit(made, samples, made.options, context)
    return made


def test_a_resumed_step_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "killed")
    for checkpoint in (tmp_path / "killed" / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    again = trained(tmp_path / "killed")
    ours, theirs = again.student.state_dict(), whole.student.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    lines = [(tmp_path / name / "curves.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1]
    rows = [json.loads(line) for line in lines[0].splitlines()]
    assert [set(row) for row in rows] == [{"step", "loss", "flow_loss", "sub_flow_loss", "kd_loss", "grad_student"}] * 6


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(UserError, match="'sandwich' with one of 'subnets' trains the smallest width alone: give 2"):
        part("distill", "elastic", sandwich=True)
    with pytest.raises(UserError, match="'checkpoint_activations' computes blocks again when the masks.* 'accumulate'"):
        part("distill", "elastic", checkpoint_activations=True)
    (found,) = check_objectives(make_part("search", {"use": "taylor", "objective": "elastic"}, installed()))
    assert "'elastic' can't be the 'objective' of a search: it trains the widths of a nested bundle" in str(found)


def test_widths_that_a_model_has_no_more_are_named() -> None:
    made = objective()
    cuts = {0.5: {"kept": {"head:gone": {"of": 4, "units": [[0, 2]]}}, "edits": []}}
    with pytest.raises(UserError, match="its widths cut 'head:gone', which is found in it no more. Make the widths"):
        ElasticObjective(made.options, made.student, Nesting(("head",), cuts), words(), Flow())


# ------------------------------------------------------------------ what each width is worth


class CountOptions(Options):
    """An evaluation without options."""

    of: str = "params"


class Count:
    """Counts what it is given, and writes a file."""

    def __init__(self, options: CountOptions) -> None:
        self.options = options

    def plan(self, spec: Any) -> Any:
        return spec

    def run(self, context: Any) -> Result:
        count = sum(parameter.numel() for parameter in context.input.denoiser().parameters())
        (context.folder / "said.txt").write_text(str(count))
        return Result(metrics={"counted": float(count)}, files={"said": "said.txt"})


def test_each_width_is_evaluated_beside_its_cost(tmp_path: Path) -> None:
    bundle = part("prune", "nested").run(context_in(tmp_path / "nested", input=tiny_bundle(tmp_path / "whole"))).bundle
    plugin = Plugin(name="count", options=CountOptions, load=f"{__name__}:Count", quality="counted")
    made = make_part("evaluate", {"use": "widths", "of": "excess"}, installed())
    given = made.options.model_copy(update={"of": type(made.options.of)("evaluate", plugin, CountOptions())})
    step, context = WidthsEvaluation(given), context_in(tmp_path / "step", input=bundle)
    step.plan(bundle.spec)
    found = step.run(context)
    assert found.metrics["metric"] == "counted"
    assert list(found.metrics["widths"]) == ["0.375", "0.5", "1"]
    for width, figures in found.metrics["widths"].items():
        assert figures["counted"] == figures["params"] > 0
        said = context.folder / found.files[f"said-{width}"]
        assert (said.name, said.parent.name, said.read_text()) == ("said.txt", f"width-{width}", str(figures["params"]))
    run = run_of(found.metrics)
    shown, page = width_tables(run)[0], render(run, outcome(run))
    assert "<h2>Widths</h2>" in page
    assert f"{figures_of(found, '0.5')['counted']:,.0f}</td></tr>" in page
    assert shown.names == ["counted"]
    small, whole = figures_of(found, "0.5"), figures_of(found, "1")
    assert shown.rows["0.5"] == {
        "params": small["params"], "flops": None, "share": small["params"] / whole["params"],
        "counted": small["counted"], "counted_error": None,
    }  # fmt: skip
    judged = {"excess": 1.25, "excess_error": 0.125, "explained": 0.5, "explained_error": 0.05}
    widths = {width: {"params": 1000, **judged, "floors": {"linear": 0.25}} for width in ("0.5", "1")}
    told = run_of({"metric": "excess", "quality": "explained", "widths": widths})
    page = render(told, outcome(told))
    assert '<td class="n">100%</td><td class="n">1.25 ± 0.12</td><td class="n">0.5 ± 0.05</td></tr>' in page
    assert "Floors of explained: linear 0.250." in page
    with pytest.raises(UserError, match="it has one width alone"):
        step.plan(tiny_bundle(tmp_path / "plain").spec)
    one = WidthsEvaluation(given.model_copy(update={"widths": [0.6]}))
    with pytest.raises(UserError, match=r"no width 0\.6.* Give one of 0\.375, 0\.5, 1"):
        one.plan(bundle.spec)


def figures_of(found: Result, width: str) -> dict[str, Any]:
    figures: dict[str, Any] = found.metrics["widths"][width]
    return figures


def run_of(metrics: dict[str, Any]) -> Run:
    from dit_compress.report.data import Step

    step = Step("by-width", "evaluate", "widths", {}, {"input": "elastic"}, {}, metrics, None, {}, 0.0, None, None)
    return Run("run", (step,), (), "", {"torch": "2.13.0", "threads": 1, "machine": "x86_64", "cpus": 2})
