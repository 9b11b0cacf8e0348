"""``mean over networks of ‖v - (noise - x0)‖² + kd_weight·‖v_sub - sg(v_super)‖²`` (SnapGen++).

The whole model and, at each step, some of the widths nested in it, as masks: a masked width computes what the one that
is cut out computes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError
from dit_compress.core.randomness import generator
from dit_compress.model import flow
from dit_compress.search.levels import found_axes, named_levels
from dit_compress.structure.files.pruned import log_of
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.structure.nesting import need_nesting, nesting_of
from dit_compress.train.base import DistillStep
from dit_compress.train.distill import student_role, text_lr
from dit_compress.train.losses import flow_loss
from dit_compress.train.objective import Phase, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dit_compress.model.denoiser import Cond, Denoiser
    from dit_compress.model.flow import Flow
    from dit_compress.model.spec import Spec
    from dit_compress.model.text import Captions
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis
    from dit_compress.structure.nesting import Nesting
    from dit_compress.train.objective import Batch
    from dit_compress_plugins.distill_elastic import ElasticOptions


class ElasticDistiller(DistillStep):
    """Step ``distill: {use: elastic}``. The model is sampled as its input is, whatever its width."""

    def plan(self, spec: Spec) -> Spec:
        """Return the bundle as it will be sampled; raise where it has no widths, or fewer than are drawn."""
        spec = super().plan(spec)
        nesting = nesting_of(spec.need_denoiser().log)
        if nesting is None:
            raise UserError(
                "the model has one width alone, and this trains several together",
                mend="Put a step 'prune: {use: nested, widths: [0.375, 0.5, 1]}' before it",
            )
        below = len(nesting.widths) - 1
        if self.options.subnets > below:
            raise UserError(
                f"'subnets: {self.options.subnets}' are drawn of the widths {nesting}, of which {below} are below 1",
                mend=f"Set 'subnets: {below}' at most",
            )
        return spec

    def objective(
        self,
        context: Context,
        student: Denoiser,
        teacher: Denoiser | None,  # noqa: ARG002 - the whole model is its own
        text: Captions,
    ) -> ElasticObjective:
        """Return the objective of one role and one phase; the text encoder is trained with it where it is new."""
        nesting, rate = need_nesting(log_of(student.module)), text_lr(context, self.options)
        return ElasticObjective(self.options, student, nesting, text, context.input.flow, rate)


class ElasticObjective:
    """Roles ``student`` (the whole model) and, while it is trained, ``text``."""

    def __init__(
        self,
        options: ElasticOptions,
        student: Denoiser,
        nesting: Nesting,
        text: Captions,
        schedule: Flow,
        text_rate: float | None = None,
    ) -> None:
        self.options, self.student, self.text, self.schedule = options, student, text, schedule
        self.nesting, self.axes = nesting, nested_axes(student, nesting)
        # A mask of a weight that no module applies takes the weight's place, which must be whole then.
        whole = any(point.side == "parameter" for axis in self.axes for point in axis.masks)
        self.roles = {
            "student": replace(student_role(student, options), whole=whole),
            "text": Role(text.requires_grad_(text_rate is not None), lr=text_rate, ema=options.ema or None),
        }
        moving = ("student",) if text_rate is None else ("student", "text")
        self.phases = (Phase("elastic", moving, shown=tuple(name_of(width) for width in nesting.widths)),)
        self.masks: dict[float, dict[str, Tensor]] = {}

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return the mean over a step's networks, and its parts; of a validation over all, with the loss of each."""
        options = self.options
        noise = batch.streams.normal("noise", batch.x0.shape[1:])
        places = batch.streams.positions(options.sigma, options.sigma_mean, options.sigma_std)
        sigma = self.schedule.drawn(places)
        x, target = flow.interpolate(batch.x0, noise, sigma), flow.velocity(batch.x0, noise)
        cond = self.text(batch.tokens).drop(batch.streams.uniform("dropout") < options.caption_dropout)
        below = self.nesting.widths[:-1]
        widths = below if batch.held_out else drawn(options, below, batch.streams.seed, batch.step)
        whole = self.student(x, sigma, cond)
        narrow = [self.velocity(width, x, sigma, cond) for width in widths]
        flows = torch.stack([flow_loss(velocity, target) for velocity in (*narrow, whole)])
        distances = torch.stack([flow_loss(velocity.float(), whole.detach().float()) for velocity in narrow])
        total = over_networks(flows, distances, options.kd_weight)
        found = {"flow_loss": flows[-1], "sub_flow_loss": flows[:-1].mean(), "kd_loss": distances.mean()}
        if batch.held_out:
            found |= {name_of(width): value for width, value in zip((*widths, 1.0), flows, strict=True)}
        return {"loss": total, **found}

    def velocity(self, width: float, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Return what the model gives at one of its widths."""
        if width not in self.masks:
            self.masks[width] = hard_masks(self.axes, self.nesting.kept(width), x)
        with masked(self.student.module, self.axes, self.masks[width]):
            return self.student(x, sigma, cond)


def over_networks(flows: Tensor, distances: Tensor, kd_weight: float) -> Tensor:
    """Return the mean over networks of their flow losses ``[N]``, the narrow ones' distances ``[N-1]`` added."""
    return (flows.sum() + kd_weight * distances.sum()) / len(flows)


def name_of(width: float) -> str:
    """Name the loss of a width, as a validation logs it."""
    return f"flow_loss_{width:g}"


def drawn(options: ElasticOptions, widths: Sequence[float], seed: int, step: int) -> list[float]:
    """Draw the widths of a step, rising: each set is equally likely; the smallest always in, where that is asked for.

    A function of seed and step, so that it is the same in every part of a batch, on every process, and after a kill.
    """
    always = list(widths[:1]) if options.sandwich else []
    others = [width for width in widths if width not in always]
    rng = generator(seed, "width", step)
    return sorted([*always, *rng.choice(others, options.subnets - len(always), replace=False).tolist()])


def nested_axes(denoiser: Denoiser, nesting: Nesting) -> list[Axis]:
    """Return the axes that widths cut; UserError where the model has them no more by their names."""
    found, _ = found_axes(named_levels(nesting.levels), denoiser)
    axes = [axis for axes in found.values() for axis in axes]
    if lost := {name for width in nesting.widths for name in nesting.kept(width)} - {axis.name for axis in axes}:
        raise UserError(
            f"its widths cut {sorted(lost)[0]!r}, which is found in it no more",
            mend="Make the widths again by 'prune: nested'",
        )
    return axes
