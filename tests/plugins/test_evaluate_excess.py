"""Exact velocities by hand, by quadrature and by the score; the excess of known predictors; a whole small run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from command import finish, start
from toy import part, words

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.data.clips import Clip
from dit_compress.data.samples import Samples
from dit_compress.measure.mixture import Mixture
from dit_compress.plugin.registry import installed
from dit_compress_plugins.evaluate_excess.mixture import constant, exact, linear
from dit_compress_plugins.evaluate_excess.step import summarise, velocities

if TYPE_CHECKING:
    from torch import Tensor

RECIPE = Path(__file__).parents[1] / "recipes" / "mixture.yaml"
SPREAD = 0.4
SIGMAS = (0.02, 0.3, 0.7, 1.0)


def modes(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------ closed forms


def test_one_mode_by_hand() -> None:
    """Mean 3, spread 2, sigma 1/2: x is N(1.5, 1 + 1/4), E[noise | x] = 0.5/1.25·(x - 1.5), E[x0 | x] = 3 + 2/1.25·(x - 1.5)."""
    x, mean = torch.tensor([[1.5], [2.75]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    assert exact(x, 0.5, mean, 2.0).flatten().tolist() == pytest.approx([-3.0, 0.5 - (3.0 + 2.0)])
    assert linear(x, 0.5, mean, 2.0).flatten().tolist() == pytest.approx([-3.0, -4.5])
    assert constant(x, mean).flatten().tolist() == [-3.0, -3.0]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_one_mode_is_linear_in_any_number_of_dimensions(sigma: float) -> None:
    x, mean = modes(7, 5, 1), modes(1, 5)
    torch.testing.assert_close(exact(x, sigma, mean, SPREAD), linear(x, sigma, mean, SPREAD))


def test_the_ends() -> None:
    """At sigma 1 x is noise alone, at 0 it is x0."""
    x, means = modes(7, 5, 1), modes(6, 5)
    torch.testing.assert_close(exact(x, 1.0, means, SPREAD), x - means.mean(0))
    torch.testing.assert_close(exact(x, 0.0, means, SPREAD), -x)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_many_modes_by_quadrature(sigma: float) -> None:
    """In one dimension: E[noise - x0 | x] as a quotient of sums over a fine grid of x0."""
    means, clean = modes(5, 1), 1 - sigma
    x0 = np.linspace(-8, 8, 200_001)
    prior = sum(np.exp(-((x0 - mean) ** 2) / (2 * SPREAD**2)) for mean in means.flatten().tolist())
    for x in (-2.0, -0.3, 0.1, 1.7):
        noise = (x - clean * x0) / sigma
        weight = prior * np.exp(-(noise**2) / 2)
        expected = float(np.sum(weight * (noise - x0)) / np.sum(weight))
        found = exact(torch.tensor([[x]], dtype=torch.float64), sigma, means, SPREAD)
        assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_many_modes_by_the_score(sigma: float) -> None:
    """E[noise | x] = -sigma·∇ log p(x), and x0 = (x - sigma·noise)/(1 - sigma); the density by autograd."""
    means, clean, x = modes(9, 6), 1 - sigma, modes(4, 6, 1).requires_grad_()
    variance = (clean * SPREAD) ** 2 + sigma**2
    squares = (x[:, None] - clean * means).square().sum(-1)
    (score,) = torch.autograd.grad(torch.logsumexp(-squares / (2 * variance), 1).sum(), x)
    noise = -sigma * score
    found = exact(x.detach(), sigma, means, SPREAD)
    if clean:
        torch.testing.assert_close(found, noise - (x.detach() - sigma * noise) / clean)
    else:
        torch.testing.assert_close(found, noise - means.mean(0))


def test_each_sample_has_its_own_modes() -> None:
    x, means = modes(3, 5, 1), modes(6, 5).reshape(3, 2, 5)
    each = torch.cat([exact(x[i : i + 1], 0.4, means[i], SPREAD) for i in range(3)])
    torch.testing.assert_close(exact(x, 0.4, means, SPREAD), each)


def test_the_best_affine_denoiser_is_least_squares() -> None:
    """Against a regression of the drawn velocity on x over many draws."""
    rng, means, sigma = torch.Generator().manual_seed(0), modes(4, 3), 0.6
    count = 400_000
    x0 = means[torch.randint(4, (count,), generator=rng)]
    x0 = x0 + SPREAD * torch.randn(count, 3, generator=rng, dtype=torch.float64)
    noise = torch.randn(count, 3, generator=rng, dtype=torch.float64)
    x = (1 - sigma) * x0 + sigma * noise
    with_one = torch.cat([x, torch.ones(count, 1, dtype=torch.float64)], 1)
    fit = torch.linalg.lstsq(with_one, noise - x0).solution
    torch.testing.assert_close(linear(x[:9], sigma, means, SPREAD), with_one[:9] @ fit, atol=0.02, rtol=0)


# ------------------------------------------------------------------ the step's figures


class Known(torch.nn.Module):
    """A predictor of one of the known velocities, which knows the truth of samples 0 … N-1."""

    def __init__(self, truth: Mixture, name: str) -> None:
        super().__init__()
        self.truth, self.name = truth, name

    def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
        found = velocities(self.truth, x.double().flatten(1), float(sigma_B[0]), range(len(x)))[self.name]
        return found.float().reshape(x.shape)


def world(**more: Any) -> tuple[Mixture, Samples]:
    options = {"values": [3, 2], "modes": 3, "channels": 4, "num_test": 2000, **more}
    data = part("data", "mixture", **options)
    clips, x0 = data.clips(Path(), "test"), data.encoded(Path(), "test", "")
    text = words()
    captions = [clip.caption for clip in clips]
    return Mixture.of(clips), Samples(x0, captions, text.encoder.tokenize(captions), pixels=False)


def figures(name: str, sigmas: tuple[float, ...] = (0.1, 0.5, 0.9)) -> dict[str, Any]:
    truth, samples = world()
    step, predictor = part("evaluate", "excess"), Known(truth, name)
    rows = [
        step.distances(predictor, truth, samples, None, place, sigma, range(2000)) for place, sigma in enumerate(sigmas)
    ]
    return summarise(sigmas, rows)


def test_the_exact_predictor_has_no_excess() -> None:
    found = figures("exact")
    assert found["excess"] == pytest.approx(0, abs=1e-10)
    assert found["loss"] == pytest.approx(found["irreducible"], rel=1e-5)
    assert found["explained"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["caption_blind", "linear", "chance"])
def test_a_floor_is_the_excess_of_that_predictor(name: str) -> None:
    found = figures(name)
    assert found["excess"] == pytest.approx(found[f"{name}_excess"], rel=1e-5)
    assert found["excess"] > 0.01


def test_the_loss_is_the_irreducible_and_the_excess() -> None:
    """Within the sampling error of the product of both, whose mean is 0: 2000 draws of 16 numbers at 3 levels."""
    found = figures("linear")
    error = 2 * math.sqrt(found["excess"] * found["irreducible"] / (2000 * 16 * 3))
    assert abs(found["loss"] - found["irreducible"] - found["excess"]) < 4 * error
    assert error < 0.01


def test_who_knows_less_has_more_excess() -> None:
    found = figures("exact")
    assert 0 < found["caption_blind_excess"] < found["linear_excess"] < found["chance_excess"]


def test_figures_are_means_over_the_levels() -> None:
    rows = [{"excess": 1.0, "loss": 2.0, "chance_excess": 4.0}, {"excess": 2.0, "loss": 4.0, "chance_excess": 2.0}]
    found = summarise([0.2, 0.8], [{name: torch.tensor([value]) for name, value in row.items()} for row in rows])
    assert (found["excess"], found["loss"], found["explained"]) == (1.5, 3.0, 0.5)
    assert "excess_error" not in found, "of one draw"
    assert found["by_sigma"] == {
        "sigma": [0.2, 0.8], "excess": [1.0, 2.0], "loss": [2.0, 4.0], "chance_excess": [4.0, 2.0]
    }  # fmt: skip


def test_errors_are_over_draws_and_floors_are_what_others_explain() -> None:
    """Draws of excess 1 and 3 beside 4 and 4 of the mean velocity: 2 ± 1, half explained ± 1/4."""
    row = {
        "excess": [1.0, 3.0],
        "linear_excess": [1.0, 1.0],
        "caption_blind_excess": [0.4, 0.4],
        "chance_excess": [4.0, 4.0],
    }
    found = summarise([0.5, 0.6], [{name: torch.tensor(value) for name, value in row.items()}] * 2)
    assert (found["excess"], found["excess_error"]) == (2.0, pytest.approx(1.0))
    assert (found["explained"], found["explained_error"]) == (0.5, pytest.approx(0.25))
    assert found["floors"] == {"mean_velocity": 0.0, "linear": 0.75, "caption_blind": pytest.approx(0.9)}


def test_data_of_another_world_is_refused() -> None:
    with pytest.raises(UserError, match="the mixture that this data was drawn from is not known"):
        Mixture.of([Clip(Path("a.mp4"), "a red circle", {"background": "grey"})])


def test_lower_is_better_and_more_is_explained() -> None:
    plugin = installed().get("evaluate", "excess")
    assert (plugin.headline, plugin.quality, plugin.data) == ("excess", "explained", True)


# ------------------------------------------------------------------ a whole run


@pytest.mark.slow(10)
def test_train_prune_heal_and_measure(tmp_path: Path) -> None:
    """The recipe's teacher is better than any constant, pruning costs, healing with KD gives back."""
    done = finish(start("run", RECIPE, "--out", tmp_path / "run", "--threads", "1", log=tmp_path / "log"))
    assert done.status == 0, done.printed
    found = {
        name: read_json(tmp_path / "run" / "steps" / f"{name}-excess" / "step.json")["metrics"]
        for name in ("teacher", "pruned", "student")
    }
    assert len({figures["irreducible"] for figures in found.values()}) == 1, "equal draws for all"
    excess = {name: figures["excess"] for name, figures in found.items()}
    assert excess["student"] < excess["pruned"] < found["pruned"]["chance_excess"]
    assert excess["teacher"] < excess["pruned"]
    for figures in found.values():
        assert figures["loss"] == pytest.approx(figures["irreducible"] + figures["excess"], abs=0.06)
        assert len(figures["by_sigma"]["excess"]) == 8
    drawn = read_json(tmp_path / "run" / "steps" / "student-samples" / "step.json")["metrics"]
    assert drawn["samples"] == 4 * 32
    assert drawn["floor_sliced_wasserstein"] < drawn["sliced_wasserstein"] < drawn["chance_sliced_wasserstein"]
    assert 0 < drawn["explained"] < 1
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "kd share" in page
