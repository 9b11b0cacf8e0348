"""The paper's losses, by hand."""

from __future__ import annotations

import pytest
import torch

from dit_compress.train.losses import (
    HUBERS,
    cosine_distance,
    flow_loss,
    hinge_discriminator,
    hinge_generator,
    per_sample,
    pseudo_huber_elements,
    pseudo_huber_mean,
    pseudo_huber_norm,
    r1_approximate,
    r1_exact,
    relative_squared_distance,
    squared_distance,
)


def test_per_sample_averages_everything_but_the_batch() -> None:
    assert per_sample(torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])).tolist() == [2.0, 6.0]


def test_flow_loss_is_the_mean_square() -> None:
    assert float(flow_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))) == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize(
    ("student", "distance"), [((2.0, 0.0), 0.0), ((0.0, 3.0), 1.0), ((-5.0, 0.0), 2.0), ((1.0, 1.0), 1 - 2**-0.5)]
)
def test_cosine_distance_sees_direction_only(student: tuple[float, float], distance: float) -> None:
    found = cosine_distance(torch.tensor([[student]]), torch.tensor([[[7.0, 0.0]]]))
    assert float(found) == pytest.approx(distance, abs=1e-6)


def test_cosine_distance_is_a_mean_over_tokens() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]])
    assert float(cosine_distance(student, torch.tensor([[[1.0, 0.0]] * 4]))) == pytest.approx((0 + 1 + 2 + 0) / 4)


def test_squared_distances_of_features() -> None:
    """Samples of mean squares 4 and 100, each off by 1: 1, and the mean of 1/4 and 1/100."""
    teacher = torch.tensor([[[2.0, -2.0]], [[10.0, 10.0]]])
    assert float(squared_distance(teacher + 1, teacher)) == pytest.approx(1)
    assert float(relative_squared_distance(teacher + 1, teacher)) == pytest.approx((1 / 4 + 1 / 100) / 2)
    assert float(relative_squared_distance(1000 * (teacher + 1), 1000 * teacher)) == pytest.approx(0.13)


def test_pseudo_huber_of_the_norm() -> None:
    """An error of norm 5 with c = 12: sqrt(25 + 144) - 12 = 1; a perfect sample gives 0."""
    predicted = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert float(pseudo_huber_norm(predicted, torch.zeros(2, 2), 12.0)) == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize(
    ("kind", "slopes"),
    [("norm", (3 / 5, -4 / 5)), ("mean", (0.6 / 2**0.5, -0.8 / 2**0.5)), ("elements", (0.5, -0.5))],
)
def test_the_slopes_of_pseudo_huber(kind: str, slopes: tuple[float, float]) -> None:
    """Beyond c: of the norm, d / ‖d‖, of length 1; of the mean of D = 2 that over sqrt(D); of elements their signs over D."""
    predicted = torch.tensor([[3.0, -4.0]], requires_grad=True)
    HUBERS[kind](predicted, torch.zeros(1, 2), 1e-5).backward()
    assert predicted.grad is not None
    assert predicted.grad[0].tolist() == pytest.approx(slopes, rel=1e-5)
    assert float(predicted.grad.norm()) == pytest.approx(1.0 if kind == "norm" else 2**-0.5, rel=1e-5)


def test_pseudo_huber_of_the_mean() -> None:
    """Errors 3 and 3 with c = 4: sqrt(9 + 16) - 4 = 1; a perfect sample gives 0."""
    predicted = torch.tensor([[3.0, -3.0], [0.0, 0.0]])
    assert float(pseudo_huber_mean(predicted, torch.zeros(2, 2), 4.0)) == pytest.approx((1 + 0) / 2)


def test_pseudo_huber_of_the_mean_is_a_deviation_when_c_is_small() -> None:
    predicted = torch.tensor([[3.0, -3.0]])
    assert float(pseudo_huber_mean(predicted, torch.zeros(1, 2), 1e-6)) == pytest.approx(3.0, rel=1e-5)


def test_hinge_of_the_discriminator() -> None:
    """Real: max(0, 1 - 2) = 0 and max(0, 1 + 0) = 1. Fake: max(0, 1 - 0) = 1 and max(0, 1 - 3) = 0."""
    found = hinge_discriminator(torch.tensor([-2.0, 0.0]), torch.tensor([0.0, 3.0]))
    assert float(found) == pytest.approx(0.5 + 0.5)


def test_the_discriminator_pushes_real_down_and_fake_up_until_the_margin() -> None:
    real, fake = torch.tensor([0.0, -2.0], requires_grad=True), torch.tensor([0.0, 2.0], requires_grad=True)
    hinge_discriminator(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.tolist() == [0.5, 0.0]
    assert fake.grad.tolist() == [-0.5, 0.0]


def test_the_generator_pushes_the_same_logits_down() -> None:
    fake = torch.tensor([3.0, -1.0], requires_grad=True)
    loss = hinge_generator(fake)
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert fake.grad is not None
    assert fake.grad.tolist() == [0.5, 0.5]


def test_pseudo_huber_of_elements() -> None:
    """Errors 3 and 0 with c = 4: (1 + 0) / 2; per sample it would be sqrt(4.5 + 16) - 4 = 0.53."""
    predicted = torch.tensor([[3.0, 0.0]])
    assert float(pseudo_huber_elements(predicted, torch.zeros(1, 2), 4.0)) == pytest.approx(0.5)


# ------------------------------------------------------------------ R1, on discriminators whose slope is known


def test_exact_r1_of_a_linear_discriminator_is_its_squared_norm() -> None:
    """D(x) = mean over two tokens of w·x: the slope is w/2 at each token, its square |w|²/4 twice."""
    weight = torch.tensor([3.0, 4.0])
    x = torch.randn(5, 2, 2, requires_grad=True)
    assert float(r1_exact(x @ weight, x).detach()) == pytest.approx(2 * 25 / 4)


def test_exact_r1_of_a_quadratic_discriminator_depends_on_the_sample() -> None:
    """D(x) = ½|x|²: the slope is x. Its derivative by x is the mean of 2x: the penalty can be trained."""
    x = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]], requires_grad=True)
    penalty = r1_exact(x.square().sum(-1) / 2, x)
    assert float(penalty.detach()) == pytest.approx((5 + 9) / 2)
    penalty.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, x.detach())


def test_approximate_r1_is_right_on_average_for_a_linear_discriminator() -> None:
    """Its expected value is |w|² at any scale."""
    torch.manual_seed(0)
    weight = torch.tensor([3.0, 4.0])
    x, noise = torch.randn(1, 1, 2).expand(40_000, 1, 2), torch.randn(40_000, 1, 2)
    for scale in (0.01, 1.0):
        found = r1_approximate(x @ weight, (x + scale * noise) @ weight, scale)
        assert float(found) == pytest.approx(25, rel=0.03)


def test_approximate_r1_of_a_constant_discriminator_is_zero() -> None:
    assert float(r1_approximate(torch.full((4, 3), 7.0), torch.full((4, 3), 7.0), 0.1)) == 0.0
