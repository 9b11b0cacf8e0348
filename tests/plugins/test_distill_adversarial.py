"""Adversarial distillation: the grid of Eq. 7, both losses, who gets a gradient, what never changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import batch, context_in, part, words

from dit_compress import flow
from dit_compress.encode import Samples
from dit_compress.flow import Flow
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress.train.loop import fit
from dit_compress.train.objective import Batch, Phase
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.distiller import AdversarialObjective
from dit_compress_plugins.distill_adversarial.pairs import TeacherPairs

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

GRID = [1.0, 0.9, 0.75, 0.5, 0.0]
"""Four steps at shift 3."""


def objective(name: str = "video_dit", pairs: TeacherPairs | None = None, **options: Any) -> AdversarialObjective:
    given = AdversarialOptions(**{"lr": 1e-2, "discriminator_lr": 1e-2, "discriminator_warmup": 0, **options})
    student = tiny_denoiser(name)
    judge = part("discriminator", "dit_block", frozen_blocks=1, learnable_blocks=1).create(student)
    return AdversarialObjective(given, student, judge, words(), Flow(3.0, 4, 1.0), pairs)


def drawn(grid: str) -> set[tuple[float, float]]:
    made = objective(grid=grid)
    t, then = made.times(batch(made.text, size=300))
    return {(round(a, 4), round(b, 4)) for a, b in zip(t.tolist(), then.tolist(), strict=True)}


def test_every_jump_of_the_grid_is_trained_the_last_one_included() -> None:
    assert drawn("with_zero") == {(a, b) for a in GRID[:-1] for b in GRID if b < a}


def test_the_literal_grid_never_jumps_to_zero_nor_from_the_last_sigma() -> None:
    assert drawn("literal") == {(a, b) for a in GRID[:-2] for b in GRID[:-1] if b < a}


def test_one_sampling_step_jumps_from_noise_to_data() -> None:
    made = objective(sampling_steps=1)
    single = AdversarialObjective(made.options, made.student, made.judge, made.text, Flow(3.0, 1, 1.0), None)
    t, then = single.times(batch(made.text))
    assert (t.tolist(), then.tolist()) == ([1.0] * 4, [0.0] * 4)


class Oracle(torch.nn.Module):
    """A generator that knows the answer, and notes who asked."""

    def __init__(self, made: AdversarialObjective, given: Batch) -> None:
        super().__init__()
        self.answer = given.streams.normal("noise", given.x0.shape[1:]) - given.x0

    def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
        return self.answer


def recording(judge: nn.Module) -> list[tuple[Tensor, Tensor]]:
    seen: list[tuple[Tensor, Tensor]] = []
    judge.register_forward_pre_hook(lambda _, args: seen.append((args[0].detach(), args[1])))
    return seen


def test_a_perfect_generators_samples_are_the_data_noised_to_t_next() -> None:
    """Eq. 7: both are judged at t', and are equal, so the reconstruction loss is zero and nobody is told apart."""
    made = objective()
    given = batch(made.text)
    made.student = Oracle(made, given)
    seen = recording(made.judge)
    losses = made.loss(Phase("discriminator", ()), given)
    (real, real_t), (fake, fake_t) = seen
    torch.testing.assert_close(fake, real)
    _, then = made.times(given)
    assert torch.equal(real_t, then)
    assert torch.equal(fake_t, then)
    noise = given.streams.normal("noise", given.x0.shape[1:])
    torch.testing.assert_close(real, flow.interpolate(given.x0, noise, then))
    assert float(losses["accuracy"]) == pytest.approx(0.5, abs=1e-6)
    assert float(made.loss(Phase("generator", ()), given)["reconstruction_loss"].detach()) == pytest.approx(0, abs=1e-6)


def test_the_generators_loss_is_the_weighted_sum() -> None:
    made = objective(adversarial_weight=0.5, reconstruction_weight=3.0)
    losses = {name: float(value.detach()) for name, value in made.loss(made.phases[1], batch(made.text)).items()}
    assert losses["loss"] == pytest.approx(
        3 * losses["reconstruction_loss"] + 0.5 * losses["adversarial_loss"], rel=1e-5
    )


def gradients(module: nn.Module) -> set[str]:
    return {key for key, value in module.named_parameters() if value.grad is not None and value.grad.any()}


def in_phase(made: AdversarialObjective, phase: Phase) -> None:
    """As the loop does: only the phase's roles require gradients."""
    moving = {id(p) for p in made.judge.parameters() if p.requires_grad} | {id(p) for p in made.student.parameters()}
    for name in ("student", "discriminator"):
        for parameter in made.roles[name].module.parameters():
            parameter.requires_grad_(name in phase.updates and id(parameter) in moving)
    made.loss(phase, batch(made.text))["loss"].backward()


@pytest.mark.parametrize("name", MODELS)
def test_in_the_discriminators_phase_no_gradient_reaches_the_generator(name: str) -> None:
    made = objective(name)
    in_phase(made, made.phases[0])
    assert gradients(made.student) == set()
    assert any(key.startswith("head.") for key in gradients(made.judge))


@pytest.mark.parametrize("name", MODELS)
def test_in_the_generators_phase_no_gradient_stays_in_the_discriminator(name: str) -> None:
    made = objective(name, reconstruction_weight=0.0)
    in_phase(made, made.phases[1])
    assert gradients(made.judge) == set()
    assert gradients(made.student) != set()


def samples(made: AdversarialObjective) -> Samples:
    given = batch(made.text, size=8)
    return Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize("name", MODELS)
def test_frozen_blocks_never_change_the_learnable_one_and_the_head_do(tmp_path: Path, name: str) -> None:
    made = objective(name, steps=2, batch=2, ema=0.0)
    judge, student = state(made.judge), state(made.student)
    fit(made, samples(made), made.options, context_in(tmp_path))
    stack = made.student.structure().main.path
    assert changed(made.judge, judge)
    assert all(key.startswith((f"trunk.module.{stack}.1.", "head.")) for key in changed(made.judge, judge))
    assert changed(made.student, student)


def test_while_the_discriminator_warms_up_the_generator_and_its_average_stay(tmp_path: Path) -> None:
    made = objective(steps=2, batch=2, discriminator_warmup=2, ema=0.95)
    student, judge = state(made.student), state(made.judge)
    fit(made, samples(made), made.options, context_in(tmp_path))
    assert changed(made.student, student) == set()
    assert changed(made.judge, judge) != set()


def test_the_average_moves_a_twentieth_of_the_way(tmp_path: Path) -> None:
    """One AdamW step moves every weight by the rate; an average of 0.95 by a twentieth of it."""
    made = objective(steps=1, batch=2, ema=0.95)
    before = made.student.module.proj_out.weight.clone()
    fit(made, samples(made), made.options, context_in(tmp_path))
    moved = (made.student.module.proj_out.weight - before).abs()
    assert float(moved.detach().median()) == pytest.approx(1e-2 / 20, rel=1e-3)


def test_teacher_pairs_replace_the_data() -> None:
    shape = (6, 8, 2, 2, 2)
    text = words()
    tokens = text.encoder.tokenize([f"a {word} circle" for word in ("red", "blue", "green", "white", "black", "pink")])
    pairs = TeacherPairs(torch.arange(6.0).reshape(6, 1, 1, 1, 1).expand(shape), torch.zeros(shape), tokens)
    made = objective(pairs=pairs)
    given = batch(made.text, size=8)
    x0, noise, _ = made.clean(given)
    assert x0.abs().max() == 0
    assert noise[:, 0, 0, 0, 0].tolist() == given.streams.integers("pair", 6).float().tolist()


def test_the_result_is_sampled_in_few_steps_without_guidance() -> None:
    assert part("distill", "adversarial").flow(Flow(5.0, 40, 4.0)) == Flow(5.0, 4, 1.0)


def test_the_papers_defaults() -> None:
    options = AdversarialOptions()
    assert (options.lr, options.discriminator_lr, options.ema, options.sampling_steps) == (1e-6, 1e-4, 0.95, 4)
    made = objective(lr=1e-6)
    assert {role.betas for role in made.roles.values()} == {(0.9, 0.999)}
