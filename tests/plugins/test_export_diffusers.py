"""Bundles as folders of diffusers: ordinary where the config can state the shape, else with plan and loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import context_in, part, tiny_bundle

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.testing.models import tiny_denoiser

COUNTS: dict[str, Any] = {"remove": {"block": 1, "head": 1}, "keep": {"ffn": 0.75}}


def bundle_of(path: Path, name: str) -> Bundle:
    """A bundle of a tiny model of diffusers."""
    module = tiny_denoiser(name).module
    spec = Spec(
        denoiser=ComponentSpec("model", "diffusers", part("model", "diffusers", class_name="X").config_of(module))
    )
    return write_bundle(path, spec, {"denoiser": module}, base=None, lineage=())


def export(folder: Path, bundle: Bundle) -> Path:
    result = part("export", "diffusers").run(context_in(folder, input=bundle))
    assert result.metrics["passed"]
    assert all((folder / file).is_dir() for file in result.files.values())
    return folder / "files"


@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_a_pruned_model_brings_its_plan_and_its_loader(tmp_path: Path, name: str) -> None:
    bundle_of(tmp_path / "whole", name)
    made = dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    small = Bundle.open(tmp_path / "small")
    with pytest.raises(UserError, match=f"can't tell this shape of {type(made).__name__}"):
        part("export", "diffusers", single_file=True).plan(small.spec)
    files = export(tmp_path / "step", small)
    assert sorted(item.name for item in (files / "transformer").iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors", "load_pruned.py", "pruning.json",
    ]  # fmt: skip
    again = dit_compress.load(files / "transformer")
    assert type(again) is type(made)
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in again.state_dict().items())
    assert "class_name" not in json.loads((files / "transformer" / "config.json").read_text())
    assert "def load(" in (files / "transformer" / "load_pruned.py").read_text()


def test_a_whole_model_is_an_ordinary_folder(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "whole", "wan")
    files = export(tmp_path / "step", bundle)
    assert not (files / "transformer" / "pruning.json").exists()
    again = type(bundle.denoiser().module).from_pretrained(files / "transformer")
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in bundle.denoiser().module.state_dict().items()
    )


def test_a_model_that_states_its_own_shape_is_an_ordinary_folder(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "whole", flow=Flow(num_steps=4))
    made: Any = dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    files = export(tmp_path / "step", Bundle.open(tmp_path / "small"))
    again = type(made).from_pretrained(files / "transformer")
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in again.state_dict().items())
    assert json.loads((files / "transformer" / "config.json").read_text())["heads"] == 3
    assert json.loads((files / "flow.json").read_text())["num_steps"] == 4
    assert (files / "text_encoder").is_dir()


def test_a_reload_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_of(tmp_path / "whole", "wan")
    dit_compress.prune(tmp_path / "whole", **COUNTS, out=tmp_path / "small")
    monkeypatch.setattr("dit_compress_plugins.export_diffusers.step.load", lambda _: tiny_denoiser("wan").module)
    with pytest.raises(UserError, match="reloaded weights differ"):
        export(tmp_path / "step", Bundle.open(tmp_path / "small"))
