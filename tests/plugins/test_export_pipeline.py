"""Whole pipelines: from a folder, through a recipe, to a folder that stock diffusers opens and samples."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from toy import context_in, part

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import Flow, euler
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.model.twins import write_twin
from dit_compress.plugin.registry import installed
from dit_compress.recipe import load
from dit_compress_plugins.export_diffusers.scheduler import asked, scheduler_of

WAN, LTX, FLUX, SD3 = "Wan2.1-T2V-1.3B", "LTX-Video", "FLUX.1-dev", "stable-diffusion-3.5-medium"
SMALL = {"output_type": "np", "height": 64, "width": 64, "prompt": "a red ball", "guidance_scale": 1.0}


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of twins, written when asked for."""
    place = tmp_path_factory.mktemp("twins")

    def folder(name: str) -> Path:
        if not (place / name).exists():
            write_twin(name, place / name)
        return place / name

    return folder


def bundle_of(pipeline: Path, out: Path, *, flow: Flow, **options: Any) -> Bundle:
    """A bundle of a pipeline's transformer and VAE."""
    maker = part("model", "diffusers", path=str(pipeline), **options)
    module = maker.create()
    spec = Spec(denoiser=ComponentSpec("model", "diffusers", maker.config_of(module)), flow=flow)
    return write_bundle(out, spec, {"denoiser": module}, base=None, lineage=(), licence=maker.licence())


def export(folder: Path, bundle: Bundle, **options: Any) -> Path:
    result = part("export", "diffusers", **options).run(context_in(folder, input=bundle))
    assert result.metrics["passed"]
    return folder / "files"


def sampled(folder: Path, steps: int, **options: Any) -> tuple[Any, Any, list[float]]:
    """Open a folder by stock diffusers and sample it: pipeline, pixels, and the sigmas that were gone through."""
    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    frames = {} if "Flux" in type(pipeline).__name__ or "Diffusion3" in type(pipeline).__name__ else {"num_frames": 9}
    made = pipeline(**SMALL, **frames, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
    pixels = made.frames if frames else made.images
    return pipeline, pixels, [float(sigma) for sigma in pipeline.scheduler.sigmas]


@pytest.mark.parametrize(
    ("name", "remove", "code"),
    [
        (WAN, {"block": 1}, False),
        (LTX, {"head": 1}, True),
        (FLUX, {"block.single_transformer_blocks": 1}, False),
        (SD3, {}, False),
    ],
)
def test_a_pruned_bundle_becomes_a_pipeline_that_stock_diffusers_samples(
    name: str, remove: dict[str, int], code: bool, twins: Any, tmp_path: Path
) -> None:
    flow = Flow(shift=5.0, num_steps=3, guidance=1.0)
    bundle_of(twins(name), tmp_path / "whole", flow=flow)
    (twins(name) / "blob").write_text("as it is")
    (twins(name) / "LICENSE.txt").symlink_to("blob")  # as the Hub's cache has it
    bundle = Bundle.open(tmp_path / "whole")
    if remove:
        dit_compress.prune(tmp_path / "whole", remove=remove, out=tmp_path / "small")
        bundle = Bundle.open(tmp_path / "small")
    made: Any = bundle.denoiser().module
    files = export(tmp_path / "step", bundle)
    index = json.loads((files / "model_index.json").read_text())
    assert index["transformer"] == (["load_pruned", "PrunedModel"] if code else ["diffusers", type(made).__name__])
    pipeline, pixels, sigmas = sampled(files, flow.num_steps, trust_remote_code=code)
    assert type(pipeline.transformer) is type(made)
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in pipeline.transformer.state_dict().items())
    assert sigmas == pytest.approx(flow.sigmas(), abs=1e-6)
    assert pixels.std() > 0.001
    assert part("model", "diffusers", path=str(files)).flow() == flow, "the folder can go in again"
    assert (files / "LICENSE.txt").read_text() == "as it is"
    assert not (files / "LICENSE.txt").is_symlink()
    assert sorted(item.name for item in files.iterdir() if item.is_dir()) == sorted(
        item.name for item in twins(name).iterdir() if item.is_dir()
    )


def test_the_stock_pipeline_makes_what_the_engine_makes_of_a_model_that_predicts_v(twins: Any, tmp_path: Path) -> None:
    flow = Flow(shift=5.0, num_steps=3, guidance=1.0)
    bundle = bundle_of(twins("CogVideoX-2b"), tmp_path / "whole", flow=flow)
    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            export(tmp_path / "step", bundle), trust_remote_code=True
        )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {**SMALL, "output_type": "latent", "num_frames": 9, "latents": noise.transpose(1, 2)}
    made = pipeline(**given, num_inference_steps=3).frames.transpose(1, 2)
    embedding = pipeline.encode_prompt(SMALL["prompt"], do_classifier_free_guidance=False)[0]
    cond = Cond({"embedding": embedding, "mask": torch.ones(embedding.shape[:2])}, {})
    with torch.no_grad():
        wanted = euler(bundle.denoiser(), noise, cond, flow.sigmas())
    assert pipeline.scheduler.sigmas.tolist() == pytest.approx(flow.sigmas(), abs=1e-6)
    assert torch.allclose(made, wanted, atol=1e-5)
    assert wanted.std() > 0.1


@pytest.mark.parametrize(("pipeline", "given"), [(diffusers.WanPipeline, False), (diffusers.LTXPipeline, True)])
def test_a_scheduler_of_diffusers_has_the_sigmas_of_any_flow(pipeline: Any, given: bool) -> None:
    for shift, count in itertools.product((0.5, 1.0, 3.0, 8.0), (1, 2, 4, 8, 50)):
        flow = Flow(shift=shift, num_steps=count)
        scheduler = scheduler_of(flow, pipeline, {})
        assert asked(scheduler, count, gives=given) == pytest.approx(flow.sigmas(), abs=1e-6)


def test_a_pipeline_that_samples_as_it_likes_is_refused() -> None:
    with pytest.raises(UserError, match="MochiPipeline samples at sigmas of its own"):
        scheduler_of(Flow(), diffusers.MochiPipeline, {})


def broken(pipeline: Path, out: Path, fault: str, other: Path) -> str:
    """Copy a pipeline with one fault; say what is to be said of it."""
    shutil.copytree(pipeline, out)
    if fault == "other":
        shutil.rmtree(out / "transformer")
        shutil.copytree(other / "transformer", out / "transformer")
        return "'transformer' is a LTXVideoTransformer3DModel, and model_index.json of WanPipeline names WanTransf"
    if fault == "part":
        shutil.rmtree(out / "tokenizer")
        return "model_index.json names 'tokenizer' .T5Tokenizer., and there is no such folder"
    if fault == "index":
        (out / "model_index.json").write_text("[]")
        return "no index of a pipeline"
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (out / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    return "the shard model-00001-of-00002.safetensors of 'text_encoder' is missing"


@pytest.mark.parametrize("fault", ["other", "part", "index", "shard"])
def test_a_folder_that_is_not_whole_is_refused_and_nothing_is_written(fault: str, twins: Any, tmp_path: Path) -> None:
    said = broken(twins(WAN), tmp_path / "broken", fault, twins(LTX))
    with pytest.raises(UserError, match=said):
        part("model", "diffusers", path=str(tmp_path / "broken")).create()
    bundle = bundle_of(twins(WAN), tmp_path / "whole", flow=Flow())
    with pytest.raises(UserError, match=said):
        part("export", "diffusers", pipeline=str(tmp_path / "broken")).plan(bundle.spec)
    with pytest.raises(UserError, match=said):
        export(tmp_path / "step", bundle, pipeline=str(tmp_path / "broken"))
    assert not (tmp_path / "step").exists() or not any((tmp_path / "step").iterdir())


def test_parts_that_have_no_place_in_a_pipeline_are_refused(twins: Any, tmp_path: Path) -> None:
    bundle = bundle_of(twins(WAN), tmp_path / "whole", flow=Flow())
    exporter = part("export", "diffusers", pipeline=str(twins(LTX)))
    with pytest.raises(
        UserError, match="the bundle's model is a WanTransformer3DModel, and LTXPipeline takes LTXVideo"
    ):
        exporter.plan(bundle.spec)
    exporter = part("export", "diffusers")
    with_vae = replace(bundle.spec, latent=ComponentSpec("latent", "video_vae", {}))
    with pytest.raises(UserError, match="the bundle's VAE is video_vae, and WanPipeline takes AutoencoderKLWan"):
        exporter.plan(with_vae)
    lazy = replace(bundle.spec, flow=Flow(sampler={"use": "lazy"}))
    with pytest.raises(UserError, match="sampled by 'lazy'"):
        exporter.plan(lazy)


def test_a_recipe_takes_all_of_a_pipeline(twins: Any, tmp_path: Path) -> None:
    pipeline = str(twins(WAN))
    text = f"model: {{from: {pipeline}}}\nsteps: [{{prune: {{use: trilevel, search: magnitude, levels: {{block: {{remove: 1}}}}}}}}, {{export: diffusers}}]\n"
    (tmp_path / "r.yaml").write_text(text)
    recipe = load(tmp_path / "r.yaml", installed())
    assert [step.part.name for step in recipe.steps] == ["diffusers_vae", "trilevel", "diffusers"]
    assert recipe.steps[0].part.as_data()["path"] == pipeline
    assert part("model", "diffusers", path=pipeline).flow() == Flow(shift=3.0)
    assert part("model", "diffusers", path=str(twins("HunyuanVideo-1.5"))).flow() == Flow(shift=5.0)
    assert part("model", "diffusers", path=str(twins(LTX))).flow() == Flow()
