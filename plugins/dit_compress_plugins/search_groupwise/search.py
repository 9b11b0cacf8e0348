"""Learn which candidate of each group stays, by the loss of the masked model, from what another search thinks.

Every step draws one candidate per group and *sample* (Gumbel-softmax, straight-through), masks the
model with it (Eq. 3, 4) and moves the logits, and with ``lora`` low-rank updates of the weights, along the
gradient of a distiller's loss.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_compress.core.errors import UserError
from dit_compress.plugin.registry import closest
from dit_compress.search.parts import complete
from dit_compress.search.parts import cut as cut_parts
from dit_compress.search.problem import SearchProblem, Selection, check_search
from dit_compress.structure.copies import shared_copy
from dit_compress.structure.masks import hard_masks, masked
from dit_compress.train.loop import fit
from dit_compress.train.lora import adapted, fold
from dit_compress.train.objective import Phase, Role
from dit_compress.train.targets import linears
from dit_compress_plugins.search_groupwise import GROUPS
from dit_compress_plugins.search_groupwise.candidates import (
    Cut,
    cut_axis,
    first_logits,
    gumbel_from,
    straight_through,
    temperature_at,
)
from dit_compress_plugins.search_groupwise.compare import Comparison
from dit_compress_plugins.search_groupwise.roles import phase_of, roles_of
from dit_compress_plugins.search_groupwise.start import begin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis
    from dit_compress.train.objective import Batch, Objective
    from dit_compress_plugins.search_groupwise import GroupwiseOptions

NUM_SNAPSHOTS = 24
"""Steps between two notes of the probabilities for the report."""
NOISE = 0.02
"""Standard deviation of the first logits where no search's scores give them."""


class GroupwiseSearch:
    """Search ``{use: groupwise, groups: …, objective: …}``."""

    def __init__(self, options: GroupwiseOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Context) -> Selection:
        """Train the logits from another search's scores, keep the argmax of their average, or that search's choice."""
        self.check_levels(problem)
        axes = [a for a in problem.axes if problem.keep[a.name] < a.units and a.name not in problem.fixed]
        whole = {**{axis.name: tuple(range(axis.units)) for axis in problem.axes}, **problem.fixed}
        if not axes:
            return Selection(whole, {"probabilities": [], "chosen": {}})
        by = self.options.compare if self.options.held_out else None
        comparison = Comparison(problem, context, self.options, by) if by is not None else None
        start = begin(problem, axes, self.options.init, context)
        cuts = {axis.name: self.cut(axis, problem, start.scores[axis.name]) for axis in axes}
        logits = CandidateLogits(cuts, self.options.trust if start.name else 0.0, context.seed)
        notes = context.folder / "probabilities.jsonl"
        updates = self.train(problem, context, logits, notes)
        kept = dict(whole)
        for axis in axes:
            row, cut, scores = logits.hard(axis.name), cuts[axis.name], start.scores[axis.name]
            chosen = [part for place, part in enumerate(cut.parts) if row[place]]
            count = problem.keep[axis.name]
            kept[axis.name] = complete(problem.denoiser.module, axis, chosen, count, scores=scores)
        history: dict[str, Any] = {"probabilities": read_notes(notes)}
        if comparison is not None:
            kept, history["comparison"] = comparison.better({**whole, **start.kept}, kept, start.name)
        if self.options.lora is not None and self.options.lora.after == "merge":
            fold(updates)  # after the comparison: they were trained for what the search might choose, not the start
        return Selection(
            kept, {**history, "chosen": {name: whole_parts(cut, kept[name]) for name, cut in cuts.items()}}
        )

    def train(self, problem: SearchProblem, context: Context, logits: CandidateLogits, notes: Path) -> list[Any]:
        """Move the logits (and LoRA, where asked for) and return LoRA's layers; the model is frozen and as it was."""
        student, text, lora = problem.denoiser, context.text(), self.options.lora
        # The weights that both hold stay frozen: LoRA stands beside them until the search is over.
        inner = self.options.objective.build().objective(context, student, shared_copy(student), text)
        adapting: AbstractContextManager[list[Any]] = (
            adapted(student.module, linears(student), lora.rank, context.seed) if lora else nullcontext([])
        )
        with adapting as layers:
            objective = MaskedObjective(inner, problem, logits, self.options, None if context.world.rank else notes)
            try:
                fit(objective, context.latents("train", text), self.options, context)
            finally:
                objective.masks.close()
        student.module.requires_grad_(requires_grad=False).eval()
        return layers

    def check(self, problem: SearchProblem, *, settled: bool) -> None:
        """Raise a UserError where ``groups`` names a level that is not pruned, or can't cut one, or the start can't be.

        How many candidates a group has follows from the counts, and a little from scores: here all units are alike.
        """
        self.check_levels(problem)
        if self.options.init is not None:
            check_search(self.options.init, problem, settled=settled)
        for axis in (axis for axis in problem.axes if axis.name not in problem.fixed):
            if not settled:
                cut_parts(range(axis.units), self.parts(axis, problem), axis.name)
            elif problem.keep[axis.name] < axis.units:
                self.cut(axis, problem, torch.zeros(axis.units))

    def check_levels(self, problem: SearchProblem) -> None:
        """Raise a UserError where ``groups`` names a level that is not pruned."""
        levels = {axis.level for axis in problem.axes}
        for name in self.options.groups:
            if name not in GROUPS and name not in levels:
                meant = closest(name, levels)
                raise UserError(
                    f"'groups' names the level {name!r}; this step prunes {', '.join(sorted(levels))}",
                    mend=f"Did you mean {meant!r}?" if meant else "Name one of these",
                )

    def cut(self, axis: Axis, problem: SearchProblem, scores: Tensor) -> Cut:
        """Cut one axis into groups and candidates, by its units' scores ``[U]``."""
        parts, groups = self.parts(axis, problem), self.options.groups.get(axis.level)
        return cut_axis(scores.tolist(), problem.keep[axis.name], parts, groups, axis.name, self.options.bound)

    def parts(self, axis: Axis, problem: SearchProblem) -> int:
        """Return into how many parts an axis is cut."""
        return min(problem.num_parts.get(axis.level, axis.units), axis.units)


class CandidateLogits(nn.Module):
    """One logit per candidate of every group of every axis; first by the parts' scores, or noise without ``trust``."""

    def __init__(self, cuts: dict[str, Cut], trust: float, seed: int) -> None:
        super().__init__()
        self.cuts = cuts
        noise = torch.Generator().manual_seed(seed)
        self.table = nn.ParameterDict()
        for name, cut in cuts.items():
            for group in range(len(cut.groups)):
                rows = cut.candidates(group)
                self.register_buffer(_rows(name, group), rows, persistent=False)
                drawn = NOISE * torch.randn(len(rows), generator=noise)
                self.table[_key(name, group)] = nn.Parameter(first_logits(rows, cut.scores, trust) if trust else drawn)

    def groups(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return the logits ``[C]`` and candidates ``[C,P]`` of every group of an axis."""
        numbers = range(len(self.cuts[name].groups))
        return [(self.table[_key(name, number)], self.get_buffer(_rows(name, number))) for number in numbers]

    def draw(self, batch: Batch, temperature: float) -> dict[str, Tensor]:
        """Draw masks ``[B, units]`` for every axis, per sample."""
        values = {}
        for name, cut in self.cuts.items():
            drawn = []
            for group, (logits, rows) in enumerate(self.groups(name)):
                gumbel = gumbel_from(batch.streams.uniform(f"gumbel/{name}/{group}", (len(rows),)))
                drawn.append(straight_through(logits, gumbel, temperature) @ rows)
            values[name] = spread(torch.stack(drawn).sum(dim=0), cut)
        return values

    def hard(self, name: str) -> Tensor:
        """Return the most likely candidates of an axis, over its parts."""
        return torch.stack([rows[int(logits.argmax())] for logits, rows in self.groups(name)]).sum(dim=0)

    def keep_probability(self) -> dict[str, list[float]]:
        """Return how likely each part of each axis is to stay."""
        with torch.no_grad():
            return {
                name: torch.stack([torch.softmax(logits, 0) @ rows for logits, rows in self.groups(name)])
                .sum(0)
                .tolist()
                for name in self.cuts
            }


def whole_parts(cut: Cut, kept: Sequence[int]) -> list[float]:
    """Return 1 for each part all of whose units are kept, else 0."""
    return [float(set(part) <= set(kept)) for part in cut.parts]


def spread(mask: Tensor, cut: Cut) -> Tensor:
    """Spread a mask over parts ``[B,P]`` to units ``[B,U]``."""
    order = torch.tensor([unit for part in cut.parts for unit in part])
    repeated = mask.repeat_interleave(len(cut.parts[0]), dim=-1)
    return repeated[..., torch.argsort(order).to(mask.device)]


def _key(name: str, group: int) -> str:
    return f"{name.replace('.', '/')}#{group}"


def _rows(name: str, group: int) -> str:
    return f"rows:{_key(name, group)}"


def read_notes(path: Path) -> list[dict[str, Any]]:
    """Read the probabilities over the search, once per step (a resumed search repeats some)."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


class MaskedObjective:
    """A distiller's objective with the student masked; the masks, its aligners and LoRA move, nothing else.

    Every process holds the whole model: student and teacher are one set of weights, and hooks mask what runs.
    notes: where probabilities are noted for the report; one process does.
    masks: those of the last loss; they stay until the next, since a backward pass may run blocks again.
    noted: the step of the last note: a measurement of KD's share computes a loss again.
    """

    def __init__(
        self,
        inner: Objective,
        problem: SearchProblem,
        logits: CandidateLogits,
        options: GroupwiseOptions,
        notes: Path | None,
    ) -> None:
        self.inner, self.logits, self.options, self.notes = inner, logits, options, notes
        self.module, self.axes = problem.denoiser.module, problem.axes
        self.masks, self.noted = ExitStack(), -1
        self.fixed = hard_masks(problem.axes, problem.fixed, next(self.module.parameters()))
        masks = Role(logits, lr=options.lr, ema=options.ema, clip=None, whole=True)
        self.roles = {**roles_of(inner, options), "masks": masks}
        self.phases = (phase_of("search", self.roles, inner, "masks"),)

    def loss(self, phase: Phase, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 - one phase
        """Return the inner loss under one draw of masks per sample."""
        steps = self.options.steps
        due = batch.step % max(1, steps // NUM_SNAPSHOTS) == 0 or batch.step == steps - 1
        if self.notes is not None and due and batch.step != self.noted:
            self.noted = batch.step
            with self.notes.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": batch.step, "keep": self.logits.keep_probability()}) + "\n")
        temperature = temperature_at(batch.step, steps, *self.options.temperature)
        fixed = {name: value.to(batch.x0.device) for name, value in self.fixed.items()}
        self.masks.close()
        self.masks.enter_context(masked(self.module, self.axes, {**self.logits.draw(batch, temperature), **fixed}))
        losses = self.inner.loss(self.inner.phases[0], batch)
        return {**losses, "temperature": torch.tensor(temperature)}
