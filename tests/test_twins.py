"""Twins of public pipelines: stock diffusers opens and samples them; equal seeds give equal weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dit_compress.cli.app import app
from dit_compress.core.errors import UserError
from dit_compress.core.files import sha256_content
from dit_compress.core.progress import quiet
from dit_compress.model.twins import TWINS, model_of, write_twin
from dit_compress.model.twins.pipelines import PIPELINES

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = ("FLUX.1-dev", "stable-diffusion-3.5-medium")
MORE: dict[str, dict[str, Any]] = {
    "SANA-Video_2B": {"frames": 9, "use_resolution_binning": False, "complex_human_instruction": []},
    "Wan2.1-I2V-14B": {"num_frames": 9, "image": Image.new("RGB", (64, 64), (200, 30, 30))},
    "HunyuanVideo-1.5-I2V": {"num_frames": 9, "image": Image.new("RGB", (64, 64), (200, 30, 30))},
    **{name: {} for name in IMAGES},
}
RATIOS = {"Wan2.2-TI2V-5B": (4, 16), "LTX-Video": (8, 32), "LTX-2": (8, 32), "HunyuanVideo-1.5": (4, 16),
          "HunyuanVideo-1.5-I2V": (4, 16)}  # fmt: skip


@pytest.mark.parametrize("model", TWINS)
def test_the_stock_pipeline_opens_and_samples_a_twin(model: str, tmp_path: Path) -> None:
    write_twin(model, tmp_path / "twin")
    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "twin")
    assert type(pipeline).__name__ == TWINS[model]
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt="a red ball", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0),
        **MORE.get(model, {"num_frames": 9}), **({} if model.endswith("1.5-I2V") else {"height": 64, "width": 64}),
    )  # fmt: skip
    pixels = made.images if model in IMAGES else made.frames
    assert pixels.shape == ((1, 64, 64, 3) if model in IMAGES else (1, 9, 64, 64, 3))
    assert pixels.std() > 0.01
    if model in RATIOS:
        frames, side = RATIOS[model]
        assert (pipeline.vae_scale_factor_temporal if hasattr(pipeline, "vae_scale_factor_temporal")
                else pipeline.vae_temporal_compression_ratio) == frames  # fmt: skip
        assert (pipeline.vae_scale_factor_spatial if hasattr(pipeline, "vae_scale_factor_spatial")
                else pipeline.vae_spatial_compression_ratio) == side  # fmt: skip
    if model == "Wan2.2-T2V-A14B":
        first, second = pipeline.transformer, pipeline.transformer_2
        assert pipeline.config.boundary_ratio == 0.875
        assert not torch.equal(first.proj_out.weight, second.proj_out.weight)


def test_the_command_writes_the_same_twice_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    run = CliRunner().invoke
    for name in ("a", "b"):
        assert (
            run(app, ["twin", "LTXPipeline", "--out", str(tmp_path / name)]).output == f"{tmp_path / name}: LTX-Video\n"
        )
    run(app, ["twin", "LTX-Video", "--out", str(tmp_path / "c"), "--seed", "1"])
    a, b, c = (sha256_content(tmp_path / name / "transformer") for name in "abc")
    assert a == b != c
    with pytest.raises(UserError, match="no twin of 'LTXPipline'. There are: .*LTXPipeline"):
        model_of("LTXPipline")
    with pytest.raises(UserError, match="exists already"):
        run(app, ["twin", "LTX-Video", "--out", str(tmp_path / "a")], catch_exceptions=False, standalone_mode=False)


def test_every_twin_has_a_pipeline() -> None:
    assert set(PIPELINES) == set(TWINS)
    assert all(hasattr(diffusers, kind) for kind in TWINS.values())
