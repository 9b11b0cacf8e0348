"""What comes after a fold: a model that can be called at the timesteps of its table, and at no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import here
from modulated import QWEN, build, recorded
from toy import context_in, part, words

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.measure.figure3 import Chooser
from dit_compress.measure.quality import data_grid, drift_grid
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.pruning.prune import planned
from dit_compress.structure.edits import _KINDS
from dit_compress_plugins.evaluate_latency.step import Timed

TABLE = (0.75, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "model"
    build(QWEN)[0].save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the small Qwen-Image whose modulation is a table of two sigmas; 0.5 is none of them."""
    maker, place = part("model", "diffusers", path=str(folder)), tmp_path_factory.mktemp("folded")
    module = maker.create()
    component = ComponentSpec("model", "diffusers", maker.config_of(module))
    spec = Spec(video=(1, 32, 32), flow=Flow(shift=1.0, num_steps=4), denoiser=component)
    whole = write_bundle(place / "bundle", spec, {"denoiser": module}, base=None, lineage=())
    step = part("prune", "modulation", table=list(TABLE))
    return Bundle.open(step.run(context_in(place / "step", input=whole)).bundle.path)


GROUPWISE = {"use": "groupwise", "objective": "flow"}
LOOKING: dict[str, dict[str, Any]] = {
    "the search 'taylor'": {"levels": {"block": {"remove": 1}}, "search": "taylor"},
    "the search 'groupwise'": {"levels": {"block": {"remove": 1}}, "search": GROUPWISE},
    "'curves: measured'": {"budget": {"params": "80%", "curves": "measured"}, "search": "magnitude"},
    "'curves: recovered'": {"budget": {"params": "80%", "curves": "recovered"}, "search": "magnitude"},
    "'trials'": {"budget": {"params": "80%", "trials": {}}, "search": "magnitude"},
}


@pytest.mark.parametrize("what", LOOKING)
def test_pruning_that_looks_at_data_is_refused_by_plan_and_run(folded: Bundle, tmp_path: Path, what: str) -> None:
    step, context = part("prune", "trilevel", **LOOKING[what]), context_in(tmp_path, input=folded)
    for call in (lambda: step.plan(folded.spec), lambda: step.run(context)):
        with pytest.raises(UserError, match=f"{what} looks at data") as caught:
            call()
        assert caught.value.problems[0][2].startswith("Fold after pruning")
    assert list(tmp_path.iterdir()) == []


TRAINED = """
name: folded
data: {{use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64]}}
model: {{use: diffusers, path: {folder}}}
text: {{use: words, width: 16, layers: 1, heads: 2}}
steps:
  - latent: {{use: video_vae, steps: 2, widths: [8, 8, 8, 8], blocks: 1, channels: 4}}
    name: vae
  - prune: {{use: modulation, {how}}}
    name: fold
  - prune: {{use: trilevel, levels: {{block: {{remove: 1}}}}, search: magnitude}}
    name: cut
  - distill: {{use: {use}, steps: 2}}
    name: heal
    {slots}
"""
KNOWS = "step 'heal' trains at any noise level, and since step 'fold' its {slot} knows those of one schedule"


@pytest.mark.parametrize(
    ("use", "slots", "slot"), [("flow", "", "input"), ("affine", "input: vae, teacher: cut", "teacher")]
)
def test_training_behind_a_fold_is_refused_by_check(
    folder: Path, tmp_path: Path, use: str, slots: str, slot: str, capsys: Any, monkeypatch: Any
) -> None:
    """Before anything runs, by the step's line; behind low rank it is trained like any other."""
    path = tmp_path / "r.yaml"
    text = TRAINED.format(folder=folder, how="table: schedule", use=use, slots="\n    ".join(slots.split(", ")))
    path.write_text(text)
    for verb in ("check", "plan"):
        status, _, said = here(capsys, monkeypatch, verb, path)
        assert status == 2
        assert f"{path}:13: {KNOWS.format(slot=slot)}. Put step 'fold' behind this one" in said.splitlines()
    path.write_text(text.replace("table: schedule", "rank: 4"))
    assert here(capsys, monkeypatch, "check", path)[0] == 0


def test_training_a_folded_bundle_is_refused_by_plan(
    folded: Bundle, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    encoder = words().encoder
    text = ComponentSpec("text", "words", part("text", "words").config_of(encoder))
    bundle = write_bundle(
        tmp_path / "bundle", replace(folded.spec, text=text), {"text": encoder}, base=folded, lineage=()
    )
    path = tmp_path / "r.yaml"
    path.write_text(
        "data: {use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64]}\n"
        f"steps:\n  - distill: {{use: flow, steps: 2}}\n    input: {bundle.path}\n"
    )
    status, _, said = here(capsys, monkeypatch, "plan", path)
    assert status == 2
    assert "training looks at data at any noise level, and the modulation is a table for a few. Fold after" in said


@pytest.mark.parametrize(
    ("use", "options", "said"),
    [
        ("mixture_samples", {"num_steps": 2}, "sampling in 2 steps calls the model at sigma 0.5, and .* table for 1, 0.75"),
        ("mixture_samples", {}, "sampling in 4 steps calls the model at sigma 0.5"),
        ("metrics", {"num_steps": 3}, "sampling in 3 steps calls the model at sigma 0.666667"),
        ("shapes", {"num_steps": 2}, "sampling in 2 steps"),
        ("vbench", {"num_steps": 2, "prompts": __file__}, "sampling in 2 steps"),
        ("latency", {}, "sampling in 4 steps"),
        ("excess", {}, "the excess looks at data at any noise level"),
    ],
)
def test_what_no_table_holds_is_refused_by_plan(folded: Bundle, use: str, options: dict[str, Any], said: str) -> None:
    spec = replace(folded.spec, latent=folded.spec.denoiser)
    with pytest.raises(UserError, match=said):
        part("evaluate", use, **options).plan(spec)


def test_sampling_at_the_tables_own_noise_levels_is_planned(folded: Bundle) -> None:
    spec = replace(folded.spec, latent=folded.spec.denoiser, flow=Flow(shift=3.0, num_steps=2))
    assert spec.flow.sigmas()[:-1] == (1.0, 0.75)
    assert part("evaluate", "mixture_samples").plan(spec) == spec


def test_a_budget_without_curves_is_shared_out_by_the_formula(folded: Bundle) -> None:
    spec = replace(folded.spec, data=True, latent=folded.spec.denoiser, text=folded.spec.denoiser)
    step = part("prune", "trilevel", budget={"params": 345_568, "levels": ["ffn"]}, search="magnitude")
    note = step.plan(spec).notes[-1]
    assert "the modulation is a table for a few noise levels to measure sensitivity on: the budget is shared" in note
    assert "an estimate" not in note


def test_grids_are_at_sigmas_of_the_table(folded: Bundle) -> None:
    denoiser = folded.denoiser()
    drift = drift_grid(denoiser, denoiser.example_size, 2, folded.flow)
    assert drift.loss(denoiser) == 0.0
    latent, _, cond = denoiser.example(2, denoiser.example_size)
    samples = Samples(latent, ["red", "blue"], {}, pixels=False)
    data = data_grid(samples, lambda _: cond, folded.flow, 2, denoiser.possible)  # type: ignore[arg-type]
    for grid in (drift, data):
        assert {value for row in grid.rows for value in row[1].tolist()} == set(TABLE)
    x, sigma_B, _, target = data.rows[-1]
    torch.testing.assert_close(x - sigma_B[:, None, None, None, None] * target, latent)


def test_sensitivity_refuses_a_search_that_looks_at_data(folded: Bundle) -> None:
    context: Any = SimpleNamespace()
    with pytest.raises(UserError, match="the search 'taylor' looks at data"):
        Chooser("taylor", folded.denoiser(), context)


def test_a_call_is_timed_at_a_sigma_of_the_table(folded: Bundle) -> None:
    timed = Timed.__new__(Timed)
    timed.denoiser = folded.denoiser()
    timed.noise, _, timed.cond = timed.denoiser.example(2, timed.denoiser.example_size)
    expected = timed.denoiser(timed.noise, torch.tensor([0.75, 0.75]), timed.cond)
    assert torch.equal(timed.call(), expected)


# ------------------------------------------------------------------ calls without a recipe


@pytest.mark.parametrize("live", [True, False])
def test_only_a_bundle_has_a_schedule(folder: Path, *, live: bool) -> None:
    model = build(QWEN)[0] if live else folder
    with pytest.raises(UserError, match="nothing says how this model is sampled. Give the sigmas"):
        dit_compress.prune(model, modulation={"table": "schedule"})
    with pytest.raises(UserError, match="nothing says how this model is sampled. Give the sigmas"):
        planned(folder, modulation={"table": "schedule"})


@pytest.mark.parametrize(
    "beside", [{"search": "random"}, {"curves": "report.json"}, {"heterogeneous": True}, {"size": (1, 2, 2)}]
)
def test_nothing_of_units_is_dropped_beside_modulation(beside: dict[str, Any]) -> None:
    denoiser, _ = recorded(QWEN)
    with pytest.raises(UserError, match=f"at once: '{next(iter(beside))}' is of units"):
        dit_compress.prune(denoiser.module, modulation={"rank": 4}, call=denoiser.recorded, **beside)


def test_the_concepts_name_every_edit() -> None:
    text = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text()
    assert [name for name in _KINDS if f"`{name}`" not in text] == []
