"""Adversarial distillation: the grid of Eq. 7, both losses, who gets a gradient, what never changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from toy import CAPTIONS, SIZE, batch, context_in, part, words

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.model import flow
from dit_compress.model.flow import Flow, euler
from dit_compress.step.world import World
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress.train.loop import fit
from dit_compress.train.objective import Batch, Phase
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.distiller import AdversarialObjective, logits_and_leaf
from dit_compress_plugins.distill_adversarial.pairs import TeacherPairs, teacher_pairs

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
    """Until the generator's first phase, in the third step; then the average goes a twentieth of one step."""
    made = objective(steps=3, batch=2, discriminator_warmup=2, ema=0.95)
    student, judge = state(made.student), state(made.judge)
    inner, seen = made.loss, []

    def loss(phase: Phase, given: Batch) -> dict[str, Tensor]:
        if phase.name == "generator":
            seen.append((given.step, changed(made.student, student), bool(changed(made.judge, judge))))
        return inner(phase, given)

    made.loss = loss  # type: ignore[method-assign]
    fit(made, samples(made), made.options, context_in(tmp_path))
    assert seen == [(2, set(), True)]
    moved = (made.student.module.proj_out.weight - student["module.proj_out.weight"]).abs()
    assert float(moved.detach().median()) == pytest.approx(1e-2 / 20, rel=1e-3)


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


def test_a_validation_looks_at_pairs_of_held_out_captions(tmp_path: Path) -> None:
    """Those that the student trains on say nothing of what it learned; they are the same with and without."""
    made = objective()
    held_out = Samples(
        torch.zeros(3, 8, *SIZE).numpy(), CAPTIONS[1:4], made.text.encoder.tokenize(CAPTIONS[1:4]), pixels=False
    )
    context: Any = context_in(tmp_path)
    context.latents = lambda split, _: samples(made) if split == "train" else held_out
    context.bundles["input"] = SimpleNamespace(flow=Flow(3.0, 2, 1.0))
    context.latent_shape = lambda: (8, *SIZE)
    plain, looked = (
        teacher_pairs(context, AdversarialOptions(teacher_samples=5, teacher_steps=2, **more), made.student, made.text)
        for more in ({}, {"validation": {"samples": 2}})
        if not (tmp_path / "teacher.safetensors").unlink(missing_ok=True)
    )
    assert plain.held_out is None
    torch.testing.assert_close(plain.x0, looked.x0, rtol=1e-4, atol=1e-5)  # in batches of five and seven
    assert len(looked.x0) == 5
    validating = replace(batch(made.text), sample=[1, 0], held_out=True)
    x0, noise, cond = looked.draw(validating, made.text)
    assert torch.equal(x0, looked.held_out.x0[[1, 0]])
    assert torch.equal(cond["embedding"], made.text.cond([CAPTIONS[2], CAPTIONS[1]])["embedding"])
    with torch.no_grad():
        again = euler(made.student.eval(), noise, cond, Flow(3.0, 2, 1.0).sigmas(2))
    torch.testing.assert_close(x0, again, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ re-noising, R1


def test_renoising_judges_predicted_and_true_x0_at_one_logit_normal_sigma() -> None:
    """SF-V: a perfect generator's prediction is the data, so both are equal; noise is fresh, sigma the judge's own."""
    made = objective(renoise="logit_normal")
    given = batch(made.text)
    made.student = Oracle(made, given)
    seen = recording(made.judge)
    made.loss(Phase("discriminator", ()), given)
    (real, real_t), (fake, fake_t) = seen
    torch.testing.assert_close(fake, real, rtol=1e-4, atol=1e-5)
    assert torch.equal(real_t, fake_t)
    fresh = given.streams.normal("renoise", given.x0.shape[1:])
    torch.testing.assert_close(real, flow.interpolate(given.x0, fresh, real_t))
    assert not torch.equal(fresh, given.streams.normal("noise", given.x0.shape[1:]))


@pytest.mark.parametrize(("mean", "std"), [(-1.0, 1.0), (0.5, 0.25)])
def test_the_logit_of_sigma_has_the_mean_and_deviation_asked_for(mean: float, std: float) -> None:
    made = objective(renoise="logit_normal", renoise_mean=mean, renoise_std=std)
    sigma, _ = made.renoised(batch(made.text, size=2000))
    logit = torch.logit(sigma)
    assert float(logit.mean()) == pytest.approx(mean, abs=4 * std / 2000**0.5)
    assert float(logit.std()) == pytest.approx(std, rel=0.07)


class Linear(torch.nn.Module):
    """A discriminator whose slope is known: each of two tokens says ``weight · latent``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 64))
        self.sigmas: list[Tensor] = []

    def forward(self, latent: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
        self.sigmas.append(sigma_B)
        return (latent.flatten(1) @ self.weight)[:, None].expand(-1, 2)


@pytest.mark.parametrize(("kind", "error"), [("exact", 1e-5), ("approximate", 0.2)])
def test_r1_of_a_linear_discriminator_is_its_squared_norm(kind: str, error: float) -> None:
    made = objective(r1=0.5, r1_kind=kind, r1_scale=0.1)
    made.judge = Linear()
    given = batch(made.text, size=500)
    losses = made.loss(Phase("discriminator", ()), given)
    norm = float(made.judge.weight.detach().square().sum())
    assert float(losses["r1"].detach()) == pytest.approx(norm, rel=error)
    hinge = objective()
    hinge.judge = made.judge
    plain = float(hinge.loss(Phase("discriminator", ()), given)["loss"].detach())
    assert float(losses["loss"].detach()) == pytest.approx(plain + 0.25 * float(losses["r1"].detach()), rel=1e-5)
    assert all(torch.equal(sigma, made.judge.sigmas[0]) for sigma in made.judge.sigmas)


@pytest.mark.parametrize("name", MODELS)
def test_r1_is_by_the_stream_after_the_frozen_blocks(name: str) -> None:
    """The slope by that stream, found again by nudging it: D(h + e·d) - D(h - e·d) = 2e · slope · d."""
    made = objective(name)
    given = batch(made.text)
    sigma, cond = torch.full((4,), 0.3), made.text(given.tokens)
    logits, leaf = logits_and_leaf(made.judge, given.x0, sigma, cond)
    torch.testing.assert_close(logits, made.judge(given.x0, sigma, cond), rtol=1e-3, atol=1e-5)
    (slope,) = torch.autograd.grad(logits.mean(dim=1).sum(), leaf)
    torch.manual_seed(0)
    nudge = 1e-2 * torch.nn.functional.normalize(torch.randn_like(leaf).flatten(1), dim=1).reshape(leaf.shape)
    nudge = nudge * leaf.detach().flatten(1).norm(dim=1)[:, None, None]
    stack = made.judge.trunk.structure().main
    block = made.judge.trunk.module.get_submodule(stack.block(0))
    sides = []
    for sign in (1, -1):

        def moved(_module: Any, _args: Any, output: Any, sign: int = sign) -> Any:
            if stack.output is None:
                return output + sign * nudge
            return tuple(part + sign * nudge if i == stack.output else part for i, part in enumerate(output))

        handle = block.register_forward_hook(moved)
        with torch.no_grad():
            sides.append(made.judge(given.x0, sigma, cond).mean(dim=1))
        handle.remove()
    expected = (slope * nudge).flatten(1).sum(dim=1) * 2
    torch.testing.assert_close(sides[0] - sides[1], expected, rtol=0.05, atol=float(expected.abs().max()) * 0.05)


def test_exact_r1_is_refused_where_the_learning_blocks_are_sharded(tmp_path: Path) -> None:
    step = part("distill", "adversarial", r1=1.0, frozen_blocks=1)
    context = context_in(tmp_path)
    context.world = World(0, 2)
    with pytest.raises(UserError, match="sharded over 2 processes. Set 'r1_kind: approximate'"):
        step.objective(context, tiny_denoiser("video_dit"), None, words())


def test_the_result_is_sampled_in_few_steps_without_guidance() -> None:
    assert part("distill", "adversarial").flow(Flow(5.0, 40, 4.0)) == Flow(5.0, 4, 1.0)


def test_the_papers_defaults() -> None:
    options = AdversarialOptions()
    assert (options.lr, options.discriminator_lr, options.ema, options.sampling_steps) == (1e-6, 1e-4, 0.95, 4)
    made = objective(lr=1e-6)
    assert {role.betas for role in made.roles.values()} == {(0.9, 0.999)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampling_steps": 1, "grid": "literal"}, "with one sampling step the literal grid has no t'"),
        ({"steps": 20}, "warms up for 20 of 20 steps, and the generator is never trained"),
        ({"steps": 30, "validation": {"every": 16}}, "no validation comes after 'discriminator_warmup'"),
        ({"steps": 30, "watch": {"every": 31}}, "'every: 31' never comes in 30 steps"),
    ],
)
def test_options_that_would_train_or_measure_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdversarialOptions(**given)
    AdversarialOptions(steps=30, validation={"every": 10}, watch={"every": 30})
