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
    from dit_compress.hooks import Part
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context


class AdversarialDistiller(DistillStep):
    """Step ``distill: {use: adversarial}``."""

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle with its new way of sampling; a discriminator that does not fit is refused."""
        planned = super().plan(spec)
        with suppress(NotImplementedError, RuntimeError):  # a head that needs weights is made when the step runs
            self.part().build().create(spec.outline())
        return planned

    def held(self, student: Denoiser) -> int:
        """Count the student's parameters and the discriminator's."""
        return super().held(student) + sum(size for size, _ in self._judges(student))

    def trained(self, student: Denoiser) -> int:
        """Count those of both that are trained."""
        return super().trained(student) + sum(size for size, moves in self._judges(student) if moves)

    def _judges(self, student: Denoiser) -> list[tuple[int, bool]]:
        """List sizes of the discriminator's parameters, and whether they are trained; none if it can't be made yet."""
        if not self.options.adversarial_weight:
            return []
        with suppress(NotImplementedError, RuntimeError):
            judge = self.part().build().create(student)
            return [(parameter.numel(), parameter.requires_grad) for parameter in judge.parameters()]
        return []

    def flow(self, before: Flow) -> Flow:
        """Return few steps, no guidance."""
        return replace(before, num_steps=self.options.sampling_steps, guidance=1.0)

    def objective(
        self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions
    ) -> AdversarialObjective:
        """Return the objective of the roles student (the generator) and discriminator."""
        judge = self.part().build().create(student)
        if self.options.r1 and self.options.r1_kind == "exact" and context.world.size > 1 and learns_inside(judge):
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

    def part(self) -> Part:
        """Return the discriminator: the recipe's, or the paper's."""
        if self.options.discriminator is not None:
            return self.options.discriminator
        return make_part(
            "discriminator", {"use": "dit_block", "frozen_blocks": self.options.frozen_blocks}, installed()
        )
