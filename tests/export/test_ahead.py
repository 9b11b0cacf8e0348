"""``plan``, ``check --deep`` and ``run`` ask exporters before anything is trained; networks have shapes and no values."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_verify import command
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.export import Diagnostic
from dit_compress.export.check_early import Networks, check_early, components_early
from dit_compress.export.contract import Exporter
from dit_compress.export.inspection import count_weights, inspected, operators
from dit_compress.export.package import check_components
from dit_compress.export.profiles import profile_named
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.plugin.options import Options
from dit_compress.plugin.registry import use
from dit_compress.testing.models import _CONFIGS, MODELS
from dit_compress_plugins.export_onnx import ONNXOptions
from dit_compress_plugins.export_onnx.exporter import ONNXExport
from dit_compress_plugins.latent_video_vae.vae import VideoVAE

if TYPE_CHECKING:
    from pathlib import Path

    from dit_compress.export import Component, Profile

pytestmark = pytest.mark.slow(30)
pytest.importorskip("onnxruntime")
torch.set_num_threads(1)

RECIPE = """\
name: ahead
model: {{use: {model}, layers: 1, heads: 2, head_width: 16, channels: 32, text_width: 16}}
text: {{use: words, width: 16, layers: 1, heads: 2}}
data: {{use: shapes, num_clips: 4, num_test: 2, frames: 9, size: [64, 64]}}
steps:
  - latent: {{use: video_vae, channels: 32, steps: 2, widths: [8, 8, 8, 8], blocks: 1}}
    name: vae
  - distill: {{use: flow, steps: 2}}
    name: teacher
  - export: {{{export}}}
    name: phone
"""


def spec_of(name: str) -> Spec:
    use()
    plugin, options = _CONFIGS[name]
    maker = part("model", plugin, **options)
    vae = VideoVAE(channels=8, widths=(8, 8, 8, 8), num_blocks=1)
    config = json.loads(json.dumps({key: value for key, value in vae.config.items() if not key.startswith("_")}))
    words = part("text", "words", width=16, layers=1, heads=2)
    return Spec(
        video=(17, 64, 64),
        denoiser=ComponentSpec("model", plugin, maker.config_of(maker.create())),
        latent=ComponentSpec("latent", "video_vae", config),
        text=ComponentSpec("text", "words", words.config_of(words.create())),
    )


@cache
def networks(name: str) -> Networks:
    return Networks(spec_of(name))


@pytest.mark.parametrize("name", MODELS)
def test_good_networks_have_no_errors(name: str) -> None:
    spec = spec_of(name)
    made = {component.name: component for component in components_early(spec)}
    assert list(made) == ["text_encoder", "dit_step", "vae_decoder"]
    assert tuple(made["dit_step"].inputs["latent"].shape) == (1, 8, 3, 2, 2)
    assert check_early(ONNXExport(ONNXOptions()), spec, networks(name)) == []


@pytest.mark.parametrize("name", MODELS)
def test_one_block_of_each_shape_speaks_for_the_others(name: str) -> None:
    """Three equal blocks: one is traced, at its place; rank 3 is too much for each block, and all are named."""
    strict = replace(profile_named("cpu"), max_rank=3)
    (short, _), (whole, nodes) = (
        inspected(next(each for each in made if each.name == "dit_step"), strict)
        for made in (networks(name).short, networks(name).whole)
    )
    wanted, found = {(each.operator, each.path, each.message) for each in whole}, {each.path for each in short}
    assert wanted >= {(each.operator, each.path, each.message) for each in short}
    assert {re.sub(r"blocks\.\d+", "blocks.N", path) for path in found} == {
        re.sub(r"blocks\.\d+", "blocks.N", path) for _, path, _ in wanted
    }
    assert {path.split("blocks.")[1][0] for path in found if "blocks." in path} == {"0"}
    assert {path.split("blocks.")[1][0] for _, path, _ in wanted if "blocks." in path} == {"0", "1", "2"}
    (twin,) = (each for each in networks(name).short if each.name == "dit_step")
    (step,) = (each for each in networks(name).whole if each.name == "dit_step")
    assert twin.num_weights == step.num_weights == count_weights(step.module) > count_weights(twin.module)
    assert len(list(operators(twin.program))) < len(nodes) / 1.5


def test_blocks_of_two_shapes_are_both_looked_at() -> None:
    spec = spec_of("video_dit")
    assert spec.denoiser is not None
    config = {**spec.denoiser.config, "ffn": [64, 96, 64]}
    spec = replace(spec, denoiser=replace(spec.denoiser, config=config))
    (twin,) = (each for each in components_early(spec, short=True) if each.name == "dit_step")
    held = {path.split("_blocks.")[1][0] for path, _ in twin.module.named_parameters() if "_blocks." in path}
    assert held == {"0", "1"}


def test_what_is_refused_is_refused_in_every_block(tmp_path: Path) -> None:
    """The same words as for the whole network, checked as it was before there was a shorter one."""
    spec = spec_of("video_dit")
    exporter = ONNXExport(ONNXOptions(device=str(device(tmp_path, max_rank=3, memory_bytes=1000))))
    with pytest.raises(UserError) as found:
        check_early(exporter, spec, networks("video_dit"))
    with pytest.raises(UserError) as wanted:
        check_components(exporter, components_early(spec), exporter.profile)
    assert found.value.problems == wanted.value.problems


def test_a_step_that_is_no_exporter_is_not_asked() -> None:
    assert check_early(object(), Spec()) == []


class Strict(Exporter):
    """An exporter of the bare protocol, without the engine's work, to which nothing is good."""

    profile = profile_named("cpu")
    sizes = ()

    def check(self, component: Component, profile: Profile) -> list[Diagnostic]:
        return [Diagnostic("matmul", component.name, "error", f"nothing runs on {profile.name}", "Buy another")]


def test_an_exporter_of_the_bare_protocol_is_asked_before_anything_is_trained() -> None:
    with pytest.raises(UserError, match="nothing runs on cpu") as found:
        check_early(Strict(), spec_of("video_dit"), networks("video_dit"))
    assert "dit_step" in str(found.value)


def test_options_that_are_no_exporters_are_refused_in_one_line() -> None:
    class Other(Options):
        """Nothing of an exporter."""

    with pytest.raises(UserError, match="Other are options of no exporter"):
        ONNXExport(Other())


def asked(chip: Path) -> str:
    return RECIPE.format(model="video_dit", export=f"use: onnx, device: {chip}")


def device(folder: Path, **limits: Any) -> Path:
    path = folder / "chip.json"
    path.write_text(json.dumps({"name": "chip", "precision": "float32", "max_rank": 8, **limits}))
    return path


@pytest.mark.parametrize("words", [("plan",), ("check", "--deep"), ("run",)])
def test_what_a_device_can_not_hold_is_refused_before_anything_is_paid_for(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(asked(device(tmp_path, max_rank=3, memory_bytes=1000)))
    monkeypatch.chdir(tmp_path)
    status, printed = command(capsys, monkeypatch, *words, recipe)
    assert status == 2
    assert f"{recipe}:10: component dit_step, dit_step: weights of 0 MiB, the device has 0 MiB. Prune more" in printed
    assert f"{recipe}:10: component dit_step, denoiser.module" in printed
    assert "a tensor of rank 4, the target takes 3" in printed
    assert sorted(item.name for item in tmp_path.iterdir()) == ["chip.json", "r.yaml"]


def test_a_plain_check_does_not_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(asked(device(tmp_path, max_rank=3)))
    assert command(capsys, monkeypatch, "check", recipe)[0] == 0


def test_an_unknown_device_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no device profile 'fridge'"):
        check_early(ONNXExport(ONNXOptions(device="fridge")), Spec(), networks("video_dit"))
