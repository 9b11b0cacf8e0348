"""One convention, one schedule, one sampler: values worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dit_compress.model.denoiser import Cond
from dit_compress.model.flow import Flow, euler, expand, guided, interpolate, jump, predict_x0, velocity

SHAPE = (2, 3, 2, 1, 1)


def latent(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def caption(*values: float) -> Cond:
    return Cond({"word": torch.tensor(values)}, {"word": torch.zeros(1)})


class Recorder:
    """A denoiser whose velocity is the caption's number; notes every call."""

    def __init__(self) -> None:
        self.sigmas: list[Tensor] = []

    def __call__(self, x: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        self.sigmas.append(sigma_B)
        return expand(cond["word"], x).expand_as(x)


@pytest.mark.parametrize(
    ("shift", "sigmas"),
    [
        (1.0, (1, 3 / 4, 1 / 2, 1 / 4, 0)),
        (3.0, (1, 9 / 10, 3 / 4, 1 / 2, 0)),
        (5.0, (1, 15 / 16, 5 / 6, 5 / 8, 0)),
    ],
)
def test_four_steps_of_the_schedule(shift: float, sigmas: tuple[float, ...]) -> None:
    assert Flow(shift).sigmas(4) == pytest.approx(sigmas, abs=1e-12)


def test_the_schedule_goes_from_one_to_zero_in_as_many_steps_as_the_bundle_says() -> None:
    sigmas = Flow(shift=3.0, num_steps=40).sigmas()
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (41, 1.0, 0.0)
    assert all(later < now for now, later in zip(sigmas, sigmas[1:], strict=False))


def test_training_and_sampling_share_one_warp() -> None:
    flow = Flow(5.0)
    u = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert flow.warp(u).tolist() == pytest.approx(list(flow.sigmas(4)), abs=1e-12)


def test_settings_survive_bundle_json() -> None:
    flow = Flow(5.0, 4, 1.0)
    data = flow.as_data()
    assert data == {"shift": 5.0, "num_steps": 4, "guidance": 1.0, "sigmas": list(flow.sigmas(4))}
    assert Flow.from_data(data) == flow


def test_interpolation_and_velocity_by_hand() -> None:
    x0, noise = torch.full((2, 1, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1, 1), 10.0)
    sigma = torch.tensor([0.25, 1.0])
    assert interpolate(x0, noise, sigma).flatten().tolist() == [4.0, 10.0]
    assert velocity(x0, noise).flatten().tolist() == [8.0, 8.0]


def test_a_sigma_per_frame_acts_along_time() -> None:
    x0, noise = torch.zeros(1, 2, 3, 1, 1), torch.ones(1, 2, 3, 1, 1)
    mixed = interpolate(x0, noise, torch.tensor([[0.0, 0.5, 1.0]]))
    assert mixed[0, :, :, 0, 0].tolist() == [[0.0, 0.5, 1.0]] * 2


def test_x0_and_any_noisier_or_cleaner_point_follow_from_the_true_velocity() -> None:
    x0, noise = latent(0), latent(1)
    now, then = torch.tensor([0.9, 0.4], dtype=torch.float64), torch.tensor([0.3, 0.0], dtype=torch.float64)
    x, v = interpolate(x0, noise, now), velocity(x0, noise)
    torch.testing.assert_close(predict_x0(x, v, now), x0)
    torch.testing.assert_close(jump(x, v, now, then), interpolate(x0, noise, then))


@pytest.mark.parametrize("num_steps", [1, 4, 40])
def test_euler_is_exact_on_a_straight_line(num_steps: int) -> None:
    x0, noise = latent(0), latent(1)

    def straight(x: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        return (x - x0) / expand(sigma_B, x)

    found = euler(straight, noise, caption(0, 0), Flow(5.0).sigmas(num_steps))
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-12)


def test_euler_on_an_exponential_field_by_hand() -> None:
    """dx/dsigma = x: every step from s to s' multiplies by 1 + s' - s, here 3/4 · 3/4 · 1/2."""
    noise = latent(1)
    found = euler(lambda x, sigma, cond: x, noise, caption(0, 0), (1.0, 0.75, 0.5, 0.0))
    torch.testing.assert_close(found, noise * 9 / 32)


def test_euler_is_differentiable_to_the_noise() -> None:
    noise = latent(1).requires_grad_()
    euler(lambda x, sigma, cond: x, noise, caption(0, 0), (1.0, 0.5, 0.0)).sum().backward()
    assert noise.grad is not None
    torch.testing.assert_close(noise.grad, torch.full(SHAPE, 0.25, dtype=torch.float64))


def test_euler_calls_at_every_sigma_but_the_last() -> None:
    denoiser = Recorder()
    euler(denoiser, latent(0), caption(0, 0), (1.0, 0.75, 0.0))
    assert [sigma.tolist() for sigma in denoiser.sigmas] == [[1.0, 1.0], [0.75, 0.75]]


def test_guidance_is_one_doubled_batch() -> None:
    """With text 1 and 2, without 0: at guidance 3 the velocity is 0 + 3·(text - 0)."""
    denoiser, sigma = Recorder(), torch.tensor([0.5, 0.5])
    found = guided(denoiser, torch.zeros(SHAPE), sigma, caption(1, 2), 3.0)
    assert [len(sigma) for sigma in denoiser.sigmas] == [4]
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [3.0, 6.0]


def test_no_guidance_is_one_plain_call() -> None:
    denoiser, sigma = Recorder(), torch.tensor([0.5, 0.5])
    found = guided(denoiser, torch.zeros(SHAPE), sigma, caption(1, 2), 1.0)
    assert [len(sigma) for sigma in denoiser.sigmas] == [2]
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [1.0, 2.0]


def test_a_dropped_caption_is_the_null_one() -> None:
    cond = Cond({"word": torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, {"word": torch.tensor([[7.0, 8.0]])})
    assert cond.drop(torch.tensor([False, True]))["word"].tolist() == [[1.0, 1.0], [7.0, 8.0]]
