"""A short training of a pruned model by flow matching (Eq. 2), to be gone on with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.model import flow
from dit_compress.step.world import World
from dit_compress.train.distill import student_role
from dit_compress.train.loop import train_step
from dit_compress.train.lora import add_lora
from dit_compress.train.losses import flow_loss
from dit_compress.train.objective import Phase, Role
from dit_compress.train.targets import linears
from dit_compress.train.trainee import trainees_of

if TYPE_CHECKING:
    from torch import Tensor

    from dit_compress.data.samples import Samples
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress.train.options import TrainOptions


class FlowMatching:
    """The objective: the velocity of the data, at noise levels spread as the schedule samples them."""

    phases: tuple[Phase, ...] = (Phase("heal", ("student",)),)

    def __init__(self, student: Denoiser, text: Captions, schedule: Flow, role: Role | None = None) -> None:
        self.student, self.text, self.schedule = student, text, schedule
        self.roles = {"student": role or Role(student), "text": Role(text)}

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return Eq. 2 on one batch; no caption is dropped."""
        sigma = self.schedule.drawn(batch.streams.positions("uniform"))
        noise = batch.streams.normal("noise", batch.x0.shape[1:])
        x = flow.interpolate(batch.x0, noise, sigma)
        return {"loss": flow_loss(self.student(x, sigma, self.text(batch.tokens)), flow.velocity(batch.x0, noise))}


class Healing:
    """One model on its way back: weights and optimisers stay between calls, so that more steps are just more.

    Every process heals alone and alike. Nothing is logged, and nothing saved: a step that is killed begins anew.
    rank: of LoRA on the linears inside blocks, the weights frozen; None trains the weights themselves.
    """

    def __init__(
        self,
        student: Denoiser,
        text: Captions,
        samples: Samples,
        options: TrainOptions,
        context: Context,
        rank: int | None = None,
    ) -> None:
        self.student, self.samples, self.options = student, samples, options
        self.context = replace(context, world=World(device=context.world.device))
        role = student_role(student, options)
        if rank is not None:
            add_lora(student.module, linears(student), rank, context.seed)
        self.objective = FlowMatching(student, text, context.input.flow, role)
        for each in self.objective.roles.values():
            each.module.to(context.world.device)
        self.trainees = trainees_of(self.objective.roles, self.context.world)
        self.done = 0

    def advance(self, steps: int) -> None:
        """Train for so many steps more."""
        for step in range(self.done, self.done + steps):
            train_step(self.objective, self.trainees, self.samples, self.options, self.context, step)
        self.done += steps
