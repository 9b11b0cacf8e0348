"""Start against result: both healed alike, then measured on the same held-out batches."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.search.trial import Trial, at_work
from dit_compress.structure.copies import shared_copy
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.train.loop import draw_batches, fit
from dit_compress.train.lora import adapted
from dit_compress.train.targets import linears
from dit_compress_plugins.search_groupwise.roles import phase_of, roles_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from dit_compress.search.problem import SearchProblem
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Kept
    from dit_compress.train.objective import Batch, Objective, Phase
    from dit_compress_plugins.search_groupwise import Compare, GroupwiseOptions


class Comparison:
    """Losses of choices of units by the objective, on held-out batches drawn once."""

    def __init__(self, problem: SearchProblem, context: Context, options: GroupwiseOptions, by: Compare) -> None:
        self.problem, self.context, self.options, self.by = problem, context, options, by
        self.text = context.text()
        self.batches = draw_batches(context.latents("test", self.text), by.batch, by.batches, context)
        self.heal_steps = round(by.heal * options.steps) if options.lora is not None else 0

    def better(self, start: Kept, result: Kept, name: str) -> tuple[Kept, dict[str, Any]]:
        """Return the choice with the lower loss, the start of equals; and what the report says of it."""
        if start == result:
            return result, {"start": name, "kept": "start", "same": True}
        losses = {"start": self.loss(start, "start"), "result": self.loss(result, "result")}
        better = "result" if losses["result"] < losses["start"] else "start"
        self.context.say(
            f"on held-out data the start ({name}) has a loss of {losses['start']:.4f}, the search's result "
            f"{losses['result']:.4f}: the {better} stays"
        )
        said = {"start": name, "kept": better, "same": False, "losses": losses, "healed": self.heal_steps}
        return (result if better == "result" else start), said

    def loss(self, kept: Kept, name: str) -> float:
        """Heal the model under a choice, if that is asked for, and return its held-out loss; nothing is left of it."""
        student, problem = self.problem.denoiser, self.problem
        objective = self.options.objective.build().objective(self.context, student, shared_copy(student), self.text)
        with self.healed(objective, kept, name), at_work(objective, self.context.world.device):
            phase = objective.phases[0]
            # Each of the two is healed with weights of its own where training sets them: their totals don't compare.
            entry = phase.score if phase.weighing is not None and phase.weighing.instead else "loss"
            return Trial(objective, problem, self.batches, entry).loss(kept)

    @contextmanager
    def healed(self, objective: Objective, kept: Kept, name: str) -> Iterator[None]:
        """Train LoRA under a choice's masks, for as long as the context is open."""
        lora, student = self.options.lora, self.problem.denoiser
        if lora is None or not self.heal_steps:
            yield
            return
        options = self.options.model_copy(update={"steps": self.heal_steps})
        place = replace(self.context, folder=self.context.folder / "healed" / name, trackers=(), trainings=0)
        like = torch.ones(1, device=self.context.world.device)
        plan = {axis.name: kept[axis.name] for axis in self.problem.axes}
        with adapted(student.module, linears(student), lora.rank, self.context.seed):
            with masked(student.module, self.problem.axes, hard_masks(self.problem.axes, plan, like)):
                fit(LoraObjective(objective, options), self.context.latents("train", self.text), options, place)
            yield


class LoraObjective:
    """A distiller's objective, of which LoRA and aligners move."""

    def __init__(self, inner: Objective, options: GroupwiseOptions) -> None:
        self.inner = inner
        self.roles = roles_of(inner, options)
        self.phases = (phase_of("heal", self.roles, inner, "student"),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return the inner loss."""
        return self.inner.loss(self.inner.phases[0], batch)
