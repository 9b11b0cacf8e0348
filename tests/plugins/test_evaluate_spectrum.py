"""The spectrum of latents, by hand and against scipy; the step and its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from scipy import fft
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.model.spec import Spec
from dit_compress.report.data import Step
from dit_compress.report.spectra import spectrum_picture
from dit_compress.testing.steps import drawn, tiny_bundle, tiny_context
from dit_compress_plugins.evaluate_spectrum.spectrum import by_band, cosine_transform, frequency, power, upper_share

if TYPE_CHECKING:
    from pathlib import Path


def test_the_transform_is_scipys() -> None:
    values = torch.randn(3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        cosine_transform(values), torch.from_numpy(fft.dctn(values.numpy(), axes=(1, 2), norm="ortho"))
    )


def test_constant_checkerboard_and_noise_by_hand() -> None:
    board = 1.0 - 2.0 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)
    constant, board = torch.full((1, 2, 1, 8, 8), 3.0), board.expand(1, 2, 1, 8, 8)
    assert upper_share(power(constant)) == pytest.approx(0.0, abs=1e-12)
    assert power(constant)[0, 0].item() == pytest.approx(9 * 64), "the transform keeps power"
    assert upper_share(power(board)) > 0.9
    assert by_band(power(board), 4)[3] > 100 * by_band(power(board), 4)[0]
    # 2 x 2 cells: the mean, two radii of sqrt(1/8) = 0.35, and one of 0.5. None lies above half.
    assert frequency(2, 2).flatten().tolist() == pytest.approx([0.0, 0.125**0.5, 0.125**0.5, 0.5])
    torch.manual_seed(0)
    noise = power(torch.randn(64, 4, 2, 8, 8))
    white = (frequency(8, 8) > 0.5).float().mean().item()
    assert upper_share(noise) == pytest.approx(white, rel=0.05)
    assert by_band(noise, 4) == pytest.approx([1.0] * 4, rel=0.1)


def test_the_step_compares_two_vaes_and_the_report_draws_both(tmp_path: Path) -> None:
    step, bundle = part("evaluate", "spectrum", bands=4), tiny_bundle(tmp_path / "base")
    context = tiny_context(tmp_path / "step", data=drawn(9, (64, 64), 6), input=bundle, against=bundle)
    found = step.run(context).metrics
    assert found["upper_share"] == found["against_upper_share"]
    assert 0 < found["upper_share"] < found["white_upper_share"], "smooth clips"
    assert found["latent_power"]["frequency"] == [0.125, 0.375, 0.625, 0.875]
    assert found["latent_power"]["own"] == found["latent_power"]["against"]
    assert found["latent_power"]["own"][0] > found["latent_power"]["own"][2] > 0
    picture = spectrum_picture(
        Step(
            "look",
            "evaluate",
            "spectrum",
            {},
            {"input": "tuned", "against": "plain"},
            {},
            found,
            None,
            {},
            1.0,
            None,
            None,
        )
    )
    assert picture is not None
    assert all(name in picture for name in ("<svg", "tuned", "plain", "above half"))
    assert spectrum_picture(Step("x", "evaluate", "psnr", {}, {}, {}, {}, None, {}, 1.0, None, None)) is None


def test_one_cell_has_no_spectrum(tmp_path: Path) -> None:
    spec: Spec = tiny_bundle(tmp_path).spec
    step = part("evaluate", "spectrum")
    with pytest.raises(UserError, match="latents of 1x2 cells have no spectrum"):
        step.plan(Spec(video=(9, 16, 32), latent=spec.latent))
    assert step.plan(spec) == spec
