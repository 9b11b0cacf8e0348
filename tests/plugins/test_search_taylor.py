"""Taylor importance: derivatives against finite differences and weights, planted useless units, repeatable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from planted import USELESS_BLOCK, USELESS_CHANNELS, USELESS_HEADS, latents_in, planted, problem_of, search

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.importance import taylor
from dit_compress.search.trial import Trial, trial
from dit_compress.structure.masks import masked
from dit_compress.testing.models import MODELS, tiny_denoiser

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def test_importance_by_hand() -> None:
    """Derivatives 3 and -3 would cancel in a sum; their root mean square is 3. Of 1 and 7 it is 5."""
    assert taylor(torch.tensor([[3.0, 1.0, 0.0], [-3.0, 7.0, 0.0]])).tolist() == [3.0, 5.0, 0.0]


def mean_slopes(measured: Trial) -> dict[str, Tensor]:
    return {name: slopes.mean(dim=0) for name, slopes in measured.gradients().items()}


@pytest.mark.parametrize("name", MODELS)
def test_slopes_are_those_of_finite_differences(name: str, tmp_path: Path) -> None:
    """Of the loss that the searches minimise, at masks of ones. LTX and Wan compute parts in float32 whatever is asked."""
    problem = problem_of(tiny_denoiser(name))
    options = make_part("search", {"use": "taylor", "batches": 2, "batch": 3}, installed()).options
    with trial(problem, latents_in(tmp_path), options.objective, options) as measured:
        for role in measured.objective.roles.values():
            role.module.double()
        for batch in measured.batches:
            batch.x0 = batch.x0.double()
            batch.tokens = {k: v.double() if v.is_floating_point() else v for k, v in batch.tokens.items()}
        measured._like = next(measured.module.parameters())
        slopes = mean_slopes(measured)
        for axis in (problem.axes[0], problem.axes[1], problem.axes[-1]):
            found = []
            for step in (1e-2, -1e-2):
                mask = torch.ones(axis.units, dtype=torch.float64)
                mask[1] += step
                with torch.no_grad(), masked(measured.module, problem.axes, {axis.name: mask}):
                    found.append(sum(float(measured._loss(batch)) for batch in measured.batches) / 2)
            assert float(slopes[axis.name][1]) == pytest.approx((found[0] - found[1]) / 2e-2, rel=5e-3, abs=1e-6)


def test_a_channels_slope_is_the_sum_of_weight_times_gradient(tmp_path: Path) -> None:
    """``∂L/∂m_u = Σ_k w_ku ∂L/∂w_ku`` over the down projection's column: what Torch-Pruning's Taylor sums, too."""
    problem = problem_of(tiny_denoiser("video_dit"))
    options = make_part("search", {"use": "taylor", "batches": 2, "batch": 4}, installed()).options
    with trial(problem, latents_in(tmp_path), options.objective, options) as measured:
        slopes = mean_slopes(measured)
        weight = measured.module.get_parameter("transformer_blocks.1.ff.net.2.weight").requires_grad_()
        gradients = [torch.autograd.grad(measured._loss(batch), weight)[0] for batch in measured.batches]
        expected = (torch.stack(gradients).mean(dim=0) * weight).sum(dim=0).detach()
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(slopes["ffn:transformer_blocks.1.ff"], expected, rtol=1e-3, atol=1e-7)


def test_planted_useless_units_go(tmp_path: Path) -> None:
    problem = problem_of(planted())
    before = {key: value.clone() for key, value in problem.denoiser.state_dict().items()}
    selection = search_flow(tmp_path, problem)
    kept = selection.kept
    assert kept["block:transformer_blocks"] == tuple(index for index in range(3) if index != USELESS_BLOCK)
    for index, head in USELESS_HEADS.items():
        for attention in ("attn1", "attn2"):
            assert kept[f"head:transformer_blocks.{index}.{attention}"] == tuple(h for h in range(4) if h != head)
        assert set(range(64)) - set(kept[f"ffn:transformer_blocks.{index}.ff"]) == set(USELESS_CHANNELS[index])
    assert all(torch.equal(value, before[key]) for key, value in problem.denoiser.state_dict().items())
    assert not any(parameter.requires_grad for parameter in problem.denoiser.parameters())


def search_flow(folder: Path, problem):
    """With the default objective: at the copying one, the whole model's derivatives are zero."""
    part = make_part("search", {"use": "taylor", "batches": 2, "batch": 4}, installed())
    assert part.options.objective.name == "flow"
    return part.build().search(problem, latents_in(folder))


def test_equal_seeds_give_equal_scores(tmp_path: Path) -> None:
    first, second = (search_flow(tmp_path / name, problem_of(planted())) for name in "ab")
    assert first.kept == second.kept
    assert first.history == second.history


def test_the_copying_objective_has_no_slope(tmp_path: Path) -> None:
    """A model that is its own teacher stands at a minimum: every derivative is zero, and ties go to the first."""
    selection = search(tmp_path, problem_of(tiny_denoiser("video_dit")), "taylor", batches=1)
    assert max(max(map(abs, scores)) for scores in selection.history["scores"].values()) < 1e-6


def test_a_share_of_kd_is_refused_where_nothing_trains(tmp_path: Path) -> None:
    """Nothing would turn the share into a weight, and the loss would be the flow's alone; ``alpha`` is a weight."""
    problem, context = problem_of(tiny_denoiser("video_dit")), latents_in(tmp_path)
    for given in ({"kd_share": 0.3}, {"alpha": 0.3}):
        objective = {"use": "affine", **given}
        made = make_part("search", {"use": "taylor", "batches": 1, "batch": 2, "objective": objective}, installed())
        if "alpha" in given:
            assert made.build().search(problem, context).kept.keys() == {axis.name for axis in problem.axes}
            continue
        with pytest.raises(UserError, match="this search trains nothing. Give 'alpha' in the search's 'objective'"):
            made.build().search(problem, context)
