"""HunyuanVideo 1.5 as tracers get it: the numbers of its own forward, no shape that depends on values."""

from __future__ import annotations

import torch
from test_conditions import denoiser_of, hunyuan15

from dit_compress.export import dit_step
from dit_compress_plugins.export_coreml import CoreMLOptions
from dit_compress_plugins.export_coreml.exporter import CoreMLExport
from dit_compress_plugins.model_diffusers.traced import has_own_order

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
