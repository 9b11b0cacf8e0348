"""Real classes of diffusers, tiny: how each is called, what is found in it, and that pruning it is exact."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from pydantic import ValidationError

from dit_compress.core.errors import UserError
from dit_compress.model.cut import compact, example_output, masked_output
from dit_compress.structure.compact import relative_error
from dit_compress_plugins.granularity_ffn import FfnOptions
from dit_compress_plugins.granularity_ffn.axes import FfnGranularity
from dit_compress_plugins.granularity_head import HeadOptions
from dit_compress_plugins.granularity_head.axes import HeadGranularity
from dit_compress_plugins.model_diffusers import DiffusersOptions
from dit_compress_plugins.model_diffusers.adapter import DiffusersDenoiser, DiffusersModel
from dit_compress_plugins.model_diffusers.layouts import pack, unpack
from dit_compress_plugins.model_diffusers.prediction import Schedule, from_noise, from_v, from_x0, norm_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
IN_OUT = {"in_channels": 4, "out_channels": 4}
TINY: dict[str, dict[str, Any]] = {
    "LTXVideoTransformer3DModel": {**HEADS, **IN_OUT, "cross_attention_dim": 32, "caption_channels": 16},
    "WanTransformer3DModel": {
        **HEADS,
        **IN_OUT,
        "attention_head_dim": 12,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 64,
    },
    "SkyReelsV2Transformer3DModel": {
        **HEADS,
        **IN_OUT,
        "attention_head_dim": 12,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 64,
    },
    "SD3Transformer2DModel": {
        **HEADS,
        **IN_OUT,
        "sample_size": 32,
        "joint_attention_dim": 16,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 24,
    },
    "PixArtTransformer2DModel": {
        **HEADS,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 32,
        "sample_size": 16,
        "caption_channels": 16,
    },
    "FluxTransformer2DModel": {
        **HEADS,
        "attention_head_dim": 16,
        "in_channels": 16,
        "num_single_layers": 1,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 24,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    },
    "QwenImageTransformer2DModel": {
        **HEADS,
        "attention_head_dim": 16,
        "in_channels": 16,
        "joint_attention_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "out_channels": 4,
    },
    "CogVideoXTransformer3DModel": {
        **HEADS,
        **IN_OUT,
        "time_embed_dim": 8,
        "text_embed_dim": 16,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 8,
    },
    "HunyuanVideoTransformer3DModel": {
        **HEADS,
        **IN_OUT,
        "attention_head_dim": 16,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    },
    "MochiTransformer3DModel": {
        **HEADS,
        "attention_head_dim": 16,
        "in_channels": 4,
        "pooled_projection_dim": 16,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "max_sequence_length": 8,
    },
    "CogView4Transformer2DModel": {
        **HEADS,
        **IN_OUT,
        "text_embed_dim": 8,
        "time_embed_dim": 8,
        "condition_dim": 4,
    },
}
EXPECTED = {
    "LTXVideoTransformer3DModel": ("packed_video", 1000),
    "WanTransformer3DModel": ("BCTHW", 1000),
    "SkyReelsV2Transformer3DModel": ("BCTHW", 1000),
    "SD3Transformer2DModel": ("BCHW", 1000),
    "PixArtTransformer2DModel": ("BCHW", 1000),
    "FluxTransformer2DModel": ("packed_image", 1),
    "QwenImageTransformer2DModel": ("packed_image", 1),
    "CogVideoXTransformer3DModel": ("BTCHW", 1000),
    "HunyuanVideoTransformer3DModel": ("BCTHW", 1000),
    "MochiTransformer3DModel": ("BCTHW", 1000),
    "CogView4Transformer2DModel": ("BCHW", 1000),
}


def make(name: str, **options: Any) -> DiffusersDenoiser:
    torch.manual_seed(0)
    module = DiffusersModel(DiffusersOptions(class_name=name, config=TINY[name], **options)).create()
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return DiffusersModel.denoiser(module).eval()


def size_of(denoiser: DiffusersDenoiser) -> tuple[int, int, int]:
    t, h, w = denoiser.patch
    return 2 * t, 2 * h, 4 * w


@pytest.mark.parametrize("name", TINY)
def test_called_as_the_signature_asks(name: str) -> None:
    denoiser = make(name)
    assert (denoiser.convention.layout, denoiser.convention.timestep_scale) == EXPECTED[name]
    latent, sigma, cond = denoiser.example(2, size_of(denoiser))
    velocity, taken = denoiser.features(latent, sigma, cond, at=[0])
    assert velocity.shape == latent.shape
    assert taken[0].ndim == 3
    alone = denoiser(latent[1:], sigma[1:], cond.take(slice(1, None)))
    torch.testing.assert_close(alone, velocity[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in TINY if not name.startswith("Mochi")])  # autocasts by device name
def test_config_makes_the_same_module_on_meta(name: str) -> None:
    denoiser = make(name)
    config = json.loads(json.dumps(DiffusersModel.config_of(denoiser.module)))
    with torch.device("meta"):
        empty = DiffusersModel.denoiser(DiffusersModel.from_config(config))
    assert empty.convention == denoiser.convention
    assert empty.structure() == denoiser.structure()


@pytest.mark.parametrize("name", ["LTXVideoTransformer3DModel", "WanTransformer3DModel"])
def test_norms_across_heads_and_rope_tables_are_seen(name: str) -> None:
    structure = make(name).structure()
    assert (structure.main.length, len(structure.attentions), len(structure.feed_forwards)) == (2, 4, 2)
    assert all(len(found.across) == 2 and found.heads == 4 for found in structure.attentions)
    gathered = [
        found.path for found in structure.attentions if [g.argument for g in found.gathers] == ["image_rotary_emb"]
    ]
    assert [path[-1] for path in gathered] == (["1", "1"] if name.startswith("LTX") else [])


@pytest.mark.parametrize(
    "name", [name for name in TINY if name.split("Transformer")[0] in ("LTXVideo", "Wan", "PixArt", "SkyReelsV2")]
)
def test_masked_equals_compact(name: str) -> None:
    denoiser = make(name)
    structure = denoiser.structure()
    axes = [*HeadGranularity(HeadOptions()).axes(structure), *FfnGranularity(FfnOptions()).axes(structure)]
    kept = {axis.name: tuple(range(axis.units // 4, axis.units)) for axis in axes}
    whole, masked = example_output(denoiser), masked_output(denoiser, axes, kept)
    assert relative_error(masked, whole) > 1e-3
    compact(denoiser, axes, kept)
    assert relative_error(example_output(denoiser), masked) < 3e-6


ROTARY = {
    "1.0": {"attention_head_dim": 16, "sample_width": 12, "use_rotary_positional_embeddings": True},
    "1.5": {
        "attention_head_dim": 16, "sample_width": 24, "sample_height": 16, "use_rotary_positional_embeddings": True,
        "patch_size_t": 2, "patch_bias": False,
    },
}  # fmt: skip
"""CogVideoX by version: positions stretched to the size it was trained at, or counted."""


@pytest.mark.parametrize("version", ROTARY)
@pytest.mark.parametrize("size", [(2, 4, 8), (4, 12, 8), (2, 6, 4), (6, 2, 10)])
def test_cogvideox_has_the_tables_of_its_pipeline(
    version: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every size and shape; and its output is that of a call with them."""
    name = "CogVideoXTransformer3DModel"
    monkeypatch.setitem(TINY, name, {**TINY[name], **ROTARY[version]})
    denoiser = make(name)
    frames, height, width = size
    latent, sigma, cond = denoiser.example(1, size)
    pipeline = SimpleNamespace(vae_scale_factor_spatial=8, transformer=denoiser.module)
    tables = diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, 8 * height, 8 * width, frames, torch.device("cpu")
    )
    _, given = denoiser.call(latent, sigma, cond)
    for made, wanted in zip(given["image_rotary_emb"], tables, strict=True):
        assert made.shape == (frames // denoiser.patch[0] * height * width // 4, 16)
        assert torch.equal(made, wanted)
    with torch.no_grad():
        wanted = denoiser.module(**{**given, "image_rotary_emb": tables})[0].transpose(1, 2)
        without = denoiser.module(**{**given, "image_rotary_emb": None})[0].transpose(1, 2)
        found = denoiser(latent, sigma, cond)
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, without, atol=1e-4)


@pytest.mark.parametrize("version", ROTARY)
def test_cogvideox_with_tables_is_pruned_exactly(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "CogVideoXTransformer3DModel"
    monkeypatch.setitem(TINY, name, {**TINY[name], **ROTARY[version]})
    denoiser = make(name)
    structure = denoiser.structure()
    axes = [*HeadGranularity(HeadOptions()).axes(structure), *FfnGranularity(FfnOptions()).axes(structure)]
    assert [axis.units for axis in axes if axis.level == "head"] == [4, 4]
    kept = {axis.name: tuple(range(axis.units // 4, axis.units)) for axis in axes}
    masked = masked_output(denoiser, axes, kept)
    compact(denoiser, axes, kept)
    assert relative_error(example_output(denoiser), masked) < 3e-6


def test_wan_has_no_mask_but_sees_zeros_at_the_padding() -> None:
    denoiser = make("WanTransformer3DModel")
    latent, sigma, cond = denoiser.example(2, size_of(denoiser))
    noisy = type(cond)({**cond, "embedding": cond["embedding"] + 9 * (1 - cond["mask"])[..., None]}, cond.null)
    assert torch.equal(denoiser(latent, sigma, noisy), denoiser(latent, sigma, cond))


def test_ltx_is_called_as_its_pipeline_calls_it() -> None:
    denoiser = make("LTXVideoTransformer3DModel")
    latent, sigma, cond = denoiser.example(1, (2, 3, 4))
    packed = diffusers.LTXPipeline._pack_latents(latent, 1, 1)
    output = denoiser.module(
        packed,
        cond["embedding"],
        1000 * sigma,
        cond["mask"],
        num_frames=2,
        height=3,
        width=4,
        rope_interpolation_scale=(8 / 25, 32, 32),
        return_dict=False,
    )[0]
    expected = diffusers.LTXPipeline._unpack_latents(output, 2, 3, 4, 1, 1)
    torch.testing.assert_close(denoiser(latent, sigma, cond), expected)


def test_flux_packs_as_its_pipeline_does() -> None:
    latent = torch.randn(2, 3, 1, 4, 6)
    packed = pack(latent, "packed_image", (1, 2, 2))
    assert torch.equal(packed, diffusers.FluxPipeline._pack_latents(latent[:, :, 0], 2, 3, 4, 6))


@pytest.mark.parametrize("layout", ["BCTHW", "BTCHW", "BCHW", "packed_video", "packed_image"])
def test_unpack_undoes_pack(layout: str) -> None:
    latent = torch.randn(2, 3, 2, 4, 6)
    patch = (1, 2, 2) if layout == "packed_image" else (2, 2, 3)
    assert torch.equal(unpack(pack(latent, layout, patch), layout, patch, (2, 2, 4, 6)), latent)


# ------------------------------------------------------------------ predictions


@pytest.mark.parametrize("kind", ["noise", "x0", "v"])
def test_change_of_variables_is_exact(kind: str) -> None:
    x0, noise = torch.randn(2, 4, 3, 2, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    wide = sigma.reshape(-1, 1, 1, 1, 1)
    latent = (1 - wide) * x0 + wide * noise
    a, s = (1 - wide) / norm_of(wide), wide / norm_of(wide)
    said = {"noise": noise, "x0": x0, "v": a * noise - s * x0}[kind]
    convert: Callable[..., torch.Tensor] = {"noise": from_noise, "x0": from_x0, "v": from_v}[kind]
    torch.testing.assert_close(convert(said, latent, sigma), noise - x0)


def test_schedule_by_hand() -> None:
    schedule = Schedule.from_alphas(torch.tensor([0.9, 0.5, 0.1]))
    torch.testing.assert_close(schedule.sigmas, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert schedule.timestep(torch.tensor([0.0, 0.375, 0.5, 1.0])).tolist() == pytest.approx([0, 0.5, 1, 2])


def test_a_model_of_noise_gives_a_finite_velocity_at_both_ends() -> None:
    denoiser = make("PixArtTransformer2DModel", prediction="noise", scheduler={"_class_name": "DDPMScheduler"})
    latent, _, cond = denoiser.example(2, (1, 4, 4))
    assert torch.isfinite(denoiser(latent, torch.tensor([0.0, 1.0]), cond)).all()


def test_reversed_model_runs_its_clock_backwards() -> None:
    plain = make("WanTransformer3DModel")
    other = make("WanTransformer3DModel", prediction="reversed", reversed_time=True)
    latent, sigma, cond = plain.example(2, (2, 4, 4))
    torch.testing.assert_close(other(latent, 1 - sigma, cond), -plain(latent, sigma, cond))


# ------------------------------------------------------------------ folders and refusals


def test_a_pipeline_folder_brings_weights_and_scheduler(tmp_path: Path) -> None:
    module = make("MochiTransformer3DModel").module
    module.save_pretrained(tmp_path / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True).save_pretrained(tmp_path / "scheduler")
    loaded = DiffusersModel.denoiser(DiffusersModel(DiffusersOptions(path=str(tmp_path))).create())
    assert (loaded.convention.prediction, loaded.convention.reversed_time) == ("reversed", True)
    for (name, value), other in zip(module.named_parameters(), loaded.module.parameters(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize(
    ("name", "config", "seen"),
    [
        ("AllegroTransformer3DModel", {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12,
                                       "cross_attention_dim": 24}, "image_rotary_emb"),
        ("WanTransformer3DModel", {**TINY["WanTransformer3DModel"], "in_channels": 8}, "gave"),
        ("NoSuchModel", {}, "NoSuchModel"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(name: str, config: dict[str, Any], seen: str) -> None:
    with pytest.raises(UserError, match=seen):
        DiffusersModel(DiffusersOptions(class_name=name, config=config)).create()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        DiffusersModel(DiffusersOptions(path=str(tmp_path))).create()


@pytest.mark.parametrize("options", [{}, {"path": "x", "class_name": "y"}, {"path": "x", "config": {}}])
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DiffusersOptions(**options)
