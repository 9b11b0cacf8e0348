"""Flow matching: the student learns the velocity of the straight path between noise and data (Eq. 2).

One hook makes another method of it: :meth:`ExampleObjective.target`.

Shapes: B batch, C channels, T H W latent frames, height, width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.model import flow
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import student_role
from dit_compress.train.losses import flow_loss
from dit_compress.train.objective import Phase, Role

if TYPE_CHECKING:
    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from torch import Tensor

    from dit_compress.scaffold.samples.distill import ExampleOptions


class ExampleDistiller(DistillStep):
    """Step ``distill: {use: example}``. Change this: ``flow``, where you distill steps: how the result is sampled."""

    def objective(
        self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions
    ) -> ExampleObjective:
        """Make roles, phases and losses over the loaded models."""
        return ExampleObjective(self.options, student, text, context.input.flow)


class ExampleObjective:
    """The student learns; the text encoder is frozen.

    Every tensor that learns lives in the module of a role with a rate. Change this: further roles (a teacher is
    ``Role(teacher)``, frozen), and further phases, each with the roles that it updates.
    """

    phases: tuple[Phase, ...] = (Phase("example", ("student",)),)

    def __init__(self, options: ExampleOptions, student: Denoiser, text: Captions, schedule: Flow) -> None:
        self.options, self.student, self.text, self.schedule = options, student, text, schedule
        self.roles = {
            "student": student_role(student, options),
            "text": Role(text.requires_grad_(requires_grad=False)),
        }

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, a mean over samples, which is differentiated; any other entry is logged.

        Random numbers come from ``batch.streams`` alone, so that a resumed training repeats them.
        """
        noise_BCTHW = batch.streams.normal("noise", batch.x0.shape[1:])
        sigma_B = self.schedule.drawn(batch.streams.uniform("sigma"))
        x_BCTHW = flow.interpolate(batch.x0, noise_BCTHW, sigma_B)
        cond = self.text(batch.tokens).drop(batch.streams.uniform("dropout") < self.options.caption_dropout)
        target_BCTHW = self.target(batch, noise_BCTHW, x_BCTHW, sigma_B, cond)
        return {"loss": flow_loss(self.student(x_BCTHW, sigma_B, cond), target_BCTHW)}

    def target(self, batch: Batch, noise_BCTHW: Tensor, x_BCTHW: Tensor, sigma_B: Tensor, cond: Cond) -> Tensor:
        """Return the velocity ``[B,C,T,H,W]`` that the student learns at ``x``.

        Change this: a teacher's velocity is ``with torch.no_grad(): return self.teacher(x_BCTHW, sigma_B, cond)``.
        """
        return flow.velocity(batch.x0, noise_BCTHW)
