"""Adversarial distillation: the grid of Eq. 7, both losses, who gets a gradient, what never changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy
import torch
from toy import CAPTIONS, SIZE, batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.model import flow
from dit_compress.model.bundle import write_bundle
from dit_compress.model.flow import Flow, euler
from dit_compress.step.world import World
from dit_compress.testing.models import MODELS, tiny_denoiser
from dit_compress.train.loop import fit
from dit_compress.train.objective import Batch, Phase
from dit_compress_plugins.distill_adversarial import AdversarialOptions
from dit_compress_plugins.distill_adversarial.objective import AdversarialObjective
from dit_compress_plugins.distill_adversarial.pairs import TeacherPairs, teacher_pairs
from dit_compress_plugins.distill_adversarial.penalty import logits_and_leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

GRID = [1.0, 0.9, 0.75, 0.5, 0.0]
"""Four steps at shift 3."""


def objective(
    name: str = "video_dit",
    pairs: TeacherPairs | None = None,
    between: tuple[float, float] | None = None,
    **options: Any,
) -> AdversarialObjective:
    judged = options.get("adversarial_weight", 1)
    own = {"discriminator_lr": 1e-2, "discriminator_warmup": 0} if judged else {}
    given = AdversarialOptions(**{"lr": 1e-2, **own, **options})
    student = tiny_denoiser(name)
    judge = part("discriminator", "dit_block", frozen_blocks=1, learnable_blocks=1).create(student)
    judge = judge if given.adversarial_weight else None
    return AdversarialObjective(given, student, judge, words(), Flow(3.0, 4, 1.0, between=between), pairs)


def rows_of(tokens: dict[str, Tensor]) -> Callable[[Sequence[int]], dict[str, Tensor]]:
    return lambda places: {name: value[list(places)] for name, value in tokens.items()}


GENERATOR, DISCRIMINATOR = Phase("generator", ()), Phase("discriminator", ())


def drawn(phase: Phase, **options: Any) -> dict[tuple[float, float], tuple[int, float]]:
    """How often each pair (t, t') comes among 3000, and the weight of its judgement."""
    made = objective(**options)
    pairs: dict[tuple[float, float], tuple[int, float]] = {}
    for t, then, weight in zip(
        *(value.tolist() for value in made.times(batch(made.text, size=3000), phase)), strict=True
    ):
        pair = round(t, 4), round(then, 4)
        pairs[pair] = (pairs.get(pair, (0, 0))[0] + 1, weight)
    return pairs


def test_on_the_grid_every_start_is_trained_alike_and_the_last_is_not_judged() -> None:
    """Of starts a fourth each; t' below t from {T2, T3, T4}: of T1's a third each; T4 has none, and no weight."""
    found = drawn(GENERATOR, renoise="grid")
    assert set(found) == {(a, b) for a in GRID[:-1] for b in GRID[1:-1] if b < a} | {(0.5, 0.5)}
    for (t, then), (count, weight) in found.items():
        lower = {1.0: 3, 0.9: 2, 0.75: 1, 0.5: 1}[t]
        assert count == pytest.approx(3000 / 4 / lower, abs=4 * (3000 / 4 / lower) ** 0.5)
        assert weight == (0.0 if then == t else pytest.approx(4 / 3))


def test_on_the_grid_the_discriminator_sees_only_what_is_judged() -> None:
    """Starts a third each: t' is T2 of a ninth, T3 of a ninth and a sixth, T4 of a ninth, a sixth and a third."""
    found = drawn(DISCRIMINATOR, renoise="grid")
    assert set(found) == {(a, b) for a in GRID[:-2] for b in GRID[1:-1] if b < a}
    for then, share in ((0.9, 1 / 9), (0.75, 5 / 18), (0.5, 11 / 18)):
        count = sum(count for pair, (count, _) in found.items() if pair[1] == then)
        assert count == pytest.approx(3000 * share, abs=4 * (3000 * share) ** 0.5)


@pytest.mark.parametrize("phase", [GENERATOR, DISCRIMINATOR])
def test_renoised_every_start_is_judged(phase: Phase) -> None:
    found = drawn(phase)
    assert {t for t, _ in found} == set(GRID[:-1])
    assert {weight for _, weight in found.values()} == {1.0}


def test_one_sampling_step_goes_from_noise_to_data() -> None:
    made = objective(sampling_steps=1)
    single = AdversarialObjective(made.options, made.student, made.judge, made.text, Flow(3.0, 1, 1.0), None)
    t, _, weight = single.times(batch(made.text), GENERATOR)
    assert (t.tolist(), weight.tolist()) == ([1.0] * 4, [1.0] * 4)


@pytest.mark.parametrize("renoise", ["grid", "logit_normal"])
def test_nothing_is_judged_at_sigma_0(renoise: str) -> None:
    made = objective(renoise=renoise)
    seen = recording(made.judge)
    for phase in made.phases:
        made.loss(phase, batch(made.text, size=40))
    assert len(seen) == 3
    assert min(float(sigma.min()) for _, sigma in seen) > 1e-3


def test_the_adversarial_loss_is_the_mean_over_the_judged() -> None:
    """By hand: logits that say their own sample's number; those that start at T4 are left out, the rest weighs 4/3."""
    made = objective(renoise="grid", adversarial_weight=2.0)
    made.judge = Numbered()
    given = batch(made.text, size=8)
    t, _, _ = made.times(given, made.phases[1])
    judged = [number for number, start in enumerate(t.tolist()) if round(start, 4) != 0.5]
    assert 0 < len(judged) < 8
    losses = made.loss(made.phases[1], given)
    assert float(losses["adversarial_loss"]) == pytest.approx(4 / 3 * sum(judged) / 8, rel=1e-5)


class Numbered(torch.nn.Module):
    """Two tokens of each sample say its number in the batch."""

    def forward(self, latent: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
        return torch.arange(len(latent)).float()[:, None].expand(-1, 2)


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
    made = objective(renoise="grid")
    given = batch(made.text)
    made.student = Oracle(made, given)
    seen = recording(made.judge)
    losses = made.loss(Phase("discriminator", ()), given)
    (real, real_t), (fake, fake_t) = seen
    torch.testing.assert_close(fake, real)
    _, then, _ = made.times(given, DISCRIMINATOR)
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
    assert all(
        key.startswith((f"trunk.module.{stack}.1.", "head.", "adversarial_share")) for key in changed(made.judge, judge)
    )
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
    assert seen == [(2, set(), True)] * 3  # both gradients are measured, then it is trained
    moved = (made.student.module.proj_out.weight - student["module.proj_out.weight"]).abs()
    assert float(moved.detach().median()) == pytest.approx(1e-2 / 20, rel=1e-3)


def test_a_plan_counts_the_discriminator() -> None:
    student = tiny_denoiser("video_dit")
    step = part("distill", "adversarial", frozen_blocks=1)
    judge = part("discriminator", "dit_block", frozen_blocks=1).create(student)
    ours = sum(value.numel() for value in student.parameters())
    whole = sum(value.numel() for value in judge.parameters())
    moved = sum(value.numel() for value in judge.parameters() if value.requires_grad)
    assert moved > 0
    assert step.num_parameters(student) == (ours + whole, ours + moved)
    alone = part("distill", "adversarial", adversarial_weight=0)
    assert alone.num_parameters(student) == (ours, ours)


def test_the_generator_moves_at_each_third_step_on_request() -> None:
    discriminator, generator = objective(discriminator_warmup=2, generator_every=3).phases
    assert [step for step in range(9) if generator.runs(step)] == [2, 5, 8]
    assert all(discriminator.runs(step) for step in range(9))
    (alone,) = objective(adversarial_weight=0).phases
    assert all(alone.runs(step) for step in range(3)), "nothing trains between its updates"


def test_the_average_moves_a_twentieth_of_the_way(tmp_path: Path) -> None:
    """One AdamW step moves every weight by the rate; an average of 0.95 by a twentieth of it."""
    made = objective(steps=1, batch=2, ema=0.95)
    before = made.student.module.proj_out.weight.clone()
    fit(made, samples(made), made.options, context_in(tmp_path))
    moved = (made.student.module.proj_out.weight - before).abs()
    assert float(moved.detach().median()) == pytest.approx(1e-2 / 20, rel=1e-3)


def test_a_teacher_with_other_captions_samples_nothing(tmp_path: Path) -> None:
    """Its text encoder has other weights: the student's captions would say other things to it."""
    bundle = tiny_bundle(tmp_path / "a")
    encoder = words().encoder
    next(encoder.parameters()).data.add_(0.1)
    modules = {"denoiser": bundle.denoiser().module, "text": encoder}
    other = write_bundle(tmp_path / "b", bundle.spec, modules, base=None, lineage=[])
    context = context_in(tmp_path / "step", input=bundle, teacher=other)
    step = part("distill", "adversarial", teacher_samples=4, frozen_blocks=1)
    with pytest.raises(UserError, match="the teacher knows the captions of another text encoder"):
        step.objective(context, tiny_denoiser("video_dit"), tiny_denoiser("video_dit"), words())


def test_teacher_pairs_replace_the_data() -> None:
    shape = (6, 8, 2, 2, 2)
    text = words()
    tokens = text.encoder.tokenize([f"a {word} circle" for word in ("red", "blue", "green", "white", "black", "pink")])
    pairs = TeacherPairs(torch.arange(6.0).reshape(6, 1, 1, 1, 1).expand(shape), torch.zeros(shape), rows_of(tokens))
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
    assert torch.equal(plain.x0, looked.x0)
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
    given = batch(made.text, size=2000)
    sigma, _ = made.judged_at(given, given.x0, torch.ones(2000))
    logit = torch.logit(sigma)
    assert float(logit.mean()) == pytest.approx(mean, abs=4 * std / 2000**0.5)
    assert float(logit.std()) == pytest.approx(std, rel=0.07)


@pytest.mark.parametrize("between", [(0.875, 1.0), (0.0, 0.875), (0.4, 0.6)])
def test_an_expert_is_judged_where_its_trunk_was_trained(between: tuple[float, float]) -> None:
    """The same normal logit, cut: the median of those left is where scipy has it."""
    made = objective(between=between)
    given = batch(made.text, size=2000)
    sigma, _ = made.judged_at(given, given.x0, torch.ones(2000))
    assert sigma.dtype == torch.float32
    assert between[0] <= float(sigma.min()) < float(sigma.max()) <= between[1]
    with np.errstate(divide="ignore"):
        low, high = scipy.special.logit(between) + 1
    median = scipy.special.expit(scipy.stats.truncnorm(low, high, loc=-1).median())
    assert abs(float((sigma < median).float().mean()) - 0.5) < 4 * 0.5 / 2000**0.5


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
    scale = {} if kind == "exact" else {"r1_scale": 0.1}
    made = objective(r1=0.5, r1_kind=kind, **scale)
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
    assert (options.renoise, options.renoise_mean, options.renoise_std) == ("logit_normal", -1.0, 1.0)
    made = objective(lr=1e-6)
    assert {role.betas for role in made.roles.values()} == {(0.9, 0.999)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"sampling_steps": 1, "renoise": "grid"},
            "with one sampling step the grid has no t' to judge at: take 'renoise:",
        ),
        ({"adversarial_weight": 0, "reconstruction_weight": 0}, "are both 0: nothing trains the generator"),
        ({"balance": "gradient", "reconstruction_weight": 0}, "'balance: gradient' weighs one gradient by the other"),
        ({"balance": "gradient", "adversarial_weight": 0}, "'balance: gradient' weighs one gradient by the other"),
        (
            {"renoise": "grid", "reconstruction_weight": 0},
            "the last sampling step is trained by its reconstruction alone",
        ),
        (
            {"adversarial_weight": 0, "r1": 1, "frozen_blocks": 2},
            "'frozen_blocks' and 'r1' belong to 'adversarial_weigh",
        ),
        ({"reconstruction_weight": 0, "huber": 0.1}, "'huber' belongs to 'reconstruction_weight' above 0"),
        ({"steps": 20}, "warms up for 20 of 20 steps, and the generator is never trained"),
        ({"steps": 30, "validation": {"every": 16}}, "no validation comes after 'discriminator_warmup'"),
        ({"steps": 30, "watch": {"every": 31}}, "'every: 31' never comes in 30 steps"),
    ],
)
def test_options_that_would_train_or_measure_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdversarialOptions(**given)
    AdversarialOptions(steps=30, validation={"every": 10}, watch={"every": 30})
    AdversarialOptions(steps=10, adversarial_weight=0)


# ------------------------------------------------------------------ the balance of the two terms


class Two(torch.nn.Module):
    """A velocity of two parameters: one for the first half of the channels, one for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(value)) for value in (0.3, -0.2))

    def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
        first, rest = x.chunk(2, dim=1)
        return torch.cat([self.a * first, self.b * rest], dim=1)


def toy(**options: Any) -> AdversarialObjective:
    """Two parameters, and a linear discriminator whose slope is known."""
    given = AdversarialOptions(**{"discriminator_warmup": 0, "batch": 4, "warmup": 0, "ema": 0.0, **options})
    return AdversarialObjective(given, Two(), Linear(), words(), Flow(3.0, 4, 1.0), None)


def by_hand(made: AdversarialObjective, given: Batch) -> dict[str, float]:
    """Norms of both gradients by a and b: x0' = x - t·v has the slopes -t·x there, 0 elsewhere."""
    x0, noise, _ = made.clean(given)
    t, _, _ = made.times(given, GENERATOR)
    sigma, _ = made.judged_at(given, noise, t)
    x = flow.interpolate(x0, noise, t)
    difference = x - flow.expand(t, x) * made.student(x, t, None) - x0
    size = difference[0].numel()
    length = (difference.square().flatten(1).sum(1) / size + made.options.huber**2).sqrt()
    slopes = {
        "reconstruction_loss": difference / (size * flow.expand(length, x)),
        "adversarial_loss": flow.expand(1 - sigma, x) * made.judge.weight.reshape(x[0].shape),
    }
    halves = {
        name: [-(slope * flow.expand(t, x) * x).flatten(2).sum(2).chunk(2, 1)[place].sum() / len(x) for place in (0, 1)]
        for name, slope in slopes.items()
    }
    return {name: float(torch.stack(values).norm().detach()) for name, values in halves.items()}


def curve(made: AdversarialObjective, folder: Path) -> list[dict[str, float]]:
    """Train on a batch that is all the data; what was logged of each step."""
    from dit_compress.train import loop

    rows: list[dict[str, float]] = []

    def noted(*given: Any) -> dict[str, float]:
        rows.append(step(*given))
        return rows[-1]

    step, loop.train_step = loop.train_step, noted
    try:
        given = batch(made.text)
        fit(
            made,
            Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False),
            made.options,
            context_in(folder),
        )
    finally:
        loop.train_step = step
    return rows


def first_batch(made: AdversarialObjective) -> Batch:
    from dit_compress.train.loop import draw_batch

    given = batch(made.text)
    return draw_batch(Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False), 4, 0, 0)


def test_the_share_of_a_fixed_weight_by_hand(tmp_path: Path) -> None:
    options = {"adversarial_weight": 0.5, "reconstruction_weight": 2.0, "steps": 1, "lr": 1e-3}
    made = toy(**options, discriminator_lr=1e-30)
    norms = by_hand(made, first_batch(made))
    (row,) = curve(made, tmp_path)
    assert row["generator/adversarial_weight"] == 0.5
    expected = 0.5 * norms["adversarial_loss"] / (2 * norms["reconstruction_loss"])
    assert expected > 0.01
    assert row["generator/adversarial_share"] == pytest.approx(expected, rel=1e-4)


def test_the_weight_that_makes_the_share_by_hand(tmp_path: Path) -> None:
    """The adversarial gradient a half of the reconstruction's, which counts three times."""
    options = {"balance": "gradient", "adversarial_weight": 0.5, "reconstruction_weight": 3.0, "steps": 1, "lr": 1e-3}
    made = toy(**options, discriminator_lr=1e-30)
    norms = by_hand(made, first_batch(made))
    (row,) = curve(made, tmp_path)
    weight = 0.5 * 3 * norms["reconstruction_loss"] / norms["adversarial_loss"]
    assert row["generator/adversarial_weight"] == pytest.approx(weight, rel=1e-4)
    assert row["generator/adversarial_share"] == pytest.approx(0.5, rel=1e-5)
    total = 3 * row["generator/reconstruction_loss"] + weight * row["generator/adversarial_loss"]
    assert row["generator/loss"] == pytest.approx(total, rel=1e-4)


def test_between_two_measurements_the_weight_stays(tmp_path: Path) -> None:
    rows = curve(
        toy(balance="gradient", share_every=2, steps=5, lr=1e-2, discriminator_lr=1e-2, discriminator_warmup=1),
        tmp_path,
    )
    weights = [row["generator/adversarial_weight"] for row in rows[1:]]
    assert "generator/loss" not in rows[0]
    assert weights[0] == weights[1] != weights[2] == weights[3]


def test_measuring_changes_no_weight_of_the_model(tmp_path: Path) -> None:
    often, seldom = (toy(share_every=every, steps=4, lr=1e-2, discriminator_lr=1e-2) for every in (1, 4))
    rows, others = curve(often, tmp_path / "often"), curve(seldom, tmp_path / "seldom")
    assert all(torch.equal(a, b) for a, b in zip(often.student.parameters(), seldom.student.parameters(), strict=True))
    assert len({row["generator/adversarial_share"] for row in rows}) == 4
    assert len({row["generator/adversarial_share"] for row in others}) == 1


def test_a_gradient_that_vanishes_sets_no_weight_and_a_small_one_no_huge_weight() -> None:
    made = toy(balance="gradient")
    weight, share = made.noted("adversarial_weight"), made.noted("adversarial_share")
    made.weigh({"reconstruction_loss": 2.0, "adversarial_loss": 4.0})
    assert (float(weight), float(share)) == (0.5, 1.0)
    for norms in ((2.0, float("nan")), (0.0, 1.0)):
        made.weigh(dict(zip(("reconstruction_loss", "adversarial_loss"), norms, strict=True)))
        assert (float(weight), float(share)) == (0.5, 1.0)
    made.weigh({"reconstruction_loss": 2.0, "adversarial_loss": 0.0})
    assert (float(weight), float(share)) == (0.5, 0.0)
    made.weigh({"reconstruction_loss": 2.0, "adversarial_loss": 2e-6})
    assert float(weight) == 1e4
    assert float(share) == pytest.approx(0.5 * 2e-6 / 2), "of the weight that trained until now"


def test_a_resumed_step_has_the_weight_it_had(tmp_path: Path) -> None:
    """Killed between two measurements: the weight is in the checkpoint, and every weight comes out the same."""
    options = {"balance": "gradient", "share_every": 4, "checkpoint_every": 2, "steps": 6, "batch": 2, "ema": 0.5}
    whole, killed, resumed = (objective(**options) for _ in range(3))
    context = context_in
    fit(whole, samples(whole), whole.options, context(tmp_path / "whole"))
    fit(killed, samples(killed), killed.options, context(tmp_path / "killed"))
    for checkpoint in sorted((tmp_path / "killed" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    (left,) = (tmp_path / "killed" / "checkpoints").iterdir()
    assert left.name == "step-00000002"
    fit(resumed, samples(resumed), resumed.options, context(tmp_path / "killed"))
    assert float(whole.noted("adversarial_weight")) > 0
    for one, other in ((whole.student, resumed.student), (whole.judge, resumed.judge)):
        assert changed(one, state(other)) == set()


def test_without_an_adversarial_loss_there_is_no_discriminator(tmp_path: Path) -> None:
    made = objective(adversarial_weight=0, steps=2, batch=2, ema=0.0)
    student = state(made.student)
    rows = curve(made, tmp_path)
    assert [sorted(row) for row in rows] == [["grad_student", "loss", "reconstruction_loss"]] * 2
    assert "discriminator" not in made.roles
    assert changed(made.student, student)


def test_embeddings_that_are_kept_are_not_encoded_again(tmp_path: Path) -> None:
    """The teacher sees the rows that the student does, and the encoder is not asked for them."""
    made = objective()
    kept = {name: value.detach() for name, value in made.text.cond(CAPTIONS).items()}
    made.text.requires_grad_(False).null()
    made.text.encoder.forward = lambda _: pytest.fail("a caption is encoded again")
    context: Any = context_in(tmp_path)
    latents = torch.zeros(len(CAPTIONS), 8, *SIZE).numpy()
    context.latents = lambda *_: Samples(latents, CAPTIONS, kept, pixels=False)
    context.bundles["input"] = SimpleNamespace(flow=Flow(3.0, 2, 1.0))
    context.latent_shape = lambda: (8, *SIZE)
    options = AdversarialOptions(teacher_samples=3, validation={"samples": 2})
    pairs = teacher_pairs(context, options, made.student, made.text)
    assert pairs.tokens([0])["embedding"].shape == (1, *kept["embedding"].shape[1:])
    x0, noise, cond = pairs.held_out.take(torch.tensor([1, 0]), made.text)
    assert torch.equal(cond["embedding"], kept["embedding"][[1, 0]])
    with torch.no_grad():
        again = euler(made.student.eval(), noise, cond, Flow(3.0, 2, 1.0).sigmas(), 1.0)
    torch.testing.assert_close(x0, again, rtol=1e-4, atol=1e-5)


def test_pairs_are_sampled_with_the_guidance_asked_for(tmp_path: Path) -> None:
    made = objective()
    context: Any = context_in(tmp_path)
    context.latents = lambda split, _: samples(made)
    context.bundles["input"] = SimpleNamespace(flow=Flow(3.0, 2, 4.0))
    context.latent_shape = lambda: (8, *SIZE)
    for guidance in (1.0, 3.0):
        (tmp_path / "teacher.safetensors").unlink(missing_ok=True)
        options = AdversarialOptions(teacher_samples=3, teacher_guidance=guidance)
        pairs = teacher_pairs(context, options, made.student, made.text)
        with torch.no_grad():
            cond = made.text(pairs.tokens(range(3)))
            again = euler(made.student.eval(), pairs.noise, cond, Flow(3.0, 2, 4.0).sigmas(), guidance)
        torch.testing.assert_close(pairs.x0, again, rtol=1e-4, atol=1e-5)


def test_steps_on_images_draw_pairs_of_one_frame(tmp_path: Path) -> None:
    """The teacher's own samples of one frame, in a file of their own; the pairs of clips are as without."""
    made = objective()
    context: Any = context_in(tmp_path)
    context.latents = lambda split, _: samples(made)
    context.bundles["input"] = SimpleNamespace(flow=Flow(3.0, 2, 1.0))
    context.latent_shape = lambda: (8, *SIZE)
    plain, mixed = (
        teacher_pairs(context, AdversarialOptions(teacher_samples=3, **more), made.student, made.text)
        for more in ({}, {"images": 0.5})
    )
    assert plain.images is None
    assert torch.equal(plain.x0, mixed.x0)
    assert mixed.images.x0.shape == (3, 8, 1, *SIZE[1:])
    with torch.no_grad():
        again = euler(
            made.student.eval(), mixed.images.noise, made.text(mixed.tokens(range(3))), Flow(3.0, 2, 1.0).sigmas()
        )
    torch.testing.assert_close(mixed.images.x0, again, rtol=1e-4, atol=1e-5)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "teacher.safetensors",
        "teacher-images.safetensors",
    }
    clips = batch(made.text)
    for given, pairs in ((clips, mixed), (replace(clips, x0=clips.x0[:, :, :1]), mixed.images)):
        x0, noise, _ = mixed.draw(given, made.text)
        place = given.streams.integers("pair", 3)
        assert torch.equal(x0, pairs.x0[place])
        assert torch.equal(noise, pairs.noise[place])
    context.latent_shape = lambda: (8, 1, *SIZE[1:])
    (tmp_path / "teacher.safetensors").unlink()
    options = AdversarialOptions(teacher_samples=3, images=0.5)
    assert teacher_pairs(context, options, made.student, made.text).images is None, "clips of one frame are images"


def test_pairs_of_both_sizes_train(tmp_path: Path) -> None:
    made = objective(images=0.5, steps=4, batch=2)
    shape, tokens = (4, 8, *SIZE), rows_of(made.text.encoder.tokenize(CAPTIONS[:4]))
    still = TeacherPairs(torch.randn(4, 8, 1, *SIZE[1:]), torch.zeros(4, 8, 1, *SIZE[1:]), tokens)
    made.pairs = TeacherPairs(torch.randn(shape), torch.zeros(shape), tokens, images=still)
    seen = recording(made.judge)
    rows = curve(made, tmp_path)
    assert {row["images"] for row in rows} == {0.0, 1.0}
    assert {latent.shape[2] for latent, _ in seen} == {1, SIZE[0]}
