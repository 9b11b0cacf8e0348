"""Diffusion-DRF: what a frozen critic answers about decoded samples, differentiated through the last sampling steps.

    L = -mean_q log p(yes to q | D(x_0), caption) + w·mean |v_theta - v_start|²

x_0 is sampled in N steps; gradients go through the last K of them and the decoder D.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import need_same_captions, other_encoders, student_role
from dit_compress.train.losses import flow_loss
from dit_compress.train.objective import Phase, Role
from dit_compress_plugins.distill_reward.rewards import (
    log_yes,
    need_answers,
    need_gradients,
    need_part,
    share_of_yes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.plugin.options import Part
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_reward import RewardOptions

TRIED = 2
"""Real clips on which a reward is tried before anything is trained."""


class RewardDistiller(DistillStep):
    """Step ``distill: {use: reward}``."""

    samples_whole = True

    options: RewardOptions

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle as it will be sampled.

        Raises a UserError where K is too large, nothing shows pixels, or reward or judge can't work.
        """
        after = super().plan(spec)
        last, steps = self.options.last_steps, after.flow.num_steps
        if last > steps:
            raise UserError(
                f"'last_steps: {last}' is more than there are sampling steps, {steps}",
                mend=f"Set 'last_steps' to {steps} or less, or raise 'sampling_steps'",
            )
        for slot, part in self._parts().items():
            need_part(slot, part)
        codec: Any = spec.codec()
        codec(torch.zeros(1, codec.channels, 1, 2, 2, device="meta"))  # refuses what can't be decoded
        return after

    def _parts(self) -> dict[str, Part]:
        given = {"reward": self.options.reward, "judge": self.options.judge}
        return {slot: part for slot, part in given.items() if part is not None}

    def misfits(self, spec: Spec, others: Mapping[str, Spec]) -> list[UserError]:
        """Return what to say of a start that knows the captions of another text encoder."""
        return other_encoders(spec, others)

    def flow(self, before: Flow) -> Flow:
        """Return how it is sampled in training, and then."""
        steps, guidance = self.options.sampling_steps, self.options.guidance
        return replace(
            before,
            num_steps=before.num_steps if steps is None else steps,
            guidance=before.guidance if guidance is None else guidance,
        )

    def num_parameters(self, student: Denoiser) -> tuple[int, int]:
        """Count those of the student and of the copy that it is anchored to."""
        held, trained = super().num_parameters(student)
        copied = sum(parameter.numel() for parameter in student.parameters()) if self.options.anchor_weight else 0
        return held + copied, trained

    def calls(self, flow: Flow) -> int:
        """Return those of the last K steps, of one where they are computed again, and of the anchor."""
        kept = 1 if self.options.recompute else self.options.last_steps
        return kept * (2 if flow.guidance > 1 else 1) + (self.options.anchor_weight > 0)

    def objective(
        self,
        context: Context,
        student: Denoiser,
        teacher: Denoiser | None,  # noqa: ARG002 - the contract; it has none
        text: Captions,
    ) -> RewardObjective:
        """Return the objective over student, start, codec, critic and judge; each is tried on real clips before."""
        for slot, bundle in context.bundles.items():
            need_same_captions(slot, context.input, bundle)
        device = context.world.device
        codec: Any = context.input.codec()
        made = {slot: part.build().create(context).eval().to(device) for slot, part in self._parts().items()}
        real = context.latents("train", text)
        index = range(min(TRIED, len(real)))
        latent = real.x0(index).to(device).requires_grad_()
        video = codec.eval().requires_grad_(False).to(device)(latent)
        if not video.requires_grad:
            raise UserError(
                "the VAE's decoder gives no gradient to its latents", mend="Use a VAE whose decoder is differentiable"
            )
        video, captions = video.detach(), real.captions(index)
        need_gradients(self.options.reward.name, made["reward"], video, captions)
        if self.options.judge is not None:
            need_answers(self.options.judge.name, made["judge"], video, captions)
        other = context.slot("start")
        start = other.denoiser() if other is not None else None
        schedule = self.flow(context.input.flow)
        return RewardObjective(
            self.options, student, text, codec, made, schedule, start, sample=context.sampler(schedule)
        )


class RewardObjective:
    """A frozen critic is trained for. A validation asks it and a judge about samples of held-out captions.

    answering: ``reward``, and ``judge`` where there is one.
    start: whose velocities are the anchor; if absent, a copy of the student.
    """

    def __init__(
        self,
        options: RewardOptions,
        student: Denoiser,
        text: Captions,
        codec: nn.Module,
        answering: Mapping[str, Any],
        schedule: Flow,
        start: Denoiser | None = None,
        sample: Callable[..., Tensor] = flow.euler,
    ) -> None:
        self.options, self.student, self.text, self.codec = options, student, text, codec
        self.answering, self.sample = dict(answering), sample
        self.grid, self.guidance = schedule.sigmas(), schedule.guidance
        self.roles = {"student": student_role(student, options), "text": Role(text), "codec": Role(codec)}
        if options.anchor_weight:
            self.start = copy.deepcopy(student) if start is None else start
            self.roles["start"] = Role(self.start)
        self.roles |= {slot: Role(module) for slot, module in self.answering.items()}
        names = {"critic": "reward", "judge": "judge"}
        self.asked = {name: self.answering[slot] for name, slot in names.items() if slot in self.answering}
        shown = [(name, *(f"{name}/{aspect}" for aspect in each.aspects)) for name, each in self.asked.items()]
        self.phases = (Phase("reward", ("student",), shown=tuple(entry for entries in shown for entry in entries)),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - there is one
        """Return the mean negative log-probability of a "yes", and the anchor; in a validation the share of "no"."""
        with torch.no_grad():
            cond = self.text(batch.tokens)
            if batch.held_out:
                return self.validation(batch, cond)
        latent = self.sampled(batch.streams.normal("noise", batch.x0.shape[1:]), cond)
        answers_A = log_yes(self._again(self.answers, latent, batch.captions))
        critic = self.answering["reward"]
        total = reward_loss = -answers_A.mean()
        logged = {f"aspect/{name}": value for name, value in zip(critic.aspects, answers_A, strict=True)}
        if self.options.anchor_weight:
            logged["anchor_loss"] = self.anchor(batch, cond)
            total = total + self.options.anchor_weight * logged["anchor_loss"]
        return {"loss": total, "reward_loss": reward_loss, **logged}

    def sampled(self, noise: Tensor, cond: Cond) -> Tensor:
        """Sample as the result will be; gradients go through the last K steps."""
        begin, x = len(self.grid) - 1 - self.options.last_steps, noise
        if begin:
            with torch.no_grad():
                x = self.walk(x, cond, self.grid[: begin + 1])
        if not self.options.recompute:
            return self.walk(x, cond, self.grid[begin:])
        for pair in pairwise(self.grid[begin:]):
            x = self._again(self.walk, x, cond, pair)
        return x

    def walk(self, x: Tensor, cond: Cond, sigmas: Sequence[float]) -> Tensor:
        """Sample from the first sigma to the last."""
        return self.sample(self.student, x, cond, sigmas, self.guidance)

    def answers(self, latent: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the critic's logits ``[B,A]`` of what the decoder makes, in one piece and unclipped."""
        return self.answering["reward"](self.codec(latent), captions)

    def _again(self, call: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return what a call gives; where that was asked for, nothing inside is kept for the backward pass."""
        return checkpoint(call, *inputs, use_reentrant=False) if self.options.recompute else call(*inputs)

    def anchor(self, batch: Batch, cond: Cond) -> Tensor:
        """Return the distance of velocities to the start's on noised clips, at sampling sigmas drawn with equal odds.

        Clips, not the student's own samples: those would follow it to wherever it goes.
        """
        place = batch.streams.integers("anchor/sigma", len(self.grid) - 1)
        sigma = torch.tensor(self.grid, dtype=batch.x0.dtype).to(batch.x0.device)[place]
        x = flow.interpolate(batch.x0, batch.streams.normal("anchor/noise", batch.x0.shape[1:]), sigma)
        with torch.no_grad():
            target = self.start(x, sigma, cond)
        return flow_loss(self.student(x, sigma, cond), target)

    def validation(self, batch: Batch, cond: Cond) -> dict[str, Tensor]:
        """Return the share of "no" by the judge (without one, by the critic), and each one's "yes" by aspect.

        The judge sees pixels as a viewer does, clipped.
        """
        video = self.codec(self.walk(batch.streams.normal("noise", batch.x0.shape[1:]), cond, self.grid))
        found = {}
        for name, each in self.asked.items():
            shares_A = share_of_yes(each(video if name == "critic" else video.clamp(-1, 1), batch.captions))
            found[name] = shares_A.mean()
            found |= {f"{name}/{aspect}": share for aspect, share in zip(each.aspects, shares_A, strict=True)}
        return {"loss": 1 - found["judge" if "judge" in found else "critic"], **found}
