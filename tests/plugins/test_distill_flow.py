"""Flow matching: Eq. 2 on a batch, the sigmas, caption dropout, who trains the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.model.flow import Flow
from dit_compress.model.spec import Spec
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.distill import text_lr
from dit_compress_plugins.distill_flow import FlowOptions
from dit_compress_plugins.distill_flow.distiller import FlowObjective

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


def objective(text_rate: float | None = None, **options: Any) -> FlowObjective:
    return FlowObjective(FlowOptions(**options), tiny_denoiser("video_dit"), words(), text_rate)


def answer(value: Tensor | None) -> nn.Module:
    """A student that says ``value`` (or zero), and remembers what it was asked."""

    class Student(torch.nn.Module):
        seen: dict[str, Any]

        def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
            self.seen = {"x": x, "sigma": sigma_B, "cond": cond}
            return torch.zeros_like(x) if value is None else value

    return Student()


def test_the_loss_of_a_student_that_says_zero_is_the_velocitys_mean_square() -> None:
    made = objective()
    made.student = answer(None)
    given = batch(made.text)
    noise = given.streams.normal("noise", given.x0.shape[1:])
    assert float(made.loss(made.phases[0], given)["loss"]) == pytest.approx(float((noise - given.x0).square().mean()))


def test_the_loss_of_a_perfect_student_is_zero() -> None:
    made = objective()
    given = batch(made.text)
    made.student = answer(given.streams.normal("noise", given.x0.shape[1:]) - given.x0)
    assert float(made.loss(made.phases[0], given)["loss"]) == 0.0


def test_the_student_sees_eq_1_at_the_warped_sigma() -> None:
    made = objective(sigma="uniform", shift=5.0)
    made.student = answer(None)
    given = batch(made.text)
    made.loss(made.phases[0], given)
    u = given.streams.uniform("sigma")
    torch.testing.assert_close(made.student.seen["sigma"], 5 * u / (1 + 4 * u))
    x = flow.interpolate(given.x0, given.streams.normal("noise", given.x0.shape[1:]), 5 * u / (1 + 4 * u))
    torch.testing.assert_close(made.student.seen["x"], x)


def test_logit_normal_sigmas_gather_in_the_middle() -> None:
    """At shift 1: median 1/2, and the quartiles of a normal, ±0.6745, become 0.3375 and 0.6625."""
    made = objective(shift=1.0)
    sigma = made.noise(batch(made.text, size=400))[0]
    quartiles = torch.quantile(sigma, torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert quartiles == pytest.approx([0.3375, 0.5, 0.6625], abs=0.05)


def test_the_logit_of_a_sigma_has_the_moments_asked_for() -> None:
    """Mean -1, deviation 1/2 at shift 1: the same normal draws, moved; uniform places have no logit."""
    made, plain = objective(shift=1.0, sigma_mean=-1.0, sigma_std=0.5), objective(shift=1.0)
    given = batch(made.text, size=50)
    logit, drawn = torch.logit(made.noise(given)[0]), torch.logit(plain.noise(given)[0])
    torch.testing.assert_close(logit, -1 + drawn / 2, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="'sigma_mean' belongs to 'sigma: logit_normal': leave out"):
        FlowOptions(sigma="uniform", sigma_mean=-1.0)


def test_a_share_of_captions_is_dropped() -> None:
    made = objective(caption_dropout=0.3)
    made.student = answer(None)
    given = batch(made.text, size=200)
    made.loss(made.phases[0], given)
    embedding, null = made.student.seen["cond"]["embedding"], made.text.null()["embedding"]
    dropped = (embedding == null).flatten(1).all(dim=1)
    assert int(dropped.sum()) == pytest.approx(60, abs=20)
    assert dropped.tolist() == (given.streams.uniform("dropout") < 0.3).tolist()


def test_student_and_text_get_gradients_while_both_are_trained() -> None:
    made = objective(1e-3)
    assert made.phases[0].updates == ("student", "text")
    made.loss(made.phases[0], batch(made.text))["loss"].backward()
    silent = [
        key
        for role in ("student", "text")
        for key, value in made.roles[role].module.named_parameters()
        if value.grad is None or not value.grad.any()
    ]
    assert silent == []


def test_a_frozen_text_gets_none() -> None:
    made = objective(None)
    assert (made.phases[0].updates, made.roles["text"].lr) == (("student",), None)
    made.loss(made.phases[0], batch(made.text))["loss"].backward()
    assert all(parameter.grad is None for parameter in made.text.parameters())


def test_the_text_is_trained_in_the_first_training_step_only(tmp_path: Path) -> None:
    fresh = context_in(tmp_path, input=tiny_bundle(tmp_path / "fresh", lineage=[{"kind": "latent"}]))
    old = context_in(tmp_path, input=tiny_bundle(tmp_path / "old", lineage=[{"kind": "distill"}]))
    assert text_lr(fresh, FlowOptions(lr=1e-3)) == 1e-3
    assert text_lr(old, FlowOptions(lr=1e-3)) is None


def test_the_result_is_sampled_by_the_schedule_it_was_trained_with() -> None:
    step = part("distill", "flow", shift=5.0, sampling_steps=7, guidance=2.0)
    assert step.flow(Flow()) == Flow(5.0, 7, 2.0)


def test_it_needs_a_denoiser_and_a_vae() -> None:
    with pytest.raises(UserError, match="the bundle has no denoiser. Name a 'model' in the recipe"):
        part("distill", "flow").plan(Spec())
