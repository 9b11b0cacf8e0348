"""The licence of the weights: what a folder states, what a recipe states, and that it arrives in bundles and manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from toy import context_in, tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.core.files import sealed, sha256_data
from dit_compress.export.step import about
from dit_compress.model.bundle import Bundle
from dit_compress.model.licence import licence_of
from dit_compress.plugin.registry import installed, use
from dit_compress.recipe import dump, load, make_part
from dit_compress.run.base import BaseStep
from dit_compress.run.keys import made_of, nodes
from dit_compress.testing.steps import tiny_bundle as whole_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.recipe.model import Recipe

OTHER = "---\nlicense: other\nlicense_name: ltxv\nlicense_link: https://example.org/l\ntags:\n- video\n---\n# LTX\n"


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("README.md", "---\nlicense: apache-2.0\n---\nWords.\n", "apache-2.0"),
        ("README.md", OTHER, "ltxv (https://example.org/l)"),
        ("README.md", "---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        ("README.md", "---\nlicense: other\n---\n", "other"),
        ("README.md", "# No front matter\nlicense: mit\n", None),
        ("README.md", "---\nlicense: mit\n", None),
        ("README.md", "---\n: [\n---\n", None),
        ("README.md", "---\n- mit\n---\n", None),
        ("README.md", "", None),
        ("model_index.json", '{"license": "mit"}', "mit"),
        ("config.json", '{"license": "mit"}', "mit"),
        ("config.json", '{"license": 7}', None),
        ("config.json", "{", None),
    ],
)
def test_what_a_folder_states(tmp_path: Path, file: str, text: str, told: str | None) -> None:
    (tmp_path / file).write_text(text, "utf-8")
    assert licence_of(tmp_path) == told


def test_the_card_goes_before_the_config_and_a_component_asks_its_pipeline(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of(tmp_path / "transformer") is None, "the folder above is no pipeline"
    (tmp_path / "model_index.json").write_text('{"license": "bsd"}')
    assert licence_of(tmp_path / "transformer") == licence_of(tmp_path) == "mit"
    (tmp_path / "transformer" / "config.json").write_text('{"license": "cc0"}')
    assert licence_of(tmp_path / "transformer") == "cc0"
    assert licence_of(tmp_path / "a" / "nowhere") is None


def recipe(tmp_path: Path, **more: Any) -> Recipe:
    data = {"model": {"use": "video_dit"}, "steps": [{"distill": "flow"}, {"export": "onnx"}], **more}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    return load(tmp_path / "recipe.yaml", installed())


def test_only_exports_run_again_for_a_licence(tmp_path: Path) -> None:
    keys = []
    for more in ({}, {"licence": "Apache-2.0"}, {"licence": "MIT"}):
        made = recipe(tmp_path, **more)
        assert made.licence == more.get("licence")
        keys.append([sha256_data(made_of(node, {"input": "0"}, made, "")) for node in nodes(made)])
    (base, trained, exported), apache, mit = keys
    assert apache[:2] == mit[:2] == [base, trained]
    assert len({exported, apache[2], mit[2]}) == 3


def test_the_resolved_recipe_states_it_too(tmp_path: Path) -> None:
    made = recipe(tmp_path, licence="Apache-2.0")
    (tmp_path / "again.yaml").write_text(dump(made))
    assert load(tmp_path / "again.yaml", installed()) == replace(made, path=str(tmp_path / "again.yaml"))
    assert "licence" not in dump(recipe(tmp_path))


@pytest.mark.parametrize("licence", ["", 7, None, ["MIT"]])
def test_what_is_no_licence_is_refused(tmp_path: Path, licence: Any) -> None:
    with pytest.raises(UserError, match=r"recipe.yaml:1: expected the name of a licence, got .*Write it: Apache-2.0"):
        recipe(tmp_path, licence=licence)


def test_the_models_folder_is_asked_and_the_recipe_goes_before_it(tmp_path: Path) -> None:
    import diffusers

    use()
    small = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 8, "out_channels": 8}
    transformer = diffusers.LTXVideoTransformer3DModel(
        **small, cross_attention_dim=24, num_layers=1, caption_channels=16
    )
    transformer.save_pretrained(tmp_path / "ltx")
    (tmp_path / "ltx" / "README.md").write_text(OTHER, "utf-8")
    part = make_part("model", {"use": "diffusers", "path": str(tmp_path / "ltx")}, installed())
    for stated, wanted in ((None, "ltxv (https://example.org/l)"), ("Apache-2.0", "Apache-2.0")):
        context = replace(context_in(tmp_path / str(stated)), licence=stated)
        bundle = BaseStep({"model": part}).run(context).bundle
        assert bundle is not None
        assert bundle.data["licence"] == wanted
    later = replace(context_in(tmp_path / "later", input=bundle)).give({}).bundle
    assert later is not None
    assert later.data["licence"] == "Apache-2.0", "later bundles carry it along"


def test_nobody_states_one(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    assert context_in(tmp_path / "step", input=bundle).give({}).bundle.data["licence"] is None  # type: ignore[union-attr]


def test_it_arrives_in_the_manifest(tmp_path: Path) -> None:
    """The recipe's word, else the bundle's."""
    bundle = whole_bundle(tmp_path / "bundle")
    data = json.loads((bundle.path / "bundle.json").read_text())
    (bundle.path / "bundle.json").write_text(json.dumps(sealed({**data, "licence": "mit"})))
    context = context_in(tmp_path / "step", input=Bundle.open(bundle.path))
    context.record["parts"] = {"step": {"plugin": "onnx", "options": {"use": "onnx"}}}
    assert about(context, context.input.codec())["licence"] == "mit"
    assert about(replace(context, licence="Apache-2.0"), context.input.codec())["licence"] == "Apache-2.0"
