"""The spectrum of latents, by hand and against scipy; the step and its picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from scipy import fft
from toy import part

from dit_compress.core.errors import UserError
from dit_compress.model.codec.causal import config_of
from dit_compress.model.spec import Spec
from dit_compress.report.data import Step
from dit_compress.report.spectra import spectrum_picture
from dit_compress.testing.steps import drawn, tiny_bundle, tiny_context
from dit_compress_plugins.evaluate_spectrum.spectrum import by_band, cosine_transform, frequency, power, upper_share

if TYPE_CHECKING:
    from pathlib import Path


def alone(latent: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    """The power of latents that all have one size."""
    return [(1.0, power(latent))]


def test_the_transform_is_scipys() -> None:
    values = torch.randn(3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        cosine_transform(values), torch.from_numpy(fft.dctn(values.numpy(), axes=(1, 2), norm="ortho"))
    )


def test_constant_checkerboard_and_noise_by_hand() -> None:
    board = 1.0 - 2.0 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)
    constant, board = torch.full((1, 2, 1, 8, 8), 3.0), board.expand(1, 2, 1, 8, 8)
    assert upper_share(alone(constant)) == pytest.approx(0.0, abs=1e-12)
    assert power(constant)[0, 0].item() == pytest.approx(9 * 64), "the transform keeps power"
    assert upper_share(alone(board)) > 0.9
    assert by_band(alone(board), 4)[3] > 100 * by_band(alone(board), 4)[0]
    # 2 x 2 cells: the mean, two radii of sqrt(1/2) = 0.71, and 1; a checkerboard is the last alone.
    assert frequency(2, 2).flatten().tolist() == pytest.approx([0.0, 0.5**0.5, 0.5**0.5, 1.0])
    assert power(board[..., :2, :2]).flatten().tolist() == pytest.approx([0.0, 0.0, 0.0, 4.0], abs=1e-12)
    assert upper_share(alone(board[..., :2, :2])) == pytest.approx(1.0)
    # White noise has equal power everywhere. Above 0.5 of 3 x 3 are those with an axis at 1: (0.5, 0.5) is 0.5 itself.
    assert upper_share([(1.0, torch.ones(2, 2))]) == 0.75
    assert upper_share([(1.0, torch.ones(3, 3))]) == pytest.approx(5 / 9)
    torch.manual_seed(0)
    noise = power(torch.randn(64, 4, 2, 8, 8))
    white = (frequency(8, 8) > 0.5).float().mean().item()
    assert upper_share([(1.0, noise)]) == pytest.approx(white, rel=0.05)
    assert by_band([(1.0, noise)], 4) == pytest.approx([1.0] * 4, rel=0.1)


def test_the_step_compares_two_vaes_and_the_report_draws_both(tmp_path: Path) -> None:
    step, bundle = part("evaluate", "spectrum", bands=4), tiny_bundle(tmp_path / "base")
    codec: Any = bundle.codec()
    mean, std = codec.config["latent_mean"], codec.config["latent_std"]
    codec.set_statistics([value - 3 * much for value, much in zip(mean, std, strict=True)], std)
    spec = replace(bundle.spec, latent=replace(bundle.spec.need_latent(), config=config_of(codec)))
    lifted = tiny_context(tmp_path / "lifted", input=bundle).give({"latent": codec}, spec=spec).bundle
    assert lifted is not None
    context = tiny_context(tmp_path / "step", data=drawn(9, (64, 64), 6), input=bundle, against=lifted)
    found = step.run(context).metrics
    assert 0 < found["against_upper_share"] < found["upper_share"] / 2, "a constant is power at radius 0 alone"
    assert 0 < found["upper_share"] < found["white_upper_share"], "smooth clips"
    assert found["latent_power"]["frequency"] == [0.125, 0.375, 0.625, 0.875]
    own, against = (found["latent_power"][name] for name in ("own", "against"))
    assert against[1:] == pytest.approx(own[1:])
    assert against[0] > 2 * own[0]
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


def test_sizes_are_pooled_by_their_share_of_the_clips() -> None:
    """A quarter of the clips has 2x2 cells with power 4 at radius 1, the others 3x3 with power 2 at the mean alone."""
    fine, mean = torch.zeros(2, 2), torch.zeros(3, 3)
    fine[1, 1], mean[0, 0] = 4.0, 2.0
    sizes = [(0.25, fine), (0.75, mean)]
    assert upper_share(sizes) == pytest.approx(0.25 * 4 / (0.25 * 4 + 0.75 * 2))
    # Rings of 0 … 0.5 and 0.5 … 1; of 3x3 the mean and both at 0.35 are in the first, of 2x2 the mean.
    assert by_band(sizes, 2) == pytest.approx([0.75 * 2 / (0.25 + 3 * 0.75), 0.25 * 4 / (0.25 * 3 + 0.75 * 6)])
    assert by_band([(1.0, fine)], 8)[1:5] == [0.0] * 4
    assert upper_share([(1.0, torch.zeros(2, 2))]) == 0.0


def test_one_cell_has_no_spectrum(tmp_path: Path) -> None:
    spec: Spec = tiny_bundle(tmp_path).spec
    step = part("evaluate", "spectrum")
    with pytest.raises(UserError, match="latents of 1x2 cells have no spectrum"):
        step.plan(Spec(video=(9, 16, 32), latent=spec.latent))
    assert step.plan(spec) == spec
