"""``‖v(x_sigma, sigma, c) - (noise - x0)‖²`` (Eq. 2), with caption dropout for guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.model import flow
from dit_compress.model.flow import Flow
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import student_role, text_lr
from dit_compress.train.losses import flow_loss
from dit_compress.train.objective import Phase, Role

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_flow import FlowOptions


class FlowDistiller(DistillStep):
    """Step ``distill: {use: flow}``."""

    def flow(self, before: Flow) -> Flow:
        """Return the schedule this training used: it is the one to sample with."""
        options = self.options
        return replace(before, shift=options.shift, num_steps=options.sampling_steps, guidance=options.guidance)

    def objective(
        self,
        context: Context,
        student: Denoiser,
        teacher: Denoiser | None,  # noqa: ARG002 - flow matching has none
        text: Captions,
    ) -> FlowObjective:
        """Return the objective of one role and one phase."""
        schedule = self.flow(context.input.flow)
        return FlowObjective(self.options, student, text, text_lr(context, self.options), schedule)


class FlowObjective:
    """Roles ``student`` and (while it is trained) ``text``."""

    phases: tuple[Phase, ...] = (Phase("flow", ("student",)),)

    def __init__(
        self,
        options: FlowOptions,
        student: Denoiser,
        text: Captions,
        text_rate: float | None,
        schedule: Flow | None = None,
    ) -> None:
        self.options, self.student, self.text = options, student, text
        self.schedule = schedule or Flow(options.shift)
        self.roles = {
            "student": student_role(student, options),
            "text": Role(text.requires_grad_(text_rate is not None), lr=text_rate, ema=options.ema or None),
        }
        if text_rate is not None:
            self.phases = (Phase("flow", ("student", "text")),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return Eq. 2 on one batch."""
        sigma, noise = self.noise(batch)
        x = flow.interpolate(batch.x0, noise, sigma)
        dropped = batch.streams.uniform("dropout") < self.options.caption_dropout
        cond = self.text(batch.tokens).drop(dropped)
        return {"loss": flow_loss(self.student(x, sigma, cond), flow.velocity(batch.x0, noise))}

    def noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw sigma ``[B]`` and noise like x0, from the batch's streams."""
        noise = batch.streams.normal("noise", batch.x0.shape[1:])
        options = self.options
        places = batch.streams.positions(options.sigma, options.sigma_mean, options.sigma_std)
        return self.schedule.drawn(places), noise
