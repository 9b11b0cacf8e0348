"""What data say of a denoiser's units and plans: scores of units, sensitivity curves, whole plans tried."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_compress.measure.quality import data_grid
from dit_compress.measure.recovery import Recovery
from dit_compress.measure.sensitivity import masked_loss, quality_curves
from dit_compress.search.allocate import settled_blocks
from dit_compress.search.field import enter, halved
from dit_compress.search.importance import taylor, top
from dit_compress.search.problem import SearchProblem
from dit_compress.search.removal import Removal
from dit_compress.search.trial import Trial, at_work
from dit_compress.train.healing import FlowMatching
from dit_compress.train.loop import draw_batches
from dit_compress.train.options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from dit_compress.data.clips import Split
    from dit_compress.data.samples import Samples
    from dit_compress.measure.quality import Grid
    from dit_compress.model.denoiser import Denoiser
    from dit_compress.model.text import Captions
    from dit_compress.search.allocate import Question
    from dit_compress.search.field import Entrant
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis, Kept
    from dit_compress.train.healing import Healing
    from dit_compress_plugins.prune_trilevel import Budget, Heal

SAMPLES = 64
"""Clips of a grid."""
BATCHES, BATCH = 8, 16
"""Batches that rank units, and their samples."""
ROUNDS = 16
"""Measurements, at most, of all blocks of a stack that may still go: what is measured grows as their number does."""
WARMUP = 10
"""Steps over which the rate of a healing rises: a tenth of them, at most so many."""


@dataclass(frozen=True)
class Evidence:
    """The denoiser on the data of a run. scores: axis name → importance of each unit, see :func:`ranked`."""

    budget: Budget
    denoiser: Denoiser
    axes: tuple[Axis, ...]
    context: Context
    text: Captions
    samples: Samples
    scores: Mapping[str, Tensor]

    def curves(self, word: str) -> dict[str, Any]:
        """Measure the sensitivity report: at once under masks, or ``recovered``, each point after equal healing."""
        by_level: dict[str, list[Axis]] = {}
        for axis in self.axes:
            by_level.setdefault(axis.level, []).append(axis)
        healed = word == "recovered"
        grid = self.grid("test" if healed else "train")
        recovery = self.recovery(grid, self.budget.heal.steps)
        loss = recovery.loss if healed else masked_loss(self.denoiser, by_level, grid)
        report = quality_curves(by_level, self.choose, loss, grid.name, each=self.budget.heterogeneous)
        for rows in report["levels"].values():
            for row in rows:
                row.pop("kept")
        agreed: dict[str, Any] = self.context.world.agree(report)
        return agreed

    def trials(self, question: Question, steps: int, plans: int) -> tuple[dict[str, int], dict[str, Any]]:
        """Try plans of each family, some of which come within the budget; return the best counts, and the field."""
        entrants, none = enter(question, plans)
        record: dict[str, Any] = {"unit": question.price.unit, "budget": question.budget, "steps": steps, "none": none}
        grid = self.grid("test")
        recovery = self.recovery(grid, steps)
        units = [self.units(question, entrant) for entrant in entrants]

        def loss_of(healing: Healing) -> float:
            healing.advance(steps)
            return grid.loss(healing.student)

        rounds = halved({which: recovery.begin(kept) for which, kept in enumerate(units)}, loss_of)
        best = min(rounds[-1], key=rounds[-1].__getitem__)
        record["plans"] = [
            {
                "family": entrant.family,
                "counts": counted(self.axes, entrant.keep),
                "cost": question.price.of(self.axes, kept),
                "expected": entrant.expected,
                "losses": [losses[which] for losses in rounds if which in losses],
                "chosen": which == best,
                "keep": dict(entrant.keep),
            }
            for which, (entrant, kept) in enumerate(zip(entrants, units, strict=True))
        ]
        record = self.context.world.agree(record)
        keep = next(plan["keep"] for plan in record["plans"] if plan["chosen"])
        for plan in record["plans"]:
            del plan["keep"]
        return keep, record

    def choose(self, axes: Sequence[Axis], keep: Mapping[str, int]) -> Kept:
        """Keep the most important units of some axes."""
        return {axis.name: top(self.scores[axis.name], keep[axis.name]) for axis in axes}

    def units(self, question: Question, entrant: Entrant) -> Kept:
        """Choose the units of a plan that is tried; where blocks weigh differently, the best of each weight."""
        blocks = settled_blocks(question, entrant.keep, lambda axis: self.scores[axis.name].tolist())
        return {**self.choose(self.axes, entrant.keep), **blocks}

    def grid(self, split: Split) -> Grid:
        """Make the fixed grid on which losses are compared."""
        samples = self.samples if split == "train" else self.context.latents(split, self.text)
        return data_grid(samples, self.text, self.context.input.flow, SAMPLES)

    def recovery(self, grid: Grid, steps: int) -> Recovery:
        """Return how copies are healed, for so many steps at a time."""
        options, rank = train_options(self.budget.heal, steps), self.budget.heal.lora
        return Recovery(self.denoiser, self.axes, grid, self.samples, self.text, options, self.context, rank)


def train_options(heal: Heal, steps: int) -> TrainOptions:
    """Return a healing's options as a training's."""
    warmup = min(WARMUP, steps // 10)
    return TrainOptions(steps=steps, batch=heal.batch, lr=heal.lr, muon_lr=heal.muon_lr, warmup=warmup)


@contextmanager
def evidence(budget: Budget, denoiser: Denoiser, axes: tuple[Axis, ...], context: Context) -> Iterator[Evidence]:
    """Put the denoiser where the step computes, rank its units; it is given back on the CPU, frozen, else unchanged."""
    training, text = denoiser.training, context.text()
    objective = FlowMatching(denoiser, text, context.input.flow)
    try:
        with at_work(objective, context.world.device):
            samples = context.latents("train", text)
            batches = draw_batches(samples, BATCH, BATCHES, context)
            trial = Trial(objective, SearchProblem(denoiser, axes, {}), batches)
            yield Evidence(budget, denoiser, axes, context, text, samples, ranked(trial, budget.blocks_by))
    finally:
        denoiser.train(training)


def ranked(trial: Trial, blocks_by: str) -> dict[str, Tensor]:
    """Return the importance of every unit by Taylor; of blocks by ``removals``, where that is asked for.

    Each stack is then taken apart down to one block, the others whole, in at most ``ROUNDS`` rounds.
    """
    scores = {name: taylor(slopes).cpu() for name, slopes in trial.gradients().items()}
    for axis in trial.axes if blocks_by == "removals" else ():
        if axis.blocks:
            removal = Removal({axis.name: tuple((block,) for block in range(axis.units))}, {axis.name: 1}, {})
            removal.run([axis], trial.loss, -(-axis.units // ROUNDS))
            scores |= {name: torch.tensor(losses) for name, losses in removal.scores().items()}
    return scores


def counted(axes: Sequence[Axis], keep: Mapping[str, int]) -> dict[str, list[int]]:
    """Return, per level, how many units of its widest axis stay, and of how many."""
    widest = {axis.level: axis for axis in sorted(axes, key=lambda axis: axis.units)}
    levels = dict.fromkeys(axis.level for axis in axes)
    return {level: [keep[widest[level].name], widest[level].units] for level in levels}
