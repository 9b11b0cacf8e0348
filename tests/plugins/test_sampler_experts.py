"""Two experts: each trained at its own sigmas, sampled across the boundary, exported into one pipeline."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from toy import batch, context_in, part, words

import dit_compress
from dit_compress.core.errors import UserError
from dit_compress.core.progress import quiet
from dit_compress.model.bundle import Bundle, write_bundle
from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import Flow, euler
from dit_compress.model.spec import ComponentSpec, Spec
from dit_compress.model.twins import write_twin

if TYPE_CHECKING:
    from pathlib import Path

PARTS = ("transformer", "transformer_2")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "wan"
    write_twin("Wan2.2-T2V-A14B", folder)
    return folder


@pytest.fixture(scope="module")
def experts(twin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each, for four steps."""
    found = {}
    for name in PARTS:
        maker = part("model", "diffusers", path=str(twin), part=name)
        module, flow = maker.create(), replace(maker.flow(), num_steps=4, guidance=1.0)
        spec = Spec(denoiser=ComponentSpec("model", "diffusers", maker.config_of(module)), flow=flow)
        place = tmp_path_factory.mktemp(name) / "bundle"
        found[name] = write_bundle(place, spec, {"denoiser": module}, base=None, lineage=())
    return found


def test_each_expert_knows_its_sigmas(experts: dict[str, Bundle]) -> None:
    high, low = (experts[name].flow for name in PARTS)
    assert (high.between, low.between) == ((0.875, 1.0), (0.0, 0.875))
    assert high.calls() == (1.0, 0.9)
    assert low.calls() == pytest.approx((0.75, 0.5))
    assert [high.has(0.875), low.has(0.875), high.has(1.0), low.has(0.0)] == [True, False, True, True]
    u = torch.linspace(0, 1, 11)
    assert torch.allclose(high.drawn(u)[[0, -1]], torch.tensor([0.875, 1.0]))
    assert torch.allclose(low.drawn(u)[[0, -1]], torch.tensor([0.0, 0.875]))
    assert torch.equal(Flow().drawn(u), Flow().warp(u))
    with pytest.raises(UserError, match="none of the 1 steps falls to this expert, .* from 0 to 0.875"):
        replace(low, num_steps=1).calls()


@pytest.mark.parametrize(("name", "low", "high"), [("transformer", 0.875, 1.0), ("transformer_2", 0.0, 0.875)])
def test_training_draws_the_sigmas_of_the_expert(
    name: str, low: float, high: float, experts: dict[str, Bundle], tmp_path: Path
) -> None:
    given = context_in(tmp_path, input=experts[name])
    student = experts[name].denoiser()
    flowing = part("distill", "flow", steps=1, batch=4).objective(given, student, None, words())
    sigma, _ = flowing.noise(batch(words(), size=64))
    assert low <= float(sigma.min()) < float(sigma.max()) <= high
    judged = part("distill", "adversarial", steps=9, batch=4, sampling_steps=4, discriminator_warmup=1)
    grid = judged.objective(given, student, None, words()).grid
    assert all(low <= sigma <= high for sigma in grid.tolist())
    assert len(grid) == 2


def test_the_stock_pipeline_of_both_makes_what_the_sampler_makes(experts: dict[str, Bundle], tmp_path: Path) -> None:
    high = experts[PARTS[0]]
    made = dit_compress.prune(experts[PARTS[1]].path, remove={"head": 1}, out=tmp_path / "low")
    low = Bundle.open(tmp_path / "low")
    result = part("export", "diffusers").run(context_in(tmp_path / "step", input=high, other=low))
    assert set(result.files) == {*PARTS}
    files = tmp_path / "step" / "files"
    index = json.loads((files / "model_index.json").read_text())
    assert (index["transformer"], index["transformer_2"]) == (
        ["diffusers", "WanTransformer3DModel"],
        ["load_pruned", "PrunedModel"],
    )
    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(files, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.boundary_ratio == 0.875
    assert torch.equal(pipeline.transformer_2.proj_out.weight, made.proj_out.weight)
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"prompt": "a red ball", "height": 64, "width": 64, "num_frames": 9, "guidance_scale": 1.0}
    stock = pipeline(**given, latents=noise, output_type="latent", num_inference_steps=4).frames
    embedding = pipeline.encode_prompt("a red ball", do_classifier_free_guidance=False, max_sequence_length=512)[0]
    cond = Cond({"embedding": embedding, "mask": torch.ones(embedding.shape[:2])}, {})
    sampler = part("sampler", "experts", other=str(tmp_path / "low"))
    with torch.no_grad():
        ours = sampler.sample(high.denoiser(), noise, cond, high.flow.sigmas())
        alone = euler(high.denoiser(), noise, cond, high.flow.sigmas())
    assert torch.allclose(stock, ours, atol=1e-4)
    assert not torch.allclose(alone, ours, atol=1e-2)


def test_one_expert_goes_beside_the_other_as_it_was(experts: dict[str, Bundle], twin: Path, tmp_path: Path) -> None:
    part("export", "diffusers").run(context_in(tmp_path, input=experts[PARTS[1]]))
    name = "diffusion_pytorch_model.safetensors"
    for each in PARTS:
        assert (tmp_path / "files" / each / name).read_bytes() == (twin / each / name).read_bytes()


@pytest.mark.parametrize("boundary", [-0.1, 0, 1, 1.5, True, None, "half"])
def test_a_boundary_that_is_none_is_refused(boundary: Any, twin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wan"
    shutil.copytree(twin, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": boundary}))
    with pytest.raises(UserError, match=r"two experts, and 'boundary_ratio' is .*: no sigma between 0 and 1"):
        part("model", "diffusers", path=str(folder)).create()


def test_what_an_expert_can_not_do_is_refused(experts: dict[str, Bundle], tmp_path: Path) -> None:
    high, low = (experts[name] for name in PARTS)
    with pytest.raises(UserError, match=r"its sampler samples from noise .* an expert for sigmas from 0.875 to 1"):
        high.flow.sample()
    with pytest.raises(UserError, match="an exported package samples from noise"):
        high.flow.need_euler()
    spec = replace(high.spec, latent=ComponentSpec("latent", "x", {}))
    for distiller in (
        part("distill", "dmd", steps=99, batch=4),
        part("distill", "flow", steps=9, batch=4, watch={"every": 3}),
    ):
        with pytest.raises(UserError, match="an expert for sigmas from 0.875 to 1"):
            distiller.plan(spec)
    exporter = part("export", "diffusers")
    with pytest.raises(UserError, match="'other' is the second expert .* these are transformer and transformer"):
        exporter.run(context_in(tmp_path, input=high, other=high))
    other = replace(low, data={**low.data, "flow": {**low.data["flow"], "shift": 5.0}})
    with pytest.raises(UserError, match="sampled at other sigmas: 4 steps at shift 3, and 4 at 5"):
        exporter.run(context_in(tmp_path, input=high, other=other))
    assert not (tmp_path / "files").exists()
    whole = replace(low, data={**low.data, "flow": {**low.data["flow"], "between": None}})
    write_bundle(tmp_path / "whole", replace(whole.spec), {"denoiser": low.denoiser().module}, base=None, lineage=())
    with pytest.raises(UserError, match="no expert: the bundle is for every sigma"):
        part("sampler", "experts", other=str(tmp_path / "whole"))
