"""``dit-compress try``: recipes of public models on twins of them; one end to end, the others planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import pytest
from typer.testing import CliRunner

from dit_compress.cli.app import app
from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet
from dit_compress.model.twins import TWINS
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load
from dit_compress.recipe.document import parse
from dit_compress.recipe.rehearsal import model_folder
from dit_compress.run.rehearsal import _named, prepare

if TYPE_CHECKING:
    from dit_compress.recipe.model import Recipe

pytestmark = pytest.mark.slow(20)

RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "models").glob("*.yaml"))
KINDS = ["latent", "prune", "distill", "distill", "export", "export"]


def small(recipe: Path, out: Path) -> Recipe:
    return load(prepare(recipe, out, installed()), installed())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_becomes_a_small_one_on_a_twin(path: Path, tmp_path: Path) -> None:
    """Its steps stay in number, order and kind; text and VAE are the twin's; few steps of each are left."""
    (tmp_path / "model").mkdir()  # a stand-in of the twin, whose weights nothing here reads
    (tmp_path / "clips").mkdir()
    parts = {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "T5EncoderModel"]}
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **parts}))
    recipe = small(path, tmp_path)
    assert [step.kind for step in recipe.steps] == KINDS
    assert [step.name for step in recipe.steps[1:]] == ["pruned", "compact", "student", "pipeline", "core-ml"]
    assert recipe.video == (1 if path.stem in ("flux.1-dev", "sd3.5-medium") else 9, 64, 64)
    assert recipe.text is not None
    assert recipe.text.as_data()["path"] == recipe.steps[0].part.as_data()["path"] == str(tmp_path / "model")
    for step in recipe.steps[2:4]:
        assert (step.part.as_data()["steps"], step.part.as_data()["batch"]) == (2, 2)
    assert recipe.steps[3].part.as_data()["sampling_steps"] == 4
    levels = recipe.steps[1].part.as_data()["levels"]
    assert levels["block"]["remove"] == levels["head"]["remove"] == 1
    assert levels["ffn"]["keep"] == 0.75


def test_every_recipe_names_a_twin() -> None:
    named = {path.stem: _named(model_folder(parse(path.read_text(), str(path)))) for path in RECIPES}
    assert len(set(named.values())) == 10
    assert named["wan2.2-ti2v-5b"] == "Wan2.2-TI2V-5B"
    assert named["hunyuanvideo-1.5"] == "HunyuanVideo-1.5"
    assert set(named.values()) <= set(TWINS)


@pytest.mark.usefixtures("steps_here")
def test_ltx_runs_to_a_pipeline_that_stock_diffusers_opens(tmp_path: Path) -> None:
    """The recipe of LTX-Video as it is, but for Core ML, whose files cost minutes."""
    text = RECIPES[[path.stem for path in RECIPES].index("ltx-video")].read_text()
    recipe = tmp_path / "ltx.yaml"
    recipe.write_text(text.partition("  - export: {use: coreml}")[0])
    done = CliRunner().invoke(app, ["try", str(recipe), "--out", str(tmp_path / "out"), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.split()[0] == str(tmp_path / "out" / "recipe.yaml")
    with quiet():
        files = tmp_path / "out" / "run" / "steps" / "pipeline" / "files"
        made = diffusers.DiffusionPipeline.from_pretrained(files, trust_remote_code=True)
    assert type(made).__name__ == "LTXPipeline"
    assert len(made.transformer.transformer_blocks) == 2


def test_what_can_not_be_tried_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {from: MyModel/}\nsteps:\n  - export: diffusers\n")
    with pytest.raises(UserError, match="no twin has the name of the folder 'MyModel'. Give --twin, one of: Wan2.1"):
        prepare(recipe, tmp_path / "out", installed())
    recipe.write_text("name: r\nmodel: {use: video_dit}\nsteps:\n  - export: diffusers\n")
    with pytest.raises(UserError, match=r"r.yaml:2: the recipe's model is no folder.*from: LTX-Video/"):
        prepare(recipe, tmp_path / "out", installed())
