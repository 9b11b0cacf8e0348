"""VAEs of diffusers, tiny and random, saved to disk and wrapped: geometry, statistics, bundles, exporting."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from toy import context_in, part, tiny_bundle

from dit_compress.core.errors import UserError
from dit_compress.export.components import vae_decoder
from dit_compress.model.bundle import Bundle
from dit_compress.model.halves import Halves
from dit_compress.model.spec import Spec, latent_size
from dit_compress.plugin.options import options_as_data
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.run.fit import encoder_of
from dit_compress.run.keys import Node
from dit_compress.testing.steps import drawn, tiny_context
from dit_compress.train.options import check_parts
from dit_compress_plugins.latent_diffusers_vae import DiffusersVAEOptions, FineTuneWeights
from dit_compress_plugins.latent_diffusers_vae import step as vae_step
from dit_compress_plugins.latent_diffusers_vae.codec import DiffusersCodec
from dit_compress_plugins.latent_diffusers_vae.step import DiffusersVAEStep, decoding

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

LTX: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
}
WAN: dict[str, Any] = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
WAN_MEAN, WAN_STD = -0.7571, 2.8184  # the first channel, as Wan 2.1 publishes them

# class, config, ratio, (lead, step), channels, std of the first channel's normalisation
ZOO: dict[str, tuple[dict[str, Any], tuple[int, int, int], tuple[int, int], int, float]] = {
    "AutoencoderKLLTXVideo": (LTX, (8, 32, 32), (1, 8), 8, 1.0),
    "AutoencoderKLWan": (WAN, (4, 8, 8), (1, 4), 16, WAN_STD),
    "AutoencoderKLHunyuanVideo": (
        {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        (4, 8, 8),
        (1, 4),
        4,
        1 / 0.476986,
    ),
    "AutoencoderKLCogVideoX": (
        {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2},
        (4, 8, 8),
        (1, 8),  # it decodes an even number of latent frames to 4·T frames
        4,
        1 / 1.15258426,
    ),
    "AutoencoderKLMochi": (
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
        },
        (6, 8, 8),
        (1, 6),
        12,
        0.92637950,  # as Mochi publishes it
    ),
    "AutoencoderKLCosmos": (
        {
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "attention_resolutions": (8,),
            "resolution": 64,
            "latent_channels": 4,
            "latents_mean": None,
            "latents_std": None,
        },
        (8, 8, 8),
        (1, 8),
        4,
        1.0,
    ),
}


def saved(folder: Path, name: str, config: dict[str, Any], **changes: Any) -> Path:
    """A VAE of random weights, as save_pretrained writes it."""
    torch.manual_seed(0)
    vae = getattr(diffusers, name)(**{**config, **changes})
    vae.save_pretrained(folder)
    return folder


def step(folder: Path, **options: Any) -> DiffusersVAEStep:
    return DiffusersVAEStep(DiffusersVAEOptions(path=str(folder), **options))


def clip(frames: int, size: int = 64) -> Tensor:
    return torch.rand(1, 3, frames, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ------------------------------------------------------------------ every class


@pytest.mark.parametrize("name", ZOO)
def test_geometry_is_found_without_weights_and_a_bundle_gives_the_same_codec(tmp_path: Path, name: str) -> None:
    config, ratio, rule, channels, std = ZOO[name]
    folder = saved(tmp_path / "vae", name, config)
    planned = step(folder).plan(Spec()).need_latent().config
    assert (tuple(planned["ratio"]), tuple(planned["frames"]), planned["channels"]) == (ratio, rule, channels)
    assert planned["latent_std"][0] == pytest.approx(std, rel=1e-3)
    result = step(folder).run(context_in(tmp_path / "step"))
    assert result.bundle is not None
    codec: Any = Bundle.open(result.bundle.path).codec().eval()
    video = clip(rule[0] + rule[1])
    alone = getattr(diffusers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        latent = codec.encode(video)
        raw = alone.encode(video).latent_dist.mode()
        decoded, expected = codec.decode(latent), alone.decode(raw).sample
    mean, std_C = (torch.tensor(planned[key]).reshape(1, -1, 1, 1, 1) for key in ("latent_mean", "latent_std"))
    torch.testing.assert_close(latent, (raw - mean) / std_C, atol=1e-5, rtol=1e-5)
    assert latent.shape == (1, channels, 1 + rule[1] // ratio[0], 64 // ratio[1], 64 // ratio[2])
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in codec.parameters())


# ------------------------------------------------------------------ statistics


def test_statistics_of_a_buffer_of_a_config_and_of_a_factor(tmp_path: Path) -> None:
    wan = step(saved(tmp_path / "wan", "AutoencoderKLWan", WAN)).load()
    assert (wan.config["latent_mean"][0], wan.config["latent_std"][0]) == (WAN_MEAN, WAN_STD)
    torch.manual_seed(0)
    ltx = diffusers.AutoencoderKLLTXVideo(**LTX, scaling_factor=2.0)
    ltx.latents_mean.fill_(3.0)
    ltx.latents_std.fill_(4.0)
    ltx.save_pretrained(tmp_path / "ltx")
    codec = step(tmp_path / "ltx").load()
    # LTX's pipeline diffuses (raw - mean) · factor / std.
    assert codec.config["latent_mean"] == [3.0] * 8
    assert codec.config["latent_std"] == [2.0] * 8
    assert step(tmp_path / "ltx", scaling_factor=0.5).load().config["latent_std"] == [8.0] * 8


def test_statistics_that_can_not_be_right_are_refused(tmp_path: Path) -> None:
    short = saved(tmp_path / "short", "AutoencoderKLWan", WAN, latents_mean=[0.0] * 3)
    with pytest.raises(UserError, match="latents_mean has 3 values, the latent 16 channels"):
        step(short).plan(Spec())
    zero = saved(tmp_path / "zero", "AutoencoderKLWan", WAN, latents_std=[0.0] * 16)
    with pytest.raises(UserError, match="not finite, or a std is not positive"):
        step(zero).plan(Spec())


# ------------------------------------------------------------------ frames and sizes


def test_the_frame_rule_of_the_vae_is_what_a_plan_goes_by(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae", "AutoencoderKLCogVideoX", ZOO["AutoencoderKLCogVideoX"][0])
    assert step(folder).plan(Spec(video=(17, 64, 64))).latent_size() == (5, 8, 8)
    with pytest.raises(UserError, match=r"13 frames are not 1 \+ 8·k. Take 9 or 17 frames"):
        step(folder).plan(Spec(video=(13, 64, 64)))
    # A rule of t·k, where the first latent frame stands for t frames as all do.
    assert latent_size((12, 64, 64), (4, 8, 8), (4, 4)) == (3, 8, 8)
    with pytest.raises(UserError, match=r"2 frames are not 4 \+ 4·k. Take 4 or 8 frames"):
        latent_size((2, 64, 64), (4, 8, 8), (4, 4))
    codec = step(folder).load()
    with pytest.raises(UserError, match="13 frames of 64x60"):
        codec.encode(torch.zeros(1, 3, 13, 64, 60))


# ------------------------------------------------------------------ noise, tiles, features


def test_noise_in_the_decoder_is_off(tmp_path: Path) -> None:
    torch.manual_seed(0)
    noisy = diffusers.AutoencoderKLLTXVideo(**LTX, decoder_inject_noise=(True, True, True, True, True))
    with torch.no_grad():
        for name, parameter in noisy.named_parameters():
            if "per_channel_scale" in name:
                parameter.fill_(1.0)
    noisy.save_pretrained(tmp_path / "vae")
    bundle = step(tmp_path / "vae").run(context_in(tmp_path / "step")).bundle
    assert bundle is not None
    codec: Any = bundle.codec().eval()
    latent = torch.randn(1, 8, 2, 2, 2)
    with torch.no_grad():
        assert torch.equal(codec.decode(latent), codec.decode(latent))


def test_a_decoder_that_wants_a_timestep_gets_the_options(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae", "AutoencoderKLLTXVideo", LTX, timestep_conditioning=True)
    alone = diffusers.AutoencoderKLLTXVideo.from_pretrained(folder).eval()
    latent = torch.randn(1, 8, 2, 2, 2)
    with torch.no_grad():
        for timestep in (0.0, 0.05):
            expected = alone.decode(latent, torch.tensor([timestep])).sample
            decoded = step(folder, decode_timestep=timestep).load().decode(latent)
            torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def test_the_vae_s_own_tiles_are_used_where_asked_for_and_never_by_exporters(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae", "AutoencoderKLLTXVideo", LTX)
    plain, tiled = step(folder).load(), step(folder, tile=True).load()
    latent = torch.randn(1, 8, 1, 2, 20)  # 640 pixels wide; LTX's tiles are of 512
    with torch.no_grad():
        assert torch.equal(tiled.forward(latent), plain.decode(latent))
        assert not torch.equal(tiled.decode(latent), plain.decode(latent))
        assert tiled.vae.use_tiling is False
        apart = (tiled.decode(latent) - plain.decode(latent)).abs()
        assert apart[..., :64].max() < 1e-5 < apart.max()  # far from the cut they agree


def test_features_are_the_streams_of_the_decoder_s_blocks(tmp_path: Path) -> None:
    codec = step(saved(tmp_path / "vae", "AutoencoderKLWan", WAN)).load()
    with torch.no_grad():
        features = codec.features(torch.randn(1, 16, 2, 2, 2))
    # Wan decodes frame by frame: the pieces of every block are joined.
    assert [tuple(each.shape[2:]) for each in features] == [(3, 4, 4), (5, 8, 8), (5, 16, 16), (5, 16, 16)]
    assert not any(module._forward_hooks for module in codec.modules())


# ------------------------------------------------------------------ fine-tuning


def finetuned(tmp_path: Path, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The codec before and after a few steps on drawn clips, and the metrics."""
    folder = saved(tmp_path / "vae", "AutoencoderKLLTXVideo", LTX)
    context = tiny_context(tmp_path / "step", data=drawn(9, (64, 64), 4))
    given = {"steps": 3, "batch": 2, "lr": 1e-3, "warmup": 0, **options}
    result = step(folder, finetune=given).run(context)
    assert result.bundle is not None
    return step(folder).load(), Bundle.open(result.bundle.path).codec(), result.metrics


def test_finetuning_moves_the_latents_and_says_what_it_gained(tmp_path: Path) -> None:
    before, after, metrics = finetuned(tmp_path, losses={"consistency": 0.1, "scales": [2]})
    with torch.no_grad():
        assert not torch.allclose(before.encode(clip(9)), after.encode(clip(9)))
    assert metrics["gained_db"] == pytest.approx(metrics["psnr_db"] - metrics["psnr_before_db"])
    assert metrics["gained_db"] > 0
    assert after.config["latent_std"] == before.config["latent_std"], "pipelines read them in its config"


def test_a_decoder_alone_is_finetuned_with_the_latents_as_they_were(tmp_path: Path) -> None:
    before, after, metrics = finetuned(tmp_path, train="decoder", losses={"scale_target": "decoded"})
    with torch.no_grad():
        latent = before.encode(clip(9))
        assert torch.equal(after.encode(clip(9)), latent)
        assert not torch.allclose(before.decode(latent), after.decode(latent))
    assert metrics["gained_db"] > 0
    # They keep the name that they have in a bundle of the folder as it is.
    plain = step(tmp_path / "vae").run(context_in(tmp_path / "plain")).bundle
    tuned = Bundle.open(tmp_path / "step" / "bundle")
    assert plain is not None
    assert tuned.latents == plain.latents == plain.digest("latent") != tuned.digest("latent")
    given = [DiffusersVAEOptions(path="x", finetune=each) for each in (None, {"train": "decoder"}, {"train": "all"})]
    assert given[1].of_latents == given[0].of_latents == given[0]
    assert given[2].of_latents == given[2]
    # And a plan takes them for one VAE.
    named = [{"use": "diffusers_vae", "path": str(tmp_path / "vae")} | each for each in (
        {}, {"finetune": {"train": "decoder", "steps": 3}}, {"finetune": {"train": "decoder", "steps": 4}}, {"finetune": {}}
    )]  # fmt: skip
    nodes = [
        Node(f"vae{i}", "latent", {"step": make_part("latent", each, installed())}) for i, each in enumerate(named)
    ]
    first, *others = (encoder_of(node, {}, seed=0) for node in nodes)
    assert first is not None
    assert [first.same(each) and each.same(first) for each in others if each is not None] == [True, True, False]


def test_what_decodes_alone_is_found_by_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = step(saved(tmp_path / "vae", "AutoencoderKLWan", WAN)).load()
    named = [name for name, _ in codec.named_parameters() if name.startswith(("vae.decoder.", "vae.post_quant_conv."))]
    assert decoding(codec) == tuple(sorted(named))
    assert len(named) > 10
    monkeypatch.setattr(vae_step, "halves", lambda _: Halves(frozenset({"vae.shared"}), frozenset({"vae.shared"})))
    with pytest.raises(UserError, match="AutoencoderKLWan has no weights that decode alone"):
        decoding(codec)


def test_latents_of_a_denoiser_are_moved_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae", "AutoencoderKLLTXVideo", LTX)
    spec = tiny_bundle(tmp_path / "base").spec
    alone = Spec(video=(9, 64, 64))
    assert step(folder, finetune={}).plan(alone).latent_size() == (2, 2, 2)
    with pytest.raises(UserError, match="a denoiser that may have been trained on them") as raised:
        step(folder, finetune={}).plan(spec)
    assert "latents: changed" in raised.value.problems[0][2]
    for given in ({"train": "decoder"}, {"latents": "changed", "losses": {"scale": 0.0}}, None):
        assert step(folder, finetune=given).plan(spec).need_latent().plugin == "diffusers_vae"
    with pytest.raises(UserError, match="latents of 3x2 cells can't be made 2 times smaller"):
        step(folder, finetune={}).plan(Spec(video=(9, 96, 64)))
    with pytest.raises(ValueError, match="no teacher whose 'features'"):
        DiffusersVAEOptions(path="x", finetune={"losses": {"features": 1.0}})
    with pytest.raises(ValueError, match="'latents' belongs to 'train: all'"):
        DiffusersVAEOptions(path="x", finetune={"train": "decoder", "latents": "changed"})
    with pytest.raises(UserError, match="a batch of 3 can't be shared by 2 processes in 1 equal parts"):
        check_parts(DiffusersVAEOptions(path="x", finetune={"batch": 3}), 2)


def test_every_weight_of_a_finetune_counts_in_its_key() -> None:
    some: dict[str, Any] = {"adversarial": 0.5, "haar": 0.5}
    others = {"scale_target": "decoded", "scales": [2, 4], "levels": 2}
    plain = options_as_data(FineTuneWeights(**some), contents=True)
    for name in FineTuneWeights.model_fields:
        assert options_as_data(FineTuneWeights(**{**some, name: others.get(name, 0.75)}), contents=True) != plain, name


# ------------------------------------------------------------------ exporting


def test_the_decoder_is_the_exporters_component(tmp_path: Path) -> None:
    codec = step(saved(tmp_path / "vae", "AutoencoderKLHunyuanVideo", ZOO["AutoencoderKLHunyuanVideo"][0])).load()
    latent = torch.randn(1, 4, 2, 4, 4)
    component = vae_decoder(codec, latent)
    program = torch.export.export(component.module, tuple(component.inputs.values()))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(latent), codec.decode(latent), atol=1e-5, rtol=1e-5)


def test_saving_gives_the_folder_of_diffusers_back(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae", "AutoencoderKLWan", WAN)
    step(folder).load().save_pretrained(tmp_path / "again")
    one, two = (diffusers.AutoencoderKLWan.from_pretrained(place) for place in (folder, tmp_path / "again"))
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert one.config.latents_mean == two.config.latents_mean


def test_the_exported_folder_is_one_of_diffusers(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae", "AutoencoderKLWan", WAN)
    whole = step(folder).run(context_in(tmp_path / "step", input=tiny_bundle(tmp_path / "base"))).bundle
    assert whole is not None
    part("export", "diffusers").run(context_in(tmp_path / "export", input=whole))
    files = tmp_path / "export" / "files"
    one, two = (diffusers.AutoencoderKLWan.from_pretrained(place) for place in (folder, files / "vae"))
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


# ------------------------------------------------------------------ bad folders


def test_a_pipeline_s_folder_and_bad_folders(tmp_path: Path) -> None:
    saved(tmp_path / "pipeline" / "vae", "AutoencoderKLWan", WAN)
    assert isinstance(step(tmp_path / "pipeline").load(), DiffusersCodec)
    with pytest.raises(UserError, match="no VAE of diffusers here"):
        step(tmp_path / "nowhere").plan(Spec())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderNew"}))
    with pytest.raises(UserError, match="has no VAE 'AutoencoderNew'"):
        step(tmp_path / "other").plan(Spec())
    weights = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="Download or copy it again"):
        step(tmp_path / "pipeline").load()
    weights.unlink()
    with pytest.raises(UserError, match="no safetensors here"):
        step(tmp_path / "pipeline").load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no config of a diffusers model"),
        ('{"_class_name": 3}', "no config of a diffusers model"),
        ("{", "config.json"),
        ('{"_class_name": "AutoencoderKLWan", "auto_map": {}}', "asks for code of its own"),
        ('{"_class_name": "AutoencoderKLWan", "base_dim": "x"}', "AutoencoderKLWan can't be made of this config"),
    ],
)
def test_a_broken_config_is_refused_by_plan_and_run(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for call in (lambda: step(tmp_path).plan(Spec()), lambda: step(tmp_path).load()):
        with pytest.raises(UserError, match=message):
            call()


def test_a_vae_of_images_sees_each_frame_alone(tmp_path: Path) -> None:
    """Of two frames it gives what it gives of each, by its own class."""
    sizes = {"block_out_channels": (32, 32), "norm_num_groups": 8, "latent_channels": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    folder = saved(tmp_path / "vae", "AutoencoderKL", {**sizes, **kinds})
    assert step(folder).plan(Spec()).latent is not None
    codec = step(folder).load()
    assert (codec.ratio, codec.channels) == ((1, 2, 2), 4)
    video = torch.rand(1, 3, 2, 16, 16) * 2 - 1
    with torch.no_grad():
        each = [codec.vae.encode(video[:, :, frame]).latent_dist.mode() for frame in range(2)]
        latent = torch.stack(each, 2)
        torch.testing.assert_close(codec.encode_raw(video), latent)
        decoded = torch.stack([codec.vae.decode(frame).sample for frame in each], 2)
        torch.testing.assert_close(codec.decode_raw(latent), decoded)


def test_hunyuan_video_15_sees_each_clip_alone(tmp_path: Path) -> None:
    """Its own call of two fails: the mask of its attention has no place for heads."""
    sizes = {"block_out_channels": (16, 16, 16, 16, 64), "latent_channels": 32, "layers_per_block": 1}
    match = {"downsample_match_channel": False, "upsample_match_channel": False}
    codec = step(saved(tmp_path / "vae", "AutoencoderKLHunyuanVideo15", {**sizes, **match})).load().eval()
    video = torch.cat([clip(5), clip(5).flip(-1)])
    with torch.no_grad():
        latent = codec.encode(video)
        torch.testing.assert_close(latent, torch.cat([codec.encode(each) for each in video.split(1)]))
        torch.testing.assert_close(codec.decode(latent), torch.cat([codec.decode(each) for each in latent.split(1)]))
        with pytest.raises(RuntimeError, match="broadcast"):
            codec.vae.encode(video)


def test_damaged_weights_are_found_by_the_tiny_call(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(**WAN)
    with torch.no_grad():
        next(vae.parameters()).fill_(float("nan"))
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="not finite for a plain clip"):
        step(tmp_path / "vae").run(context_in(tmp_path / "step"))
