"""What a choice of units costs: a distiller's loss of the masked model, on batches that are drawn once.

Equal batches, noise and noise levels for every choice make the losses comparable.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dit_compress.structure.masks import hard_masks, masked
from dit_compress.train.loop import draw_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from dit_compress.context import Context
    from dit_compress.hooks import Part
    from dit_compress.structure.axes import Axis, Kept
    from dit_compress.structure.search import SearchProblem
    from dit_compress.train.objective import Batch, Objective
    from dit_compress.train.options import ProbeOptions


class Trial:
    """The loss of a module under masks, mean over fixed batches. ``count``: losses measured so far."""

    def __init__(self, objective: Objective, module: nn.Module, axes: Sequence[Axis], batches: Sequence[Batch]) -> None:
        self.objective, self.module, self.axes, self.batches = objective, module, tuple(axes), tuple(batches)
        self.count = 0
        self._like = next(module.parameters())

    @torch.no_grad()
    def loss(self, kept: Kept) -> float:
        """Mean loss with only ``kept`` (axes not named stay whole)."""
        self.count += 1
        shortened = {
            axis.name: kept[axis.name] for axis in self.axes if axis.name in kept and len(kept[axis.name]) < axis.units
        }
        with masked(self.module, self.axes, hard_masks(self.axes, shortened, self._like)):
            return sum(float(self._loss(batch)) for batch in self.batches) / len(self.batches)

    def gradients(self) -> dict[str, Tensor]:
        """Per axis ``[samples, units]``: the derivative of each sample's loss by each mask, at the whole model.

        A loss is a mean over its batch, so each sample's derivative is the batch size times what autograd gives.
        """
        found: dict[str, list[Tensor]] = {axis.name: [] for axis in self.axes}
        for batch in self.batches:
            size = len(batch.sample)
            ones = {axis.name: torch.ones(size, axis.units).to(self._like).requires_grad_() for axis in self.axes}
            with torch.enable_grad(), masked(self.module, self.axes, ones):
                slopes = torch.autograd.grad(self._loss(batch), list(ones.values()), allow_unused=True)
            for (name, mask), slope in zip(ones.items(), slopes, strict=True):
                found[name].append(torch.zeros_like(mask) if slope is None else slope * size)
        return {name: torch.cat(rows).detach() for name, rows in found.items()}

    def _loss(self, batch: Batch) -> Tensor:
        return self.objective.loss(self.objective.phases[0], batch)["loss"]


@contextmanager
def trial(problem: SearchProblem, context: Context, objective: Part, options: ProbeOptions) -> Iterator[Trial]:
    """A trial of the problem's denoiser; the whole model is the teacher of objectives that have one.

    The denoiser is in evaluation mode inside; it is left frozen, its weights untouched.
    """
    student, text = problem.denoiser, context.text()
    training = student.training
    built = objective.build().objective(context, student, copy.deepcopy(student), text)
    for role in built.roles.values():
        role.module.requires_grad_(requires_grad=False).eval()
    samples = context.latents("train", text)
    batches = [draw_batch(samples, options.batch, context.seed, step) for step in range(options.batches)]
    try:
        yield Trial(built, student.module, problem.axes, batches)
    finally:
        student.train(training)
