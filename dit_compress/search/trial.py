"""The cost of a choice of units: a distiller's loss of the masked model, on batches that are drawn once.

Equal batches, noise and noise levels for every choice make the losses comparable.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError
from dit_compress.structure.copies import shared_copy
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.train.loop import draw_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dit_compress.plugin.options import Part
    from dit_compress.search.problem import SearchProblem
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Kept
    from dit_compress.train.objective import Batch, Objective
    from dit_compress.train.options import ProbeOptions


class Trial:
    """The loss of a problem's module under masks, mean over batches. ``count``: losses measured so far.

    entry: of the objective's losses, the one that is measured. The total raises a UserError where only training weighs
    its terms.
    """

    def __init__(
        self, objective: Objective, problem: SearchProblem, batches: Sequence[Batch], entry: str = "loss"
    ) -> None:
        weighing = objective.phases[0].weighing
        if entry == "loss" and weighing is not None and weighing.instead:
            raise UserError(
                "the objective's terms are weighed while it trains, and this search trains nothing",
                where=objective.phases[0].name,
                mend=f"Give {weighing.instead!r} in the search's 'objective'",
            )
        self.entry = entry
        self.objective, self.module, self.batches = objective, problem.denoiser.module, tuple(batches)
        self.axes, self.fixed = problem.axes, problem.fixed
        self.count = 0
        self._like = next(self.module.parameters())

    @torch.no_grad()
    def loss(self, kept: Kept) -> float:
        """Return the mean loss with only ``kept`` (axes not named stay whole)."""
        self.count += 1
        plan = {**kept, **self.fixed}
        shortened = {a.name: plan[a.name] for a in self.axes if a.name in plan and len(plan[a.name]) < a.units}
        with masked(self.module, self.axes, hard_masks(self.axes, shortened, self._like)):
            return sum(float(self._loss(batch)) for batch in self.batches) / len(self.batches)

    def gradients(self) -> dict[str, Tensor]:
        """Differentiate, per axis ``[samples, units]``, each sample's loss by each mask, where nothing is masked.

        A loss is a mean over its batch, so each sample's derivative is the batch size times what autograd gives.
        """
        found: dict[str, list[Tensor]] = {axis.name: [] for axis in self.axes if axis.name not in self.fixed}
        for batch in self.batches:
            size = len(batch.sample)
            free = [axis for axis in self.axes if axis.name not in self.fixed]
            ones = {axis.name: torch.ones(size, axis.units).to(self._like).requires_grad_() for axis in free}
            values = {**ones, **hard_masks(self.axes, self.fixed, self._like)}
            with torch.enable_grad(), masked(self.module, self.axes, values):
                slopes = torch.autograd.grad(self._loss(batch), list(ones.values()), allow_unused=True)
            for (name, mask), slope in zip(ones.items(), slopes, strict=True):
                found[name].append(torch.zeros_like(mask) if slope is None else slope * size)
        return {name: torch.cat(rows).detach() for name, rows in found.items()}

    def weight_gradients(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Differentiate each batch's loss by the parameters of these names, zero where the loss has none of one."""
        weights = {name: self.module.get_parameter(name) for name in names}
        for batch in self.batches:
            for weight in weights.values():
                weight.requires_grad_(True)
            try:
                with torch.enable_grad(), masked(self.module, self.axes, hard_masks(self.axes, self.fixed, self._like)):
                    found = torch.autograd.grad(self._loss(batch), list(weights.values()), allow_unused=True)
            finally:
                for weight in weights.values():
                    weight.requires_grad_(False)
            yield {
                name: torch.zeros_like(weight) if slope is None else slope
                for (name, weight), slope in zip(weights.items(), found, strict=True)
            }

    def _loss(self, batch: Batch) -> Tensor:
        return self.objective.loss(self.objective.phases[0], batch)[self.entry]


@contextmanager
def trial(problem: SearchProblem, context: Context, objective: Part, options: ProbeOptions) -> Iterator[Trial]:
    """Give a trial of the problem's denoiser; the whole model is the teacher of objectives that have one.

    The denoiser is in evaluation mode inside, on the step's device; it is left frozen, its weights untouched.
    """
    student, text = problem.denoiser, context.text()
    training = student.training
    built = objective.build().objective(context, student, shared_copy(student), text)
    samples, device = context.latents("train", text), context.world.device
    batches = draw_batches(samples, options.batch, options.batches, context)
    try:
        with at_work(built, device):
            yield Trial(built, problem, batches)
    finally:
        student.train(training)


@contextmanager
def at_work(objective: Objective, device: torch.device) -> Iterator[None]:
    """Hold an objective's modules on a device, frozen and in evaluation mode; afterwards they lie on the CPU again."""
    modules = [role.module for role in objective.roles.values()]
    for module in modules:
        module.requires_grad_(requires_grad=False).eval().to(device)
    try:
        yield
    finally:
        for module in modules:
            module.to("cpu")
