"""Eq. 7–9: jump from t to t', compare with data noised to t', judge both at t'.

``t`` is drawn from {T1 … TN}. Differs from the paper: ``t'`` is drawn from {T2 … TN, 0}, since with the
literal grid the last sampling step (TN → 0) would never be trained; ``grid: literal`` is Eq. 7 as printed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from dit_compress import flow
from dit_compress.errors import UserError
from dit_compress.flow import Flow
from dit_compress.plugins import installed
from dit_compress.recipe import make_part
from dit_compress.train.distill import distill
from dit_compress.train.losses import hinge_discriminator, hinge_generator, pseudo_huber
from dit_compress.train.objective import Phase, Role
from dit_compress_plugins.distill_adversarial.pairs import TeacherPairs, teacher_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.context import Context, Result
    from dit_compress.denoiser import Cond, Denoiser
    from dit_compress.encode import Captions
    from dit_compress.hooks import Part
    from dit_compress.spec import Spec
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_adversarial import AdversarialOptions


class AdversarialDistiller:
    """Step ``distill: {use: adversarial}``."""

    def __init__(self, options: AdversarialOptions) -> None:
        self.options = options

    def plan(self, spec: Spec) -> Spec:
        """Training changes weights, and how the model is sampled."""
        spec.need_denoiser()
        spec.need_latent()
        return replace(spec, flow=self.flow(spec.flow))

    def run(self, context: Context) -> Result:
        """Train."""
        return distill(self, context)

    def flow(self, before: Flow) -> Flow:
        """Few steps, no guidance."""
        return Flow(before.shift, self.options.sampling_steps, 1.0)

    def objective(
        self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions
    ) -> AdversarialObjective:
        """Roles: student (the generator), discriminator."""
        judge = self.part().build().create(student)
        pairs = None
        if self.options.teacher_samples:
            if teacher is None:
                raise UserError("'teacher_samples' needs a teacher", mend="Add 'teacher: <an earlier step>'")
            pairs = teacher_pairs(context, self.options, teacher, text)
        return AdversarialObjective(self.options, student, judge, text, self.flow(context.input.flow), pairs)

    def part(self) -> Part:
        """The discriminator: the recipe's, or the paper's."""
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
        student.requires_grad_()
        self.roles = {
            "student": Role(
                student,
                lr=options.lr,
                muon_lr=options.muon_lr,
                weight_decay=options.weight_decay,
                ema=options.ema or None,
            ),
            "discriminator": Role(judge, lr=options.discriminator_lr),
            "text": Role(text),
        }
        self.phases = (
            Phase("discriminator", ("discriminator",)),
            Phase("generator", ("student",), start=options.discriminator_warmup),
        )
        grid = schedule.sigmas()
        self.starts = torch.tensor(grid[:-1])
        self.ends = torch.tensor(grid[1:] if options.grid == "with_zero" else grid[1:-1])

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Eq. 8 or Eq. 9 and the reconstruction loss."""
        x0, noise, cond = self.clean(batch)
        t, then = self.times(batch)
        x = flow.interpolate(x0, noise, t)
        if phase.name == "discriminator":
            with torch.no_grad():
                fake = flow.jump(x, self.student(x, t, cond), t, then)
            real = flow.interpolate(x0, noise, then)
            judged_real, judged_fake = self.judge(real, then, cond), self.judge(fake, then, cond)
            right = ((judged_real < 0).float().mean() + (judged_fake > 0).float().mean()) / 2
            return {"loss": hinge_discriminator(judged_real, judged_fake), "accuracy": right}
        velocity = self.student(x, t, cond)
        reconstruction = pseudo_huber(flow.predict_x0(x, velocity, t), x0, self.options.huber)
        total = self.options.reconstruction_weight * reconstruction
        logged = {"reconstruction_loss": reconstruction}
        if self.options.adversarial_weight:
            fake = flow.jump(x, velocity, t, then)
            logged["adversarial_loss"] = hinge_generator(self.judge(fake, then, cond))
            total = total + self.options.adversarial_weight * logged["adversarial_loss"]
        return {"loss": total, **logged}

    def clean(self, batch: Batch) -> tuple[Tensor, Tensor, Cond]:
        """x0, noise and condition: of the data, or of the guided teacher's samples."""
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
        return self.starts[start], self.ends[end]
