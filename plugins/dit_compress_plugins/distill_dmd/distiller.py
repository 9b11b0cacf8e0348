"""DMD2 without its GAN head; with a guide K-DMD of SnapGen++.

A critic learns by flow matching what the student makes now; the student's samples, noised again, go from where the
critic expects clean latents to where the guided teacher does.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import need_same_captions, other_encoders, student_role
from dit_compress.train.features import grid_of, last_feature, other_tokens, projection, resampled
from dit_compress.train.losses import flow_loss, squared_distance
from dit_compress.train.objective import Phase, Role
from dit_compress_plugins.distill_dmd.matching import direction, energy_score, matching_sigma, surrogate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_dmd import DmdOptions


class DmdDistiller(DistillStep):
    """Step ``distill: {use: dmd}``."""

    samples_whole = True

    def misfits(self, spec: Spec, others: Mapping[str, Spec]) -> list[UserError]:
        """Return what to say of a teacher or guide with another text encoder, of a guide that is sampled otherwise."""
        found = other_encoders(spec, others)
        if "guide" in others:
            found += _other_steps(self.flow(spec.flow), others["guide"].flow)
            if self.options.feature_weight:
                found += other_tokens(spec.outline(), "student", "feature_weight: 0")
                found += other_tokens(others["guide"].outline(), "guide", "feature_weight: 0")
        return found

    def flow(self, before: Flow) -> Flow:
        """Return few steps, no guidance."""
        return replace(before, num_steps=self.options.sampling_steps, guidance=1.0)

    def objective(self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions) -> DmdObjective:
        """Return the objective of the roles student and critic (trained), teacher, guide and text."""
        known = context.slot("teacher")
        if teacher is None or known is None:
            raise UserError(f"step {context.name!r} has no teacher", mend="Add 'teacher: <an earlier step>'")
        for slot, other in context.bundles.items():
            need_same_captions(slot, context.input, other)
        guidance = known.flow.guidance if self.options.guidance is None else self.options.guidance
        real = Real(teacher, replace(known.flow, guidance=guidance), context.sampler(known.flow))
        bundle = context.slot("guide")
        guide = bundle.denoiser() if bundle is not None else None
        return DmdObjective(self.options, student, real, text, self.flow(context.input.flow), guide)

    def num_parameters(self, student: Denoiser) -> tuple[int, int]:
        """Count those of student and critic."""
        held, trained = super().num_parameters(student)
        return 2 * held, 2 * trained


def _other_steps(ours: Flow, theirs: Flow) -> list[UserError]:
    """Return what to say where a guide does not answer at the sigmas at which the student will be sampled."""
    mine, guides = ours.sigmas(), theirs.sigmas()
    if len(mine) != len(guides) or not all(map(math.isclose, mine, guides)):
        shown = " against ".join(" ".join(f"{sigma:.3g}" for sigma in each[:-1]) for each in (guides, mine))
        what = f"the guide is sampled at other sigmas than the student will be: {shown}"
        mend = "Set 'sampling_steps' to the guide's, or name a guide that was distilled to these steps"
    elif theirs.guidance != 1:
        what = f"the guide is sampled with guidance {theirs.guidance:g}, and what it answers alone is no target"
        mend = "Name a few-step model that is sampled without guidance, such as an adversarial step's"
    else:
        return []
    return [UserError(what, mend=mend)]


@dataclass(frozen=True)
class Real:
    """The real score: a teacher, how it is sampled and guided."""

    denoiser: Denoiser
    flow: Flow
    sampler: Callable[..., Tensor]

    def x0(self, x: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        """Return the clean latents the guided teacher expects at ``x``."""
        return flow.predict_x0(x, flow.guided(self.denoiser, x, sigma_B, cond, self.flow.guidance), sigma_B)

    def sample(self, noise: Tensor, cond: Cond) -> Tensor:
        """Return the teacher's own samples."""
        return self.sampler(self.denoiser, noise, cond, self.flow.sigmas(), self.flow.guidance)


class DmdObjective:
    """Two phases: the critic learns the student's samples; the student moves them to the teacher's, guided or not.

    Differs from the papers: a rollout takes Euler steps, as the result is sampled, where DMD2 adds fresh noise at each.
    """

    def __init__(
        self,
        options: DmdOptions,
        student: Denoiser,
        real: Real,
        text: Captions,
        schedule: Flow,
        guide: Denoiser | None = None,
    ) -> None:
        self.options, self.student, self.real, self.text, self.guide = options, student, real, text, guide
        self.grid = schedule.sigmas()
        self.starts = torch.tensor(self.grid[:-1])
        self.again = schedule if options.shift is None else replace(schedule, shift=options.shift)
        self.critic = copy.deepcopy(student)
        role = student_role(student, options)
        self.roles = {
            "student": role,
            "critic": replace(role, module=self.critic.requires_grad_(), lr=options.critic_lr, ema=None),
            "teacher": Role(real.denoiser),
            "text": Role(text),
        }
        moving: tuple[str, ...] = ("student",)
        self.projector: torch.nn.Module = torch.nn.Identity()
        if guide is not None:
            self.roles["guide"] = Role(guide)
            widths = student.stream_width(), guide.stream_width()
            if options.feature_weight and widths[0] != widths[1]:
                self.projector = projection(*widths)
                self.roles["projector"] = Role(self.projector, lr=options.lr, betas=options.betas)
                moving = ("student", "projector")
        self.phases = (
            Phase("critic", ("critic",)),
            Phase("student", moving, options.critic_warmup, options.student_every, score="energy_score"),
        )
        self.references: dict[tuple[int, ...], Tensor] = {}

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Return the critic's flow-matching loss, or the student's; in a validation the score of its samples."""
        with torch.no_grad():
            cond = self.text(batch.tokens)
            if batch.held_out:
                score = self.score(batch, cond)
                return {"loss": score, "energy_score": score}
            x, sigma = self.rollout(batch, cond)
        if phase.name == "student":
            return self.student_loss(batch, x, sigma, cond)
        with torch.no_grad():
            x0 = flow.predict_x0(x, self.student(x, sigma, cond), sigma)
            sigma, noise = self.renoised(batch, "critic")
        velocity = self.critic(flow.interpolate(x0, noise, sigma), sigma, cond)
        return {"loss": flow_loss(velocity, flow.velocity(x0, noise))}

    def rollout(self, batch: Batch, cond: Cond) -> tuple[Tensor, Tensor]:
        """Walk from noise as the student is sampled, each sample to a sigma of its own: ``x`` there, and sigma ``[B]``.

        Every sample is walked to the last one, so that all processes make equally many calls of a sharded model.
        """
        x = batch.streams.normal("noise", batch.x0.shape[1:])
        stop = batch.streams.integers("exit", len(self.grid) - 1)
        for place, (now, then) in enumerate(zip(self.grid, self.grid[1:-1], strict=False)):
            now_B, then_B = (torch.full_like(stop, sigma, dtype=x.dtype) for sigma in (now, then))
            further = flow.expand(stop > place, x).bool()
            x = torch.where(further, flow.jump(x, self.student(x, now_B, cond), now_B, then_B), x)
        return x, self.starts.to(x.device)[stop]

    def student_loss(self, batch: Batch, x: Tensor, sigma: Tensor, cond: Cond) -> dict[str, Tensor]:
        """Return distribution matching of the last step's x0, and what the guide adds at the same ``x``."""
        velocity, feature = self.answer(self.student, x, sigma, cond)
        x0 = flow.predict_x0(x, velocity, sigma)
        with torch.no_grad():
            again, noise = self.renoised(batch, "student")
            fake, real = self.posteriors(flow.interpolate(x0, noise, again), again, cond)
            way = direction(fake, real, x0)
        total = matched = surrogate(x0, way)
        logged = {"distribution_loss": matched, "gap": (fake - real).abs().mean()}
        if self.guide is not None:
            with torch.no_grad():
                target, y_T = self.answer(self.guide, x, sigma, cond)
            logged["output_loss"] = flow_loss(velocity, target)
            total = total + self.options.output_weight * logged["output_loss"]
            if feature is not None and y_T is not None:
                y_S = resampled(self.projector(feature), grid_of(self.student, x), grid_of(self.guide, x))
                logged["feature_loss"] = squared_distance(y_S, y_T)
                total = total + self.options.feature_weight * logged["feature_loss"]
        return {"loss": total, **logged}

    def answer(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """Return a velocity, and the last feature where the guide's is a target."""
        if self.guide is None or not self.options.feature_weight:
            return denoiser(x, sigma, cond), None
        return last_feature(denoiser, x, sigma, cond)

    def posteriors(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """Return the clean latents that the critic expects at ``x``, and those that the guided teacher does."""
        return flow.predict_x0(x, self.critic(x, sigma, cond), sigma), self.real.x0(x, sigma, cond)

    def renoised(self, batch: Batch, phase: str) -> tuple[Tensor, Tensor]:
        """Draw sigma ``[B]`` and noise for samples of the student."""
        sigma = matching_sigma(batch.streams.uniform(f"{phase}/sigma"), self.again)
        return sigma, batch.streams.normal(f"{phase}/noise", batch.x0.shape[1:])

    def score(self, batch: Batch, cond: Cond) -> Tensor:
        """Return the energy score of the student's samples, two a caption, against one of the guided teacher's.

        Neither loss says whether the student is better: the critic's follows it, the other one's size is normalised.
        """
        shape, key = batch.x0.shape[1:], tuple(batch.sample)
        if key not in self.references:
            self.references[key] = self.real.sample(batch.streams.normal("teacher", shape), cond).cpu()
        noises = (batch.streams.normal(f"sample/{twin}", shape) for twin in range(2))
        one, other = (flow.euler(self.student, noise, cond, self.grid) for noise in noises)
        return energy_score(one, other, self.references[key].to(one.device))
