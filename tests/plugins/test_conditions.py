"""Conditions beyond text: a module is called as its own pipeline calls it, or the missing input is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dit_compress.core.errors import UserError
from dit_compress.model.conditions import encode_first
from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import euler
from dit_compress.model.spec import latent_size
from dit_compress.model.twins import pipelines
from dit_compress_plugins.latent_diffusers_vae.codec import DiffusersCodec
from dit_compress_plugins.model_diffusers import DiffusersOptions
from dit_compress_plugins.model_diffusers.adapter import DiffusersDenoiser, DiffusersModel
from dit_compress_plugins.model_diffusers.convention import Convention, observe
from dit_compress_plugins.model_diffusers.signature import SOURCES, Call

if TYPE_CHECKING:
    from pathlib import Path

SIGMA = torch.tensor([0.25])


def denoiser_of(module: Any, **known: Any) -> DiffusersDenoiser:
    """Put a module behind the convention, without zeros among its weights."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return DiffusersDenoiser(module, observe(module, Convention(**known))).eval()


def tiny(name: str, **config: Any) -> Any:
    """Make a module with random weights."""
    return getattr(diffusers, name)(num_attention_heads=4, num_layers=2, **config)


FLUX: dict[str, Any] = {
    "attention_head_dim": 16, "in_channels": 16, "num_single_layers": 1, "joint_attention_dim": 16,
    "pooled_projection_dim": 24, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def flux() -> Any:
    return tiny("FluxTransformer2DModel", **FLUX, guidance_embeds=True)


def wan(**config: Any) -> Any:
    return tiny(
        "WanTransformer3DModel", attention_head_dim=12, out_channels=4, text_dim=16, freq_dim=32, ffn_dim=64,
        **{"in_channels": 4, **config},
    )  # fmt: skip


def cogvideox(**config: Any) -> Any:
    return tiny(
        "CogVideoXTransformer3DModel", attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=8, **config,
    )  # fmt: skip


def hunyuan15(task_type: str) -> Any:
    return tiny(
        "HunyuanVideo15Transformer3DModel", in_channels=9, out_channels=4, attention_head_dim=16, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=8,
        rope_axes_dim=(4, 6, 6), task_type=task_type,
    )  # fmt: skip


def without(cond: Cond, name: str) -> Cond:
    return Cond({key: value for key, value in cond.items() if key != name}, cond.null)


# ------------------------------------------------------------------ pooled vectors and guidance


def test_flux_is_told_pooled_and_guidance_as_its_pipeline_tells_them() -> None:
    denoiser = denoiser_of(flux(), guidance=3.5)
    latent, _, cond = denoiser.example(1, (1, 4, 6))
    assert cond["pooled"].any()
    assert cond.drop(torch.tensor([True]))["pooled"].eq(0).all()
    pipeline = diffusers.FluxPipeline
    with torch.no_grad():
        output = denoiser.module(
            hidden_states=pipeline._pack_latents(latent[:, :, 0], 1, 4, 4, 6),
            timestep=SIGMA,  # its pipeline divides by the thousand that the module multiplies by
            guidance=torch.full([1], 3.5),
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["embedding"],
            txt_ids=torch.zeros(cond["embedding"].shape[1], 3),
            img_ids=pipeline._prepare_latent_image_ids(1, 2, 3, torch.device("cpu"), torch.float32),
            return_dict=False,
        )[0]
        found = denoiser(latent, SIGMA, cond)
        louder = denoiser(latent, SIGMA, cond.beside({"guidance": torch.tensor([7.0])}))
    wanted = pipeline._unpack_latents(output, 32, 48, 8)
    torch.testing.assert_close(found[:, :, 0], wanted)
    assert (louder - found).abs().max() > 1e-4


def test_positions_are_written_as_floats() -> None:
    """Into a tensor of floats: Core ML's slices take no others."""

    class Seen(TorchDispatchMode):
        kinds: ClassVar[set[torch.dtype]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.copy_.default:
                self.kinds.add(args[1].dtype)
            return func(*args, **(kwargs or {}))

    module, cond = SimpleNamespace(config={"axes_dims_rope": (2, 2, 2, 2)}), {"embedding": torch.zeros(1, 3, 8)}
    call = Call(module, torch.zeros(1, 4, 1, 4, 6), SIGMA, cond, "packed_image", (1, 2, 2), (1, 1, 1))
    with Seen():
        image, text = SOURCES["img_ids"](call), SOURCES["txt_ids"](call)
    assert image.tolist() == [[0, row, column, 0] for row in range(2) for column in range(3)]
    assert text.tolist() == [[0, 0, 0, word] for word in range(3)]
    assert Seen.kinds == {torch.float32}


def test_sd3_is_told_pooled() -> None:
    module = tiny(
        "SD3Transformer2DModel", attention_head_dim=8, in_channels=4, out_channels=4, sample_size=32,
        joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=24,
    )  # fmt: skip
    denoiser = denoiser_of(module)
    latent, _, cond = denoiser.example(1, (2, 4, 6))  # two images of one caption
    with torch.no_grad():
        wanted = module(
            latent[0].transpose(0, 1), cond["embedding"].expand(2, -1, -1), cond["pooled"].expand(2, -1),
            1000 * SIGMA.expand(2), return_dict=False,
        )[0]  # fmt: skip
        torch.testing.assert_close(denoiser(latent, SIGMA, cond)[0], wanted.transpose(0, 1))


def test_a_folder_brings_the_guidance_of_its_pipeline(tmp_path: Path) -> None:
    flux().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    module = DiffusersModel(DiffusersOptions(path=str(tmp_path))).create()
    assert DiffusersModel.denoiser(module).convention.guidance == 3.5
    again = DiffusersModel.from_config(DiffusersModel.config_of(module))
    assert DiffusersModel.denoiser(again).convention.guidance == 3.5
    stated = DiffusersModel(DiffusersOptions(path=str(tmp_path), guidance=2.0)).create()
    assert DiffusersModel.denoiser(stated).convention.guidance == 2.0


def test_two_text_encoders_and_the_zeros_of_text_to_video() -> None:
    """As the pipeline of HunyuanVideo 1.5 calls its T2V model: no image is said by zeros."""
    denoiser = denoiser_of(hunyuan15("t2v"))
    latent, _, cond = denoiser.example(1, (2, 4, 6))
    assert denoiser.channels == 4
    assert cond["embedding_2"].shape[-1] == 12
    with torch.no_grad():
        wanted = denoiser.module(
            hidden_states=torch.cat([latent, torch.zeros_like(latent), torch.zeros(1, 1, 2, 4, 6)], 1),
            timestep=1000 * SIGMA, encoder_hidden_states=cond["embedding"], encoder_attention_mask=cond["mask"],
            encoder_hidden_states_2=cond["embedding_2"], encoder_attention_mask_2=cond["mask_2"],
            image_embeds=torch.zeros(1, 729, 8), return_dict=False,
        )[0]  # fmt: skip
        torch.testing.assert_close(denoiser(latent, SIGMA, cond), wanted)


# ------------------------------------------------------------------ first frames


ROTARY = {"ofs_embed_dim": 8, "patch_size_t": 2, "patch_bias": False, "use_rotary_positional_embeddings": True}


@pytest.mark.parametrize("version", ["1.0", "1.5"])
def test_cogvideox_is_given_the_image_in_further_channels(version: str) -> None:
    own = ROTARY if version == "1.5" else {}
    denoiser = denoiser_of(cogvideox(**own), first_scale=0.5 if own else 1.0)
    latent, _, cond = denoiser.example(1, (2, 4, 6))
    first, image = cond["first"], torch.zeros(1, 2, 4, 4, 6)
    assert first.shape == (1, 4, 1, 4, 6)
    image[:, :1] = (0.5 if own else 1.0) * first.transpose(1, 2)
    given = denoiser.call(latent, SIGMA, cond)[1]
    tables = {"image_rotary_emb": given["image_rotary_emb"]} if own else {}
    with torch.no_grad():
        wanted = denoiser.module(
            hidden_states=torch.cat([latent.transpose(1, 2), image], 2), encoder_hidden_states=cond["embedding"],
            timestep=1000 * SIGMA, ofs=torch.full((1,), 2.0) if own else None, return_dict=False, **tables,
        )[0]  # fmt: skip
        torch.testing.assert_close(denoiser(latent, SIGMA, cond), wanted.transpose(1, 2))
    with pytest.raises(UserError, match=r"CogVideoXTransformer3DModel takes the latents of a first frame.*first_frame"):
        denoiser(latent, SIGMA, without(cond, "first"))


KINDS = {
    "wan": (diffusers.WanImageToVideoPipeline, lambda: pipelines.wan(i2v=True), "first_padded"),
    "clip": (diffusers.WanImageToVideoPipeline, lambda: pipelines.wan(i2v=True, sees=True), "first_padded"),
    "ti2v": (diffusers.WanImageToVideoPipeline, lambda: pipelines.wan(ti2v=True), "first"),
    "ltx": (diffusers.LTXImageToVideoPipeline, pipelines.ltx, "first"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_from_an_image_is_that_of_the_pipeline(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From pixels to the last latent: its VAE, its calls of the module, its steps."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_: self.mode())  # LTX's draws
    torch.manual_seed(0)
    cls, make, name = KINDS[kind]
    parts = {**make().components, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    if cls is diffusers.WanImageToVideoPipeline:
        parts = {"image_encoder": None, "image_processor": None, **parts, "expand_timesteps": kind == "ti2v"}
        parts.pop("transformer_2", None)
    pipeline = cls(**parts)
    pipeline.set_progress_bar_config(disable=True)
    denoiser = denoiser_of(pipeline.transformer)
    pipeline.vae.save_pretrained(tmp_path)
    codec = DiffusersCodec.from_pretrained(tmp_path).eval()
    assert denoiser.conditions[name] == (name == "first_padded")

    (frames, side), image = ((9, 64) if kind == "ltx" else (5, 32)), torch.rand(1, 3, 64, 64)
    image = (255 * image[..., :side, :side]).round() / 255
    noise = torch.randn(1, codec.channels, *latent_size((frames, side, side), codec.ratio, codec.frame_rule))
    _, _, cond = denoiser.example(1, tuple(noise.shape[2:]), text_length=8)
    words = cond["embedding"] * cond["mask"][..., None]
    text = {"prompt_embeds": functional.pad(words, (0, 0, 0, 512 - 8)) if kind == "clip" else words}
    start = noise
    shown = Image.fromarray((255 * image[0]).round().byte().permute(1, 2, 0).numpy()) if kind == "clip" else image
    with torch.no_grad():
        first = encode_first(codec, 2 * image - 1, name, frames)
        if kind == "ltx":
            text["prompt_attention_mask"] = cond["mask"]
            start = cls._pack_latents(torch.cat([first, noise[:, :, 1:]], 2))
        wanted = pipeline(
            image=shown, height=side, width=side, num_frames=frames, num_inference_steps=2, guidance_scale=1.0,
            latents=start, output_type="latent", return_dict=False, **text,
        )[0]  # fmt: skip
        if kind == "ltx":
            wanted = cls._unpack_latents(wanted, *noise.shape[2:])
        given = Cond({**cond, name: first}, cond.null)
        if kind == "clip":
            given = given.beside({"image": pipeline.encode_image(shown, torch.device("cpu"))})
        found = euler(denoiser, noise, given, pipeline.scheduler.sigmas.tolist())
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-4)
    if name == "first":
        torch.testing.assert_close(found[:, :, :1], first, atol=2e-5, rtol=2e-4)
        assert (found - euler(denoiser, noise, without(cond, name), pipeline.scheduler.sigmas.tolist())).abs().max() > 1e-3
    else:
        with pytest.raises(UserError, match="first_frame: true"):
            denoiser(noise, SIGMA, without(given, name))


def test_a_video_of_hunyuan_from_an_image_is_that_of_the_pipeline(tmp_path: Path) -> None:
    """Its first frame in further channels, and SigLIP's embeddings of it."""
    pipeline = pipelines.hunyuan15(i2v=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.guider.guidance_scale = 1.0
    denoiser = denoiser_of(pipeline.transformer)
    pipeline.vae.save_pretrained(tmp_path)
    codec = DiffusersCodec.from_pretrained(tmp_path).eval()
    shown = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    first = torch.tensor(shown.getdata()).float().reshape(1, 64, 64, 3).permute(0, 3, 1, 2) / 127.5 - 1
    noise = torch.randn(1, codec.channels, *latent_size((5, 64, 64), codec.ratio, codec.frame_rule))
    _, _, cond = denoiser.example(1, tuple(noise.shape[2:]))
    text = {
        "prompt_embeds": cond["embedding"], "prompt_embeds_mask": cond["mask"],
        "prompt_embeds_2": cond["embedding_2"], "prompt_embeds_mask_2": cond["mask_2"],
    }  # fmt: skip
    with torch.no_grad():
        wanted = pipeline(
            image=shown, num_frames=5, num_inference_steps=2, latents=noise, output_type="latent", return_dict=False,
            **text,
        )[0]  # fmt: skip
        image = pipeline.encode_image(shown, 1, torch.device("cpu"), torch.float32)
        given = cond.beside({"first": encode_first(codec, first, "first", 5), "image": image})
        found = euler(denoiser, noise, given, pipeline.scheduler.sigmas.tolist())
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-4)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("module", "name", "seen"),
    [
        (flux, "pooled", "FluxTransformer2DModel takes a pooled vector of each caption .*Take a 'text' that gives it"),
        (flux, "guidance", "FluxTransformer2DModel takes the guidance .*Set 'guidance' in 'model'"),
        (lambda: hunyuan15("t2v"), "mask_2", "takes the mask of a second text encoder .*pipeline"),
        (lambda: hunyuan15("i2v"), "image", "takes the embeddings of an image .*'image'"),
        (lambda: wan(image_dim=20, added_kv_proj_dim=48), "image", "takes the embeddings of an image .*whole pipeline"),
    ],
)
def test_what_is_missing_is_named_and_never_zeros(module: Any, name: str, seen: str) -> None:
    denoiser = denoiser_of(module())
    latent, sigma, cond = denoiser.example(1, (1, 4, 4))
    denoiser(latent, sigma, cond)
    with pytest.raises(UserError, match=seen):
        denoiser(latent, sigma, without(cond, name))


def test_guidance_for_a_module_that_takes_none_is_refused() -> None:
    options = DiffusersOptions(class_name="FluxTransformer2DModel", guidance=3.5, config=FLUX)
    with pytest.raises(UserError, match=r"model.guidance: FluxTransformer2DModel was built without.*Take 'guidance' out"):
        DiffusersModel(options).create()
