"""``S(task, output) + S(task, feature)`` with ``S(a, b) = alpha·a + (1 - alpha)·(|a|/|b|)·b`` (SnapGen)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dit_compress.core.errors import UserError
from dit_compress.model import flow
from dit_compress.model.conditions import beyond_text
from dit_compress.model.text import Captions
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import student_role, text_lr
from dit_compress.train.features import grid_of, last_feature, other_tokens, projection, resampled
from dit_compress.train.losses import per_sample
from dit_compress.train.objective import Phase, Role
from dit_compress_plugins.distill_scaled.scaling import bins_of, scaled, task_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.step.context import Context
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_scaled import ScaledOptions


class ScaledDistiller(DistillStep):
    """Step ``distill: {use: scaled}``. The student is sampled as its input is."""

    def misfits(self, spec: Spec, others: Mapping[str, Spec]) -> list[UserError]:
        """Return what to say where last features can't be compared."""
        if not self.options.features or "teacher" not in others:
            return []
        ours = other_tokens(spec.outline(), "student", "features: false")
        return ours + other_tokens(others["teacher"].outline(), "teacher", "features: false")

    def objective(
        self, context: Context, student: Denoiser, teacher: Denoiser | None, text: Captions
    ) -> ScaledObjective:
        """Return the objective of the roles student, projector, teacher, and text, trained where it is new."""
        known = context.slot("teacher")
        if teacher is None or known is None:
            raise UserError(f"step {context.name!r} has no teacher", mend="Add 'teacher: <an earlier step>'")
        rate = text_lr(context, self.options)
        same = rate is None and (not known.spec.text or known.digest("text") == context.input.digest("text"))
        theirs = None if same else Captions(known.text())
        return ScaledObjective(self.options, student, teacher, text, context.input.flow, rate, theirs)


class RunningMeans(nn.Module):
    """Running means of each loss by noise level, of which the balance is taken: buffers ``[bins]``, at first 0."""

    def __init__(self, terms: tuple[str, ...], bins: int, decay: float) -> None:
        super().__init__()
        self.terms, self.bins, self.decay = terms, bins, decay
        for name in ("task", *terms):
            self.register_buffer(name, torch.zeros(bins))

    def ratio(self, term: str, bin_B: Tensor) -> Tensor:
        """Return ``|task| / |kd|`` at the bins of some samples; 1 where none was seen."""
        task, kd = self.get_buffer("task")[bin_B], self.get_buffer(term)[bin_B]
        return torch.where(kd > 0, task / kd.clamp_min(torch.finfo(kd.dtype).tiny), 1.0)

    def shares(self, losses: Mapping[str, Tensor], bin_B: Tensor) -> dict[str, Tensor]:
        """Return how much of each loss' mean over the samples lies in each bin."""
        inside = torch.arange(self.bins, device=bin_B.device)[:, None] == bin_B
        return {
            f"{name}@{place}": value
            for name, loss in losses.items()
            for place, value in enumerate((loss.detach() * inside).mean(dim=1))
        }

    def take(self, values: dict[str, float]) -> None:
        """Take these shares, of a whole step, out of what was logged, and move the means by them."""
        for name in ("task", *self.terms):
            seen = torch.tensor([values.pop(f"{name}@{place}") for place in range(self.bins)])
            mean = self.get_buffer(name)
            mean.lerp_(seen.to(mean), 1 - self.decay)


class ScaledObjective:
    """Flow matching, the teacher's velocity and its last feature, balanced at each noise level.

    teacher_text: the teacher's own text encoder, where it is not the student's.
    """

    def __init__(
        self,
        options: ScaledOptions,
        student: Denoiser,
        teacher: Denoiser,
        text: Captions,
        schedule: Flow,
        text_rate: float | None = None,
        teacher_text: Captions | None = None,
    ) -> None:
        self.options, self.student, self.teacher, self.schedule = options, student, teacher, schedule
        self.text, self.teacher_text = text.requires_grad_(text_rate is not None), teacher_text
        self.terms = ("output", "feature") if options.features else ("output",)
        self.projector = projection(student.stream_width(), teacher.stream_width())
        self.means = RunningMeans(self.terms, options.bins, options.ratio_decay)
        student.add_module("means", self.means)  # of a trained role, so that checkpoints hold them; in no bundle
        self.roles = {
            "student": student_role(student, options),
            "teacher": Role(teacher),
            "text": Role(text, lr=text_rate, ema=options.ema or None),
        }
        if options.features:
            self.roles["projector"] = Role(self.projector, lr=options.lr)
        if teacher_text is not None:
            self.roles["teacher_text"] = Role(teacher_text)
        moving = tuple(name for name, role in self.roles.items() if role.lr is not None)
        self.phases = (Phase("scaled", moving, score="flow_loss", tell=self.means.take),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return the sum on one batch, its parts, and what the running means are made of."""
        noise = batch.streams.normal("noise", batch.x0.shape[1:])
        options = self.options
        places = batch.streams.positions(options.sigma, options.sigma_mean, options.sigma_std)
        sigma = self.schedule.drawn(places)
        x, drop = flow.interpolate(batch.x0, noise, sigma), batch.streams.uniform("dropout")
        losses = self.losses(x, sigma, flow.velocity(batch.x0, noise), *self.captions(batch, drop))
        where = bins_of(sigma, options.bins)
        logged = {f"{'flow' if name == 'task' else name}_loss": value.mean() for name, value in losses.items()}
        total = losses["task"]
        if self.options.weight is not None:
            total = total + self.options.weight * sum(losses[name] for name in self.terms)
        else:
            ratios = {name: self.means.ratio(name, where) for name in self.terms}
            share = task_share(sigma)
            parts = [scaled(losses["task"], losses[name], share, ratios[name]) for name in self.terms]
            total = torch.stack(parts).sum(dim=0)
            logged |= {f"{name}_ratio": value.mean() for name, value in ratios.items()}
        return {"loss": total.mean(), **logged, **self.means.shares(losses, where)}

    def losses(self, x: Tensor, sigma: Tensor, velocity: Tensor, cond: Cond, teacher_cond: Cond) -> dict[str, Tensor]:
        """Return each loss per sample: of the data's velocity, of the teacher's, of its last feature."""
        with torch.no_grad():
            target, y_T = last_feature(self.teacher, x, sigma, teacher_cond)
        predicted, y_S = last_feature(self.student, x, sigma, cond)
        found = {"task": per_sample((predicted - velocity).square())}
        found["output"] = per_sample((predicted.float() - target.float()).square())
        if self.options.features:
            y_S = resampled(self.projector(y_S), grid_of(self.student, x), grid_of(self.teacher, x))
            found["feature"] = per_sample((y_S.float() - y_T.float()).square())
        return found

    def captions(self, batch: Batch, drop: Tensor) -> tuple[Cond, Cond]:
        """Return the student's conditions and the teacher's; the same captions are dropped."""
        where = drop < self.options.caption_dropout
        cond = self.text(batch.tokens).drop(where)
        if self.teacher_text is None:
            return cond, cond.detach()
        with torch.no_grad():
            theirs = self.teacher_text.cond(batch.captions).to(batch.x0.device)
            return cond, theirs.beside(beyond_text(batch.tokens)).drop(where)
