"""Models as tracers get them: the numbers of their own forward, nothing that depends on values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from test_conditions import cogvideox, denoiser_of, hunyuan15

from dit_compress.core.errors import UserError
from dit_compress.export import dit_step
from dit_compress.export.compare import compare
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_coreml.exporter import CoreMLExport
from dit_compress_plugins.model_diffusers.traced import has_own_order

if TYPE_CHECKING:
    from pathlib import Path

BOUND = 1e-5


def test_hunyuan_video_15_is_traced_with_its_tokens_in_order() -> None:
    denoiser = denoiser_of(hunyuan15("t2v"))
    latent, _, cond = denoiser.example(1, (2, 4, 6))
    assert not torch.equal(cond["embedding"], cond["embedding_2"])
    component = dit_step(denoiser, latent, dict(cond))
    exporter = CoreMLExport(CoreMLOptions())
    component = component.fitted(exporter.profile)
    assert [each for each in exporter.check(component, exporter.profile) if each.severity == "error"] == []
    for glyphs in (3, 0):  # of 8; none is what a prompt without quotes has
        given = {**component.inputs, "mask_2": (torch.arange(8)[None] < glyphs).float()}
        with torch.no_grad():
            wanted, found = component.module(*given.values()), component.program.module()(**given)
        assert (found - wanted).abs().max() < BOUND * wanted.abs().max()
        louder = component.program.module()(**{**given, "embedding_2": given["embedding_2"] + 1})
        assert torch.allclose(louder, found, atol=0, rtol=0) is (glyphs == 0)


def test_a_model_of_images_keeps_its_own_forward() -> None:
    assert has_own_order(hunyuan15("t2v"))
    assert not has_own_order(hunyuan15("i2v"))


def test_a_model_of_noise_levels_is_exported(tmp_path: Path) -> None:
    """CogVideoX 2B and 5B predict v at timesteps between 0 and 999, which are found by sigma inside the step."""
    noise = {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0, "beta_schedule": "scaled_linear",
             "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True}  # fmt: skip
    denoiser = denoiser_of(cogvideox(), prediction="v", scheduler=noise)
    component = dit_step(denoiser, *denoiser.example(1, (3, 8, 8))[::2])
    exporter = CoreMLExport(CoreMLOptions(precision="float32"))
    component = component.fitted(exporter.profile)
    assert [each for each in exporter.check(component, exporter.profile) if each.severity == "error"] == []
    runner = exporter.runner(exporter.lower(component, exporter.profile, tmp_path)[0])
    for sigma in (1.0, 0.7, 0.31, 0.0):
        given = {**component.inputs, "sigma": torch.tensor([sigma])}
        with torch.no_grad():
            wanted = component.module(*given.values()).numpy()
        found = runner({name: value.numpy() for name, value in given.items()}, "float32")["velocity"]
        assert compare(wanted, found).psnr_db > 80
    with pytest.raises(UserError) as refused:
        _ = dit_step(denoiser, *denoiser.example(1, (2, 8, 4))[::2]).program
    assert str(refused.value) == (
        "component dit_step, patch_embed: its positions are for 9 frames of 8x8 cells; at 5 of 8x4 CogVideoXPatchEmbed "
        "makes others, which torch.export can't follow. Export it at the size that its config states, or state this one "
        "there (sample_frames, sample_height, sample_width)"
    )
