"""Eq. 7–9: jump from t to t', compare with data noised to t', judge both at t'.

``t`` is drawn from {T1 … TN}. Differs from the paper: ``t'`` is drawn from {T2 … TN, 0}, since with the
literal grid the last sampling step (TN → 0) would never be trained; ``grid: literal`` is Eq. 7 as printed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import student_role
from dit_compress.train.losses import (
    hinge_discriminator,
    hinge_generator,
    pseudo_huber,
    pseudo_huber_elements,
    r1_approximate,
    r1_exact,
)
from dit_compress.train.objective import Phase, Role
from dit_compress_plugins.distill_adversarial.pairs import TeacherPairs, teacher_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.hooks import Part
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_adversarial import AdversarialOptions


class AdversarialDistiller(DistillStep):
    """Step ``distill: {use: adversarial}``."""

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle with its new way of sampling; a discriminator that does not fit is refused."""
        planned = super().plan(spec)
        with suppress(NotImplementedError, RuntimeError):  # a head that needs weights is made when the step runs
            self.part().build().create(spec.build_denoiser().to("meta"))
        return planned

    def flow(self, before: Flow) -> Flow:
        """Return few steps, no guidance."""
        return replace(before, num_steps=self.options.sampling_steps, guidance=1.0)

    def objective(
        self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions
    ) -> AdversarialObjective:
        """Return the objective of the roles student (the generator) and discriminator."""
        judge = self.part().build().create(student)
        if self.options.r1 and self.options.r1_kind == "exact" and context.world.size > 1 and _learns_inside(judge):
            raise UserError(
                "exact R1 needs second derivatives through the discriminator's blocks, which are sharded over "
                f"{context.world.size} processes",
                mend="Set 'r1_kind: approximate', or use a head that learns no blocks (resblock2d_temporal)",
            )
        pairs = None
        if self.options.teacher_samples:
            if teacher is None:
                raise UserError("'teacher_samples' needs a teacher", mend="Add 'teacher: <an earlier step>'")
            pairs = teacher_pairs(context, self.options, teacher, text)
        return AdversarialObjective(self.options, student, judge, text, self.flow(context.input.flow), pairs)

    def part(self) -> Part:
        """Return the discriminator: the recipe's, or the paper's."""
        if self.options.discriminator is not None:
            return self.options.discriminator
        return make_part(
            "discriminator", {"use": "dit_block", "frozen_blocks": self.options.frozen_blocks}, installed()
        )


class AdversarialObjective:
    """Two phases: the discriminator learns to tell, the generator to pass."""

    def __init__(
        self,
        options: AdversarialOptions,
        student: Denoiser,
        judge: nn.Module,
        text: Captions,
        schedule: Flow,
        pairs: TeacherPairs | None,
    ) -> None:
        self.options, self.student, self.judge, self.text, self.pairs = options, student, judge, text, pairs
        self.roles = {
            "student": student_role(student, options),
            "discriminator": Role(judge, lr=options.discriminator_lr),
            "text": Role(text),
        }
        self.phases = (
            Phase("discriminator", ("discriminator",)),
            Phase("generator", ("student",), options.discriminator_warmup, score="reconstruction_loss"),
        )
        grid = schedule.sigmas()
        self.starts = torch.tensor(grid[:-1])
        self.ends = torch.tensor(grid[1:] if options.grid == "with_zero" else grid[1:-1])

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Return Eq. 8 or Eq. 9 and the reconstruction loss."""
        x0, noise, cond = self.clean(batch)
        t, then = self.times(batch)
        x = flow.interpolate(x0, noise, t)
        if phase.name == "discriminator":
            with torch.no_grad():
                fake, sigma = self.fake(batch, x, self.student(x, t, cond), t, then)
            return self.discriminator_loss(batch, self.real(batch, x0, noise, then), fake, sigma, cond)
        velocity = self.student(x, t, cond)
        huber = pseudo_huber if self.options.huber_over == "sample" else pseudo_huber_elements
        reconstruction = huber(flow.predict_x0(x, velocity, t), x0, self.options.huber)
        total = self.options.reconstruction_weight * reconstruction
        logged = {"reconstruction_loss": reconstruction}
        if self.options.adversarial_weight:
            fake, sigma = self.fake(batch, x, velocity, t, then)
            logged["adversarial_loss"] = hinge_generator(self.judge(fake, sigma, cond))
            total = total + self.options.adversarial_weight * logged["adversarial_loss"]
        return {"loss": total, **logged}

    def fake(self, batch: Batch, x: Tensor, velocity: Tensor, t: Tensor, then: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the generator makes, noised as it is judged, and the sigma it is judged at."""
        if self.options.renoise == "grid":
            return flow.jump(x, velocity, t, then), then
        sigma, again = self.renoised(batch)
        return flow.interpolate(flow.predict_x0(x, velocity, t), again, sigma), sigma

    def real(self, batch: Batch, x0: Tensor, noise: Tensor, then: Tensor) -> Tensor:
        """Return clean latents noised alike."""
        if self.options.renoise == "grid":
            return flow.interpolate(x0, noise, then)
        sigma, again = self.renoised(batch)
        return flow.interpolate(x0, again, sigma)

    def renoised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw sigma ``[B]`` and fresh noise: the logit is normal, as sigma / (1 - sigma) is lognormal in SF-V."""
        logit = self.options.renoise_mean + self.options.renoise_std * batch.streams.normal("renoise/sigma", ())
        return torch.sigmoid(logit), batch.streams.normal("renoise", batch.x0.shape[1:])

    def discriminator_loss(
        self, batch: Batch, real: Tensor, fake: Tensor, sigma: Tensor, cond: Cond
    ) -> dict[str, Tensor]:
        """Return Eq. 8, and R1 where it is asked for."""
        judged_real, judged_fake = self.judge(real, sigma, cond), self.judge(fake, sigma, cond)
        right = ((judged_real < 0).float().mean() + (judged_fake > 0).float().mean()) / 2
        hinge = hinge_discriminator(judged_real, judged_fake)
        if not self.options.r1:
            return {"loss": hinge, "accuracy": right}
        penalty = self.penalty(batch, judged_real, real, sigma, cond)
        return {"loss": hinge + self.options.r1 / 2 * penalty, "r1": penalty, "accuracy": right}

    def penalty(self, batch: Batch, judged_BS: Tensor, real: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Return R1 on real samples, exact or approximate."""
        if self.options.r1_kind == "approximate":
            nearby = real + self.options.r1_scale * batch.streams.normal("r1", real.shape[1:])
            return r1_approximate(judged_BS, self.judge(nearby, sigma, cond), self.options.r1_scale)
        return r1_exact(*logits_and_leaf(self.judge, real, sigma, cond))

    def clean(self, batch: Batch) -> tuple[Tensor, Tensor, Cond]:
        """Return x0, noise and condition: of the data, or of the guided teacher's samples."""
        if self.pairs is not None:
            return self.pairs.draw(batch, self.text)
        with torch.no_grad():
            cond = self.text(batch.tokens)
        return batch.x0, batch.streams.normal("noise", batch.x0.shape[1:]), cond

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw t from {T1 … TN} and a lower t' from the grid's ends, per sample."""
        last = len(self.ends)
        start = batch.streams.integers("t", min(len(self.starts), last))
        share = batch.streams.uniform("t_next")
        end = start + (share * (last - start)).long()
        return self.starts.to(start.device)[start], self.ends.to(end.device)[end]


def _learns_inside(judge: nn.Module) -> bool:
    """Tell whether blocks of the generator are what it trains."""
    trunk = getattr(judge, "trunk", None)
    return trunk is not None and any(parameter.requires_grad for parameter in trunk.parameters())


def logits_and_leaf(judge: nn.Module, latent: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Return logits, and the tensor whose slope R1 is about: the feature after the frozen blocks, else the latent.

    A discriminator says where it begins to learn by ``trunk`` (a denoiser) and ``frozen_blocks``. Attention is
    computed plainly: the fused kernels have no second derivative.
    """
    trunk, frozen = getattr(judge, "trunk", None), getattr(judge, "frozen_blocks", 0)
    with sdpa_kernel(SDPBackend.MATH):
        if trunk is None or not frozen:
            leaf = latent.detach().requires_grad_()
            return judge(leaf, sigma, cond), leaf
        with trunk.leaf(frozen - 1) as leaves:
            logits = judge(latent, sigma, cond)
        return logits, leaves[0]
