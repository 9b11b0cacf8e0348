"""Distribution matching: the hand-worked posteriors, the rollout, the surrogate's slope, the score, what is refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from toy import batch, context_in, part, tiny_bundle, words

from dit_compress.core.errors import UserError
from dit_compress.data.samples import Samples
from dit_compress.model import flow
from dit_compress.model.flow import Flow, euler
from dit_compress.model.spec import ComponentSpec
from dit_compress.testing.models import tiny_denoiser
from dit_compress.train.loop import fit
from dit_compress.train.lora import adapt, fold, take_off
from dit_compress.train.losses import flow_loss
from dit_compress_plugins.distill_dmd import DmdOptions
from dit_compress_plugins.distill_dmd.distiller import DmdObjective, Real
from dit_compress_plugins.distill_dmd.matching import direction, energy_score, matching_sigma, surrogate

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SCHEDULE = Flow(3.0, 3, 1.0)
GRID = [1.0, 6 / 7, 0.6, 0.0]
"""Three steps at shift 3."""


def objective(guide: str | None = None, **options: Any) -> DmdObjective:
    given = DmdOptions(**{"critic_warmup": 0, "lr": 1e-3, "critic_lr": 1e-3, **options})
    student, teacher = tiny_denoiser("video_dit"), tiny_denoiser("video_dit", 1)
    other = tiny_denoiser(guide, 2) if guide else None
    return DmdObjective(given, student, Real(teacher, Flow(3.0, 4, 2.0), euler), words(), SCHEDULE, other)


class Normal(torch.nn.Module):
    """The exact velocity where clean latents are N(mean, 1): noise less x0, each its expectation."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:
        sigma = flow.expand(sigma_B, x)
        rest = (x - (1 - sigma) * self.mean) / ((1 - sigma).square() + sigma.square())
        return sigma * rest - (self.mean + (1 - sigma) * rest)


# ------------------------------------------------------------------ values by hand


@pytest.mark.parametrize("mean", [0.5, -2.0])
def test_posteriors_of_two_normals_are_half_their_means_apart_everywhere(mean: float) -> None:
    """Real N(0,1), fake N(m,1) at sigma 0.5: x0 is x, and x + m/2; the slope of the divergence by m, at every x."""
    made = objective()
    made.critic, made.real = Normal(mean), replace(made.real, denoiser=Normal(0.0), flow=Flow(3.0, 4, 1.0))
    x = torch.linspace(-5, 5, 40).reshape(5, 8, 1, 1, 1)
    fake, real = made.posteriors(x, torch.full((5,), 0.5), None)  # type: ignore[arg-type]
    torch.testing.assert_close(real, x)
    torch.testing.assert_close(fake - real, torch.full_like(x, mean / 2))


def test_the_direction_is_over_the_mean_distance_of_each_sample() -> None:
    fake, real, x0 = torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.zeros(2, 2)
    assert direction(fake, real, x0).tolist() == [[2.0, 0.0], [1.0, -1.0]]
    assert direction(fake, real, real).isfinite().all(), "samples that are where they should be"


def test_the_surrogates_slope_is_the_direction() -> None:
    x0, way = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[0.5, -3.0]])
    loss = surrogate(x0, way)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * (0.25 + 9) / 2)
    assert x0.grad.tolist() == [[0.25, -1.5]]


def test_sigmas_are_uniform_before_the_shift_and_within_the_ends() -> None:
    u = torch.tensor([0.0, 0.5, 1.0])
    assert matching_sigma(u, Flow(1.0)).tolist() == pytest.approx([0.02, 0.5, 0.98])
    # Shift 3: 0.02 comes of 0.02/2.96, 0.98 of 0.98/1.04; halfway between, 0.474532, goes to 0.730400.
    assert matching_sigma(u, Flow(3.0)).tolist() == pytest.approx([0.02, 0.730400, 0.98], abs=1e-5)


def test_the_energy_score_by_hand() -> None:
    one, other, truth = (torch.full((1, 4), value) for value in (1.0, 3.0, 0.0))
    assert float(energy_score(one, other, truth)) == pytest.approx((1 + 3) / 2 - 2 / 2)


def test_the_energy_score_is_least_for_the_true_spread() -> None:
    """Of N(0, s) against N(0, 1): neither a point nor twice the spread scores as well."""
    torch.manual_seed(0)
    x, y, truth = torch.randn(3, 20_000, 1)
    scores = {spread: float(energy_score(spread * x, spread * y, truth)) for spread in (0.0, 0.5, 1.0, 2.0)}
    assert min(scores, key=scores.get) == 1.0  # type: ignore[arg-type]
    assert scores[1.0] == pytest.approx(1 / torch.pi**0.5, abs=0.02)


# ------------------------------------------------------------------ the rollout


def test_every_sample_stops_where_it_was_drawn_to_on_the_students_own_path() -> None:
    made = objective()
    given = batch(made.text, size=12)
    with torch.no_grad():
        cond = made.text(given.tokens)
        x, sigma = made.rollout(given, cond)
        noise = given.streams.normal("noise", given.x0.shape[1:])
        assert {round(value, 4) for value in sigma.tolist()} == {round(value, 4) for value in GRID[:-1]}
        for row, value in enumerate(sigma.tolist()):
            place = min(range(3), key=lambda index: abs(GRID[index] - value))
            walked = euler(made.student, noise[row : row + 1], cond.take(slice(row, row + 1)), GRID[: place + 1])
            torch.testing.assert_close(x[row : row + 1], walked, rtol=1e-4, atol=1e-5)


def test_one_sampling_step_is_trained_from_noise() -> None:
    made = objective()
    single = DmdObjective(made.options, made.student, made.real, made.text, Flow(3.0, 1, 1.0))
    given = batch(made.text)
    x, sigma = single.rollout(given, made.text(given.tokens))
    assert torch.equal(x, given.streams.normal("noise", given.x0.shape[1:]))
    assert sigma.tolist() == [1.0] * 4


def test_the_students_slope_goes_through_the_last_step_alone() -> None:
    """By hand: the direction at x0, over its numbers, times the slope of x0 = x - sigma·v by the weights."""
    made = objective()
    given = batch(made.text)
    made.loss(made.phases[1], given)["loss"].backward()
    found = made.student.module.proj_out.weight.grad.clone()
    made.student.zero_grad()
    with torch.no_grad():
        cond = made.text(given.tokens)
        x, sigma = made.rollout(given, cond)
    x0 = flow.predict_x0(x, made.student(x, sigma, cond), sigma)
    again, noise = made.renoised(given, "student")
    with torch.no_grad():
        noised = flow.interpolate(x0, noise, again)
        fake = flow.predict_x0(noised, made.critic(noised, again, cond), again)
        velocity = flow.guided(made.real.denoiser, noised, again, cond, 2.0)
        way = direction(fake, flow.predict_x0(noised, velocity, again), x0)
    (x0 * way).sum().div(x0.numel()).backward()
    torch.testing.assert_close(found, made.student.module.proj_out.weight.grad, rtol=1e-4, atol=1e-7)


def test_the_critic_learns_what_the_student_makes() -> None:
    made = objective()
    given = batch(made.text)
    with torch.no_grad():
        loss = made.loss(made.phases[0], given)["loss"]
        cond = made.text(given.tokens)
        x, sigma = made.rollout(given, cond)
        x0 = flow.predict_x0(x, made.student(x, sigma, cond), sigma)
        again, noise = made.renoised(given, "critic")
        velocity = made.critic(flow.interpolate(x0, noise, again), again, cond)
    assert float(loss) == pytest.approx(float(flow_loss(velocity, noise - x0)), rel=1e-5)


@pytest.mark.parametrize("guide", ["video_dit", "wan"])
def test_a_guide_adds_its_velocity_and_its_last_feature_at_the_same_x(guide: str) -> None:
    made = objective(guide, output_weight=0.5, feature_weight=0.25)
    given = batch(made.text)
    with torch.no_grad():
        losses = made.loss(made.phases[1], given)
        cond = made.text(given.tokens)
        x, sigma = made.rollout(given, cond)
        expected = flow_loss(made.student(x, sigma, cond), made.guide(x, sigma, cond))  # type: ignore[misc]
    total = losses["distribution_loss"] + 0.5 * losses["output_loss"] + 0.25 * losses["feature_loss"]
    assert float(losses["loss"]) == pytest.approx(float(total), rel=1e-6)
    assert float(losses["output_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(losses["feature_loss"]) > 1e-3


def test_a_guide_that_is_the_student_adds_nothing() -> None:
    made = objective("video_dit")
    made.guide = made.student
    with torch.no_grad():
        losses = made.loss(made.phases[1], batch(made.text))
    assert float(losses["output_loss"]) == float(losses["feature_loss"]) == 0.0
    assert "projector" not in made.roles, "their widths are equal"


# ------------------------------------------------------------------ phases, validation, resume


def test_the_papers_defaults() -> None:
    made = objective(critic_warmup=20)
    assert [(phase.name, phase.start, phase.every, phase.updates) for phase in made.phases] == [
        ("critic", 0, 1, ("critic",)),
        ("student", 20, 5, ("student",)),
    ]
    assert made.roles["student"].betas == made.roles["critic"].betas == (0.0, 0.99)
    assert made.roles["critic"].ema is None
    for ours, theirs in zip(made.critic.parameters(), made.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_the_result_is_sampled_in_few_steps_without_guidance() -> None:
    assert part("distill", "dmd", sampling_steps=2).flow(Flow(5.0, 40, 4.0)) == Flow(5.0, 2, 1.0)


@torch.no_grad()
def test_a_validation_scores_samples_against_the_guided_teachers() -> None:
    made = objective()
    given = replace(batch(made.text), held_out=True)
    losses = made.loss(made.phases[1], given)
    cond, shape = made.text(given.tokens), given.x0.shape[1:]
    truth = euler(made.real.denoiser, given.streams.normal("teacher", shape), cond, Flow(3.0, 4).sigmas(), 2.0)
    one, other = (
        euler(made.student, given.streams.normal(f"sample/{twin}", shape), cond, SCHEDULE.sigmas()) for twin in (0, 1)
    )
    assert float(losses["energy_score"]) == pytest.approx(float(energy_score(one, other, truth)), rel=1e-5)
    made.real = replace(made.real, denoiser=None)  # type: ignore[arg-type]  # it is not asked again
    assert made.loss(made.phases[1], given)["loss"] == losses["loss"]


def trained(folder: Path, **options: Any) -> DmdObjective:
    made = objective(steps=6, batch=4, student_every=2, critic_warmup=1, ema=0.5, checkpoint_every=3, **options)
    given = batch(made.text, size=8)
    samples = Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False)
    fit(made, samples, made.options, context_in(folder))
    return made


def test_a_resumed_step_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "killed")
    for checkpoint in (tmp_path / "killed" / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    again = trained(tmp_path / "killed")
    for role in ("student", "critic"):
        ours, theirs = again.roles[role].module.state_dict(), whole.roles[role].module.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), role


def test_lora_alone_is_trained_and_ends_in_the_weights(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "a", flow=Flow(3.0, 3, 1.0))
    context = context_in(tmp_path / "step", input=bundle, teacher=bundle)
    options = {"lora": {"rank": 2, "alpha": 4}, "steps": 3, "batch": 4, "critic_warmup": 0, "student_every": 1}
    step = part("distill", "dmd", sampling_steps=3, lr=1e-2, critic_lr=1e-2, ema=0.0, **options)
    student, text = tiny_denoiser("video_dit"), words()
    held, moved = step.num_parameters(student)
    planned = moved, part("distill", "dmd").num_parameters(student)[1]
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    made = step.objective(context, student, tiny_denoiser("video_dit", 1), text)
    adapt(made.roles, step.options.lora, context.seed)
    given = batch(text, size=8)
    fit(made, Samples(given.x0.numpy(), given.captions, given.tokens, pixels=False), step.options, context)
    moving = {
        **made.roles["student"].trained(),
        **{f"critic/{k}": v for k, v in made.roles["critic"].trained().items()},
    }
    assert all(".lora_" in name for name in moving)
    whole = 2 * sum(value.numel() for value in before.values())
    modules = (made.roles["student"].module, made.roles["critic"].module)
    assert held == sum(value.numel() for module in modules for value in module.parameters())
    assert made.roles["student"].betas == made.roles["critic"].betas == (0.0, 0.99)
    assert planned == (sum(value.numel() for value in moving.values()), whole), "what plan counts is what moves"
    probe = (given.x0, torch.full((8,), 0.5), text(given.tokens))
    with torch.no_grad():
        trained = student.eval()(*probe)
        fold(take_off(student.module))
        torch.testing.assert_close(student(*probe), trained, rtol=1e-4, atol=1e-5)
    after = student.module.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("transformer_blocks.") and name.endswith(".weight") for name in moved)
    ranks = [int(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5)) for name in moved]
    assert max(ranks) == 2


# ------------------------------------------------------------------ refusals


def specs(tmp_path: Path, **guide: Any) -> Any:
    """The student's and the guide's bundle, without weights."""
    student = tiny_bundle(tmp_path / "student", flow=Flow(3.0, 40, 4.0)).spec
    return student, tiny_bundle(
        tmp_path / "guide", flow=Flow(**{"shift": 3.0, "num_steps": 4, "guidance": 1.0, **guide})
    ).spec


def test_a_guide_of_the_same_steps_fits(tmp_path: Path) -> None:
    student, guide = specs(tmp_path)
    assert part("distill", "dmd").misfits(student, {"teacher": student, "guide": guide}) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"num_steps": 2},
            r"the guide is sampled at other sigmas than the student will be: 1 0\.75 against 1 0\.9 0\.75 0\.5\. "
            "Set 'sampling_steps' to the guide's, or name a guide that was distilled to these steps",
        ),
        ({"shift": 1.0}, r"other sigmas than the student will be: 1 0\.75 0\.5 0\.25 against 1 0\.9 0\.75 0\.5"),
        (
            {"guidance": 4.0},
            "the guide is sampled with guidance 4, and what it answers alone is no target. "
            "Name a few-step model that is sampled without guidance",
        ),
    ],
)
def test_a_guide_that_is_sampled_otherwise_is_refused(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    student, guide = specs(tmp_path, **other)
    (error,) = part("distill", "dmd").misfits(student, {"guide": guide})
    assert re.search(said, str(error))


@pytest.mark.parametrize("slot", ["teacher", "guide"])
def test_another_text_encoder_is_refused(tmp_path: Path, slot: str) -> None:
    student, guide = specs(tmp_path)
    text = ComponentSpec("text", "words", {**student.text.config, "layers": 9})
    said = f"the {slot} knows the captions of another text encoder than the student's. Name a {slot} that was trained"
    (error,) = part("distill", "dmd").misfits(student, {slot: replace(guide, text=text)})
    assert str(error).startswith(said)


def test_a_text_encoder_of_other_weights_is_seen_when_the_step_starts(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "a")
    context = context_in(tmp_path / "step", input=bundle, teacher=bundle)
    encoder = words().encoder
    next(encoder.parameters()).data.add_(0.1)
    from dit_compress.model.bundle import write_bundle

    modules = {"denoiser": bundle.denoiser().module, "text": encoder}
    context.bundles["guide"] = write_bundle(tmp_path / "b", bundle.spec, modules, base=None, lineage=[])
    with pytest.raises(UserError, match="the guide knows the captions of another text encoder"):
        part("distill", "dmd").objective(context, tiny_denoiser("video_dit"), tiny_denoiser("video_dit"), words())


def test_the_teachers_own_guidance_is_the_default(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "a", flow=Flow(3.0, 40, 4.0))
    context = context_in(tmp_path / "step", input=bundle, teacher=bundle)
    for given, expected in (({}, 4.0), ({"guidance": 2.0}, 2.0)):
        made = part("distill", "dmd", **given).objective(
            context, tiny_denoiser("video_dit"), tiny_denoiser("video_dit"), words()
        )
        assert made.real.flow == Flow(3.0, 40, expected)


def test_options_that_never_train_the_student_are_refused() -> None:
    with pytest.raises(ValidationError, match="the critic warms up for 20 of 20 steps, and the student is never"):
        DmdOptions(steps=20)
    with pytest.raises(ValidationError, match="have rates of their own, 'lr' and 'critic_lr': leave 'muon_lr' out"):
        DmdOptions(muon_lr=0.02)
    with pytest.raises(ValidationError, match="no validation comes after 'critic_warmup'"):
        DmdOptions(steps=100, critic_warmup=60, validation={"every": 60})
