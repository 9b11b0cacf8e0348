"""Single files of the original repositories: read by diffusers' own converters, and back, bit for bit."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from toy import context_in, part

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.model.twins import pipeline_of
from dit_compress.structure.files.original import PREFIX, from_original, to_original

if TYPE_CHECKING:
    from pathlib import Path

CONVERTERS = {
    "Wan2.1-T2V-1.3B": "convert_wan_transformer_to_diffusers",
    "LTX-Video": "convert_ltx_transformer_checkpoint_to_diffusers",
    "FLUX.1-dev": "convert_flux_transformer_checkpoint_to_diffusers",
}
KEYS = {
    "Wan2.1-T2V-1.3B": (
        "head.modulation",
        "blocks.0.cross_attn.norm_q.weight",
        "blocks.2.norm3.bias",
        "blocks.1.ffn.2.weight",
    ),
    "LTX-Video": (PREFIX + "adaln_single.linear.weight", PREFIX + "transformer_blocks.0.attn1.q_norm.weight"),
    "FLUX.1-dev": (
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.1.linear1.bias",
        "final_layer.adaLN_modulation.1.bias",
    ),
}


def converter(name: str) -> Any:
    """The converter of diffusers; that of Flux with the width of the twin, as it knows one width alone."""
    source = inspect.getsource(getattr(single_file_utils, CONVERTERS[name]))
    names: dict[str, Any] = {"torch": torch}
    exec(source.replace("inner_dim = 3072", "inner_dim = 64"), names)
    return names[CONVERTERS[name]]


@pytest.fixture(scope="module", params=CONVERTERS)
def model(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, pipeline_of(request.param).transformer


def test_diffusers_reads_what_is_written_and_it_is_read_back(model: tuple[str, Any], tmp_path: Path) -> None:
    name, module = model
    state, original = module.state_dict(), to_original(module)
    assert set(KEYS[name]) <= original.keys()
    converted = converter(name)(dict(original))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], value) for key, value in state.items())
    for prefix in ("", PREFIX):
        own = {prefix + key.removeprefix(PREFIX): value.contiguous().clone() for key, value in original.items()}
        save_file({**own, "vae.x": torch.zeros(1)}, tmp_path / "one.safetensors")
        again = from_original(module, tmp_path / "one.safetensors")
        assert all(torch.equal(again[key], value) for key, value in state.items())


def test_the_image_condition_of_wan_has_its_place() -> None:
    module: Any = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=36, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1,
        image_dim=20, added_kv_proj_dim=24,
    )  # fmt: skip
    original = to_original(module)
    assert {
        "img_emb.proj.1.weight",
        "blocks.0.cross_attn.k_img.bias",
        "blocks.0.cross_attn.norm_k_img.weight",
    } <= original.keys()
    converted = converter("Wan2.1-T2V-1.3B")(dict(original))
    assert all(torch.equal(converted[key], value) for key, value in module.state_dict().items())


def bundle_of(module: Any, out: Path) -> Bundle:
    maker = part("model", "diffusers", class_name="X")
    spec = Spec(denoiser=ComponentSpec("model", "diffusers", maker.config_of(module)))
    return write_bundle(out, spec, {"denoiser": module}, base=None, lineage=())


def test_a_pruned_model_is_a_single_file_and_a_recipe_reads_it(tmp_path: Path) -> None:
    bundle_of(pipeline_of("Wan2.1-T2V-1.3B").transformer, tmp_path / "whole")
    made: Any = dit_compress.prune(tmp_path / "whole", remove={"block": 1}, out=tmp_path / "small")
    exporter = part("export", "diffusers", single_file=True)
    small = Bundle.open(tmp_path / "small")
    exporter.plan(small.spec)
    exporter.run(context_in(tmp_path / "step", input=small))
    file = tmp_path / "step" / "files" / "single_file" / "transformer.safetensors"
    assert len({key.split(".")[1] for key in load_file(file) if key.startswith("blocks.")}) == 2
    again = part(
        "model", "diffusers", path=str(tmp_path / "step" / "files" / "transformer"), weights=str(file)
    ).create()
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in again.state_dict().items())


def test_what_has_no_place_is_refused(model: tuple[str, Any], tmp_path: Path) -> None:
    name, module = model
    file = tmp_path / "one.safetensors"
    original = {key: value.contiguous().clone() for key, value in to_original(module).items()}
    key = next(iter(original))
    save_file({**original, key: original[key][..., :1].contiguous()}, file)
    with pytest.raises(UserError, match=r"is \[.*1\] in the file, \[.*\] by the config"):
        from_original(module, file)
    del original[key]
    save_file(original, file)
    with pytest.raises(UserError, match=f"the file lacks '{key}'"):
        from_original(module, file)
    with pytest.raises(UserError, match="the original layout of Linear is not known. There are those of: Flux"):
        to_original(torch.nn.Linear(1, 1))
    if name.startswith("Wan"):
        with pytest.raises(UserError, match="no such file"):
            part("model", "diffusers", class_name="WanTransformer3DModel", weights=str(tmp_path / "x")).create()
