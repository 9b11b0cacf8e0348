"""Whole pipelines: from a folder, through a recipe, to a folder that stock diffusers opens and samples."""

from __future__ import annotations

import json
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
from dit_compress.model.flow import Flow
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.model.twins import write_twin

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
    [(WAN, {"block": 1}, False), (LTX, {"head": 1}, True), (FLUX, {"block.single_transformer_blocks": 1}, False), (SD3, {"head": 1}, True)],
)
def test_a_pruned_bundle_becomes_a_pipeline_that_stock_diffusers_samples(
    name: str, remove: dict[str, int], code: bool, twins: Any, tmp_path: Path
) -> None:
    flow = Flow(shift=5.0, num_steps=3, guidance=1.0)
    bundle_of(twins(name), tmp_path / "whole", flow=flow)
    (twins(name) / "LICENSE.txt").write_text("as it is")
    made = dit_compress.prune(tmp_path / "whole", remove=remove, out=tmp_path / "small")
    files = export(tmp_path / "step", Bundle.open(tmp_path / "small"))
    index = json.loads((files / "model_index.json").read_text())
    assert index["transformer"] == (["load_pruned", "PrunedModel"] if code else ["diffusers", type(made).__name__])
    pipeline, pixels, sigmas = sampled(files, flow.num_steps, trust_remote_code=code)
    assert type(pipeline.transformer) is type(made)
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in pipeline.transformer.state_dict().items())
    assert sigmas == pytest.approx(flow.sigmas(), abs=1e-6)
    assert pixels.std() > 0.001
    assert (files / "LICENSE.txt").read_text() == "as it is"
    assert sorted(item.name for item in files.iterdir() if item.is_dir()) == sorted(
        item.name for item in twins(name).iterdir() if item.is_dir()
    )
