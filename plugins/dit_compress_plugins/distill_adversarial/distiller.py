"""The step of Eq. 7–9: few sampling steps, a discriminator made from the student, pairs that the teacher made."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import need_same_captions
from dit_compress_plugins.distill_adversarial.objective import AdversarialObjective
from dit_compress_plugins.distill_adversarial.pairs import teacher_pairs
from dit_compress_plugins.distill_adversarial.penalty import learns_inside

if TYPE_CHECKING:
    from torch import nn

    from dit_compress.hooks import Part
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context


class AdversarialDistiller(DistillStep):
    """Step ``distill: {use: adversarial}``."""

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle as it will be sampled; UserError where an expert has too few steps of the schedule."""
        after = super().plan(spec)
        if self.options.renoise == "grid" and len(after.flow.calls()) == 1:
            raise UserError(
                f"one of the {after.flow.num_steps} steps falls to this expert, and the grid has no t' to judge at",
                mend="Take 'renoise: logit_normal', or more 'sampling_steps'",
            )
        return after

    def num_parameters(self, student: Denoiser) -> tuple[int, int]:
        """Count those of the student and of the discriminator; one that does not fit is refused."""
        held, trained = super().num_parameters(student)
        with suppress(NotImplementedError, RuntimeError):  # a head that needs weights is made when the step runs
            judge = self.judge(student)
            for parameter in judge.parameters() if judge is not None else ():
                held += parameter.numel()
                trained += parameter.numel() * parameter.requires_grad
        return held, trained

    def flow(self, before: Flow) -> Flow:
        """Return few steps, no guidance."""
        return replace(before, num_steps=self.options.sampling_steps, guidance=1.0)

    def objective(
        self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions
    ) -> AdversarialObjective:
        """Return the objective of the roles student (the generator) and discriminator."""
        judge, exact = self.judge(student), self.options.r1 and self.options.r1_kind == "exact"
        if judge is not None and exact and context.world.size > 1 and learns_inside(judge):
            raise UserError(
                "exact R1 needs second derivatives through the discriminator's blocks, which are sharded over "
                f"{context.world.size} processes",
                mend="Set 'r1_kind: approximate', or use a head that learns no blocks (resblock2d_temporal)",
            )
        pairs = None
        if self.options.teacher_samples:
            if teacher is None:
                raise UserError("'teacher_samples' needs a teacher", mend="Add 'teacher: <an earlier step>'")
            for slot, other in context.bundles.items():
                need_same_captions(slot, context.input, other)
            pairs = teacher_pairs(context, self.options, teacher, text)
        return AdversarialObjective(self.options, student, judge, text, self.flow(context.input.flow), pairs)

    def judge(self, student: Denoiser) -> nn.Module | None:
        """Make the discriminator; None where nothing is judged."""
        return self.part().build().create(student) if self.options.adversarial_weight else None

    def part(self) -> Part:
        """Return the discriminator: the recipe's, or the paper's."""
        if self.options.discriminator is not None:
            return self.options.discriminator
        return make_part(
            "discriminator", {"use": "dit_block", "frozen_blocks": self.options.frozen_blocks}, installed()
        )
