"""``dit-compress try``: recipes of public models on twins of them, and those that make their models themselves."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from typer.testing import CliRunner

from dit_compress import report
from dit_compress.cli.app import app
from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet
from dit_compress.model.twins import TWINS
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load
from dit_compress.recipe.document import parse
from dit_compress.recipe.rehearsal import model_folder
from dit_compress.run import worker
from dit_compress.run.forks import fork, forking
from dit_compress.run.rehearsal import _named, prepare

if TYPE_CHECKING:
    from dit_compress.recipe.model import Recipe

pytestmark = pytest.mark.slow(150)

RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "models").glob("*.yaml"))
EXPERTS = "wan2.2-t2v-a14b"
OWN = [*sorted((RECIPES[0].parents[1] / "family").glob("*.yaml"))]
OWN += [RECIPES[0].parents[1] / f"{name}.yaml" for name in ("budgets", "mobile_video", "quickstart", "small_text")]
KINDS = ["latent", "prune", "distill", "distill", "export", "export"]


def small(recipe: Path, out: Path) -> Recipe:
    return load(prepare(recipe, out, installed()), installed())


def rehearsed(path: Path, out: Path) -> Recipe:
    """A recipe made small on a stand-in of the twin, whose weights nothing here reads."""
    (out / "model").mkdir()
    (out / "clips").mkdir()
    parts = {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "T5EncoderModel"]}
    (out / "model" / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **parts}))
    return small(path, out)


@pytest.mark.parametrize("path", [each for each in RECIPES if each.stem != EXPERTS], ids=lambda path: path.stem)
def test_a_recipe_becomes_a_small_one_on_a_twin(path: Path, tmp_path: Path) -> None:
    """Its steps stay in number, order and kind; text and VAE are the twin's; few steps of each are left."""
    recipe = rehearsed(path, tmp_path)
    assert [step.kind for step in recipe.steps] == KINDS
    assert [step.name for step in recipe.steps[1:]] == ["pruned", "compact", "student", "pipeline", "core-ml"]
    assert recipe.video == (1 if path.stem in ("flux.1-dev", "sd3.5-medium") else 9, 64, 64)
    assert recipe.text is not None
    assert recipe.text.as_data()["path"] == recipe.steps[0].part.as_data()["path"] == str(tmp_path / "model")
    for step in recipe.steps[2:4]:
        assert (step.part.as_data()["steps"], step.part.as_data()["batch"]) == (2, 2)
    assert recipe.steps[3].part.as_data()["sampling_steps"] == 4
    assert recipe.steps[3].part.as_data()["ema"] == 0.2
    levels = recipe.steps[1].part.as_data()["levels"]
    assert levels["block"]["remove"] == levels["head"]["remove"] == 1
    assert levels["ffn"]["keep"] == 0.75


def test_a_recipe_of_two_experts_becomes_a_small_one(tmp_path: Path) -> None:
    """The second expert is the twin's, too, and taught by itself; a judge has no more blocks than a pruned twin."""
    (path,) = (each for each in RECIPES if each.stem == EXPERTS)
    recipe = rehearsed(path, tmp_path)
    trained = ["prune", "distill", "distill"]
    assert [step.kind for step in recipe.steps] == ["latent", *trained, "transform", *trained, "export"]
    second = recipe.step("low-noise")
    assert second is not None
    assert second.inputs == {"input": "diffusers_vae"}
    options = second.part.as_data()["model"]
    assert (options["path"], options["part"]) == (str(tmp_path / "model"), "transformer_2")
    for name, teacher in {"compact-high": "diffusers_vae", "compact-low": "low-noise", "low": None}.items():
        assert recipe.step(name).inputs.get("teacher") == teacher, "judged on clips, it reads none"
    assert recipe.step("pipeline").inputs == {"input": "high", "other": "low"}
    for name in ("high", "low"):
        given = recipe.step(name).part.as_data()
        judge = {"use": "dit_block", "frozen_blocks": 1, "learnable_blocks": 1, "hidden": None}
        assert (given["discriminator"], given["steps"], given["sampling_steps"]) == (judge, 2, 4)


def test_every_recipe_names_a_twin() -> None:
    named = {path.stem: _named(str(model_folder(parse(path.read_text(), str(path))))) for path in RECIPES}
    assert len(set(named.values())) == len(RECIPES) == 11
    assert named["wan2.2-ti2v-5b"] == "Wan2.2-TI2V-5B"
    assert named["hunyuanvideo-1.5"] == "HunyuanVideo-1.5"
    assert set(named.values()) <= set(TWINS)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_a_recipe_that_makes_its_model_is_bounded(path: Path, tmp_path: Path) -> None:
    """Names, kinds and inputs of the steps stay; each trains for two steps on two clips, of a model of a few blocks."""
    whole, found = load(path, installed()), small(path, tmp_path)
    assert [(step.kind, step.name, step.inputs) for step in found.steps] == [
        (step.kind, step.name, step.inputs) for step in whole.steps
    ]
    assert [step.part.name for step in found.steps] == [step.part.name for step in whole.steps]
    for step in found.steps:
        if step.kind == "distill":
            assert (step.part.as_data()["steps"], step.part.as_data()["batch"]) == (2, 2)
    assert (tmp_path / "clips").exists() == (path.stem == "mobile_video")
    assert not (tmp_path / "model").exists()
    if found.model is not None:
        assert found.model.options.config()["layers"] <= 8
        assert found.model.options.config()["hidden"] <= 256
    if found.data is not None and path.stem != "mobile_video":
        assert (found.data.as_data()["num_clips"], found.data.as_data()["num_test"]) == (2, 2)


@pytest.mark.parametrize(
    ("levels", "left"),
    [
        ("[width, ffn]", {"width": {"keep": 0.75}, "ffn": {"keep": 0.75}}),
        ("[block.blocks, ffn]", {"block.blocks": {"remove": 1}, "ffn": {"keep": 0.75}}),
    ],
)
def test_a_budget_becomes_counts_of_its_levels(levels: str, left: dict[str, Any], tmp_path: Path) -> None:
    """A level of one stack is that level; the width counts too."""
    text = (OWN[0].parents[1] / "budgets.yaml").read_text()
    start = text.index("  - prune:")
    path = tmp_path / "r.yaml"
    path.write_text(
        text[:start] + f"  - prune: {{use: trilevel, search: magnitude, budget: {{params: 60%, levels: {levels}}}}}\n"
    )
    found = small(path, tmp_path).steps[-1].part.as_data()["levels"]
    given = {name: {key: level[key] for key in left[name]} for name, level in found.items()}
    assert given == left


def test_what_lies_beside_a_recipe_is_made(tmp_path: Path) -> None:
    """The paper's recipe reads a T5 and clips; a budget is of counts, a search's objective as it stands."""
    found = small(OWN[0].parents[1] / "mobile_video.yaml", tmp_path)
    assert found.text is not None
    assert found.model is not None
    assert found.text.name == "words"
    assert found.text.options.caption_width == found.model.options.caption_width == 128
    assert found.video == (9, 64, 64)
    search = found.steps[2].part.as_data()["search"]
    assert (search["steps"], search["objective"]["steps"]) == (2, 1000)
    assert found.steps[0].part.as_data()["widths"] == [32, 32, 32, 32]
    levels = small(OWN[0].parents[1] / "budgets.yaml", tmp_path).steps[1].part.as_data()["levels"]
    assert {name: level.get("remove") for name, level in levels.items()} == {"block": 1, "head": 1, "ffn": None}
    layout = small(OWN[0].parent / "layout.yaml", tmp_path).steps[4].part.as_data()
    assert layout["budget"]["flops"] == "85%"
    assert layout["layout"]["evaluations"] == layout["layout"]["population"] == layout["trial"]["steps"] == 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_to_a_pipeline_that_stock_diffusers_opens(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe as it is, but for Core ML, whose files cost minutes: every expert of the pipeline is a smaller one.

    The report of one is drawn: they show the same.
    """
    if path.stem != EXPERTS:
        monkeypatch.setattr(report, "write_report", lambda _folder: None)
    recipe = tmp_path / path.name
    recipe.write_text(path.read_text().partition("  - export: {use: coreml}")[0])
    done = CliRunner().invoke(app, ["try", str(recipe), "--out", str(tmp_path / "out"), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.split()[0] == str(tmp_path / "out" / "recipe.yaml")
    assert (tmp_path / "out" / "run" / "report.html").exists() is (path.stem == EXPERTS)
    with quiet():
        files = tmp_path / "out" / "run" / "steps" / "pipeline" / "files"
        made = diffusers.DiffusionPipeline.from_pretrained(files, trust_remote_code=True)
    index = json.loads((tmp_path / "out" / "model" / "model_index.json").read_text())
    assert type(made).__name__ == index["_class_name"]
    parts = [name for name in ("transformer", "transformer_2") if index.get(name, [None])[0] is not None]
    assert len(parts) == 1 + (path.stem == EXPERTS)
    for part in parts:
        whole = sum(file.stat().st_size for file in (tmp_path / "out" / "model" / part).glob("*.safetensors"))
        small = sum(file.stat().st_size for file in (files / part).glob("*.safetensors"))
        assert 0 < small < whole


def test_a_step_is_a_fork_with_its_own_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM to the command reaches it, as it does a process of its own."""

    def work(folder: Path) -> int:
        (folder / "seen").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(worker.STOPPED))
        while True:  # one that comes before it is passed on goes nowhere
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.05)

    monkeypatch.setattr(worker, "main", work)
    before, threads = signal.signal(signal.SIGTERM, lambda *_: None), torch.get_num_threads()
    try:
        with forking() as can:
            assert can == (sys.platform == "linux" and not torch.cuda.is_available())
            assert fork(tmp_path, 3) == worker.STOPPED == 75
    finally:
        signal.signal(signal.SIGTERM, before)
    process, given = (tmp_path / "seen").read_text().split()
    assert int(process) != os.getpid()
    assert given == "3"
    assert torch.get_num_threads() == threads


def test_what_can_not_be_tried_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {from: MyModel/}\nsteps:\n  - export: diffusers\n")
    with pytest.raises(UserError, match="no twin has the name of the folder 'MyModel'. Give --twin, one of: Wan2.1"):
        prepare(recipe, tmp_path / "out", installed())
    recipe.write_text("name: r\nmodel: {use: video_dit}\nsteps:\n  - export: diffusers\n")
    with pytest.raises(UserError, match=r"r.yaml:2: the recipe names no folder of a model, .* Leave out --twin"):
        prepare(recipe, tmp_path / "out", installed(), "LTX-Video")
    assert not (tmp_path / "out").exists()
