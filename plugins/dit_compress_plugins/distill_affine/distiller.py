"""``L = L_flow + alpha · mean_g sim(y_T, A_g·y_S + b_g)`` (Eq. 5–6), same x and sigma for both models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import block_pairs, descends, group_pairs, student_role
from dit_compress.train.losses import cosine_distance, flow_loss, relative_squared_distance, squared_distance
from dit_compress.train.objective import Phase, Role, Weighing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_affine import AffineOptions


SIMS = {"cosine": cosine_distance, "mse": squared_distance, "relative_mse": relative_squared_distance}


class AffineDistiller(DistillStep):
    """Step ``distill: {use: affine}``; also a search's objective.

    The student is sampled as its teacher is; without guidance, where it learns what that does.
    """

    def flow(self, before: Flow) -> Flow:
        """Return the schedule of the input, without guidance where the student has learnt it."""
        return before if self.options.guidance is None else replace(before, guidance=1.0)

    def misfits(self, spec: Spec, others: Mapping[str, Spec]) -> list[UserError]:
        """Return what to say where the student was not made of its teacher: no block is known to come from another."""
        if descends(spec, others.get("teacher")):
            return []
        what = "the student does not descend from this teacher: another model, or pruned otherwise"
        mend = (
            "Name the bundle the student was pruned from as 'teacher', or take 'use: scaled', which learns from any "
            "teacher of the same latents"
        )
        return [UserError(what, mend=mend)]

    def objective(
        self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions
    ) -> AffineObjective:
        """Return the objective of the roles student, teacher (frozen) and aligner."""
        if teacher is None:
            raise UserError(f"step {context.name!r} has no teacher", mend="Add 'teacher: <an earlier step>'")
        stack = teacher.structure().main  # of a student that lost most of its blocks another one is the longest
        length = student.structure().stack(stack.path).length
        origins = block_pairs(context.input, context.slot("teacher"), length, stack.path)
        pairs = group_pairs(origins, stack.length, self.options.groups, self.options.pairs)
        return AffineObjective(self.options, student, teacher, text, pairs, context.input.flow)


class AffineObjective:
    """Flow matching plus similarity of aligned features.

    The aligner's buffers hold the weight of the features, and the terms' shares in the gradient as measured last.
    """

    def __init__(
        self,
        options: AffineOptions,
        student: Denoiser,
        teacher: Denoiser,
        text: Captions,
        pairs: list[tuple[int, int]],
        schedule: Flow,
    ) -> None:
        self.options, self.student, self.teacher, self.text = options, student, teacher, text
        self.pairs, self.schedule = pairs, schedule
        self.stack = teacher.structure().main.path
        width_S, width_T = student.stream_width(), teacher.stream_width()
        self.aligner = nn.ModuleList([affine_map(width_S, width_T) for _ in pairs])
        shares = {"feature_loss": "kd_share"} | ({"output_loss": "output_share"} if options.output_weight else {})
        for name, value in {"alpha": options.alpha or 0.0, **dict.fromkeys(shares.values(), 0.0)}.items():
            self.aligner.register_buffer(name, torch.tensor(value))
        self.shares, self.sim = shares, SIMS[options.sim]
        self.roles = {
            "student": student_role(student, options),
            "aligner": Role(self.aligner, lr=options.lr),
            "teacher": Role(teacher),
            "text": Role(text),
        }
        score = "flow_loss" if options.guidance is None else "output_loss"  # guided, it leaves the data's velocity
        instead = "" if options.kd_share is None else "alpha"
        weighing = Weighing(("flow_loss", *shares), "student", options.share_every, self.weigh, instead)
        self.phases = (Phase("affine", ("student", "aligner"), score=score, weighing=weighing),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return Eq. 6 on one batch."""
        noise = batch.streams.normal("noise", batch.x0.shape[1:])
        options = self.options
        sigma = self.schedule.drawn(batch.streams.positions(options.sigma, options.sigma_mean, options.sigma_std))
        x = flow.interpolate(batch.x0, noise, sigma)
        with torch.no_grad():
            cond = self.text(batch.tokens).drop(batch.streams.uniform("dropout") < options.caption_dropout)
            target, y_T = self.teacher.features(x, sigma, cond, [teacher for _, teacher in self.pairs], self.stack)
        predicted, y_S = self.student.features(x, sigma, cond, [student for student, _ in self.pairs], self.stack)
        flow_part = flow_loss(predicted, flow.velocity(batch.x0, noise))
        distances = [self.sim(affine(y_S[s]), y_T[t]) for affine, (s, t) in zip(self.aligner, self.pairs, strict=True)]
        feature_part = torch.stack(distances).mean()
        total = flow_part + self.aligner.get_buffer("alpha") * feature_part
        logged = {"flow_loss": flow_part, "feature_loss": feature_part}
        if options.output_weight:
            # Differs from the paper: the teacher's velocity as a second target, off by default.
            logged["output_loss"] = flow_loss(predicted, self.guided(target, x, sigma, cond))
            total = total + options.output_weight * logged["output_loss"]
        return {"loss": total, **logged, **dict(self.aligner.named_buffers())}

    @torch.no_grad()
    def guided(self, velocity: Tensor, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Return the teacher's velocity as guidance makes it; as it is where none is to be learnt.

        An output term of weight w at guidance g, beside the flow term, teaches guidance 1 + (g - 1) w / (1 + w).
        """
        if self.options.guidance is None:
            return velocity
        everything = torch.ones(len(x), dtype=torch.bool, device=x.device)
        without = self.teacher(x, sigma, cond.drop(everything))
        return without + self.options.guidance * (velocity - without)

    def weigh(self, norms: Mapping[str, float]) -> None:
        """Note the weighted terms' gradients over the flow's, then set alpha where its share is what is given.

        The share noted is that of the alpha which trained until now; at first, when there was none, of the new one.
        """
        flow_norm, wanted, buffers = norms["flow_loss"], self.options.kd_share, dict(self.aligner.named_buffers())
        if not all(map(math.isfinite, norms.values())) or not flow_norm:
            return  # the loop raises over losses that are not finite
        trained_by = float(buffers["alpha"])
        if wanted is not None and norms["feature_loss"]:
            buffers["alpha"].fill_(wanted * flow_norm / norms["feature_loss"])
        weights = {"feature_loss": trained_by or float(buffers["alpha"]), "output_loss": self.options.output_weight}
        for term, name in self.shares.items():
            buffers[name].fill_(weights[term] * norms[term] / flow_norm)


def affine_map(width_S: int, width_T: int) -> nn.Linear:
    """Make ``A_g, b_g`` of Eq. 5, from the identity (the student starts as a part of its teacher)."""
    layer = nn.Linear(width_S, width_T)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
