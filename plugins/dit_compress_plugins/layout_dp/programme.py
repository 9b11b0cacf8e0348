"""S2DiT's search: a score for each kind in each block, and the layout of the least sum within the budgets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json
from dit_compress.structure.choices import Chosen, point
from dit_compress.structure.programme import best

if TYPE_CHECKING:
    from dit_compress.step.workplace import Workplace
    from dit_compress.structure.choices import Layout, LayoutProblem, Scores
    from dit_compress_plugins.layout_dp import ProgrammeOptions


class ProgrammeLayout:
    """Part ``layout: {use: dp}``."""

    def __init__(self, options: ProgrammeOptions) -> None:
        self.options = options

    def foreseen(self, problem: LayoutProblem) -> Layout | None:
        """Return the layout where scores are supplied."""
        scores = self.supplied(problem)
        return None if scores is None else best(problem, scores, self.options.most)[0].layout

    def choose(self, problem: LayoutProblem, context: Workplace) -> Chosen:
        """Score each kind in each block, unless scores are supplied; find the best layout, and measure it whole.

        Scores add up only as far as blocks do not interact: the loss that they expect stands beside the one measured.
        """
        scores = self.supplied(problem)
        if scores is None:
            scores = measured(problem, context)
        front = best(problem, scores, self.options.most)
        start = problem.loss(problem.present)
        points = [point(problem, each.layout, start + each.history["score"]) for each in front]
        loss = problem.loss(front[0].layout)
        context.say(f"{points[0]['row']}: loss {loss:.6g}, {points[0]['loss']:.6g} by the sum of its blocks")
        history = {"present": start, "expected": points[0]["loss"], "loss": loss, "scores": scores, "front": points}
        return Chosen(front[0].layout, history)

    def supplied(self, problem: LayoutProblem) -> Scores | None:
        """Read the scores of a file; UserError where one is missing."""
        if self.options.scores is None:
            return None
        data = read_json(Path(self.options.scores))
        found: dict[str, dict[str, float]] = {}
        for choice in problem.choices:
            theirs = data.get(choice.block) if isinstance(data, dict) else None
            present, *_ = choice.options
            mine = {present: 0.0, **theirs} if isinstance(theirs, dict) else {}
            found[choice.block] = {kind: mine.get(kind, math.nan) for kind in choice.options}
            for kind, value in found[choice.block].items():
                if not isinstance(value, int | float) or not math.isfinite(value):
                    raise UserError(
                        f"no score of {kind!r} in {choice.block!r}",
                        where=self.options.scores,
                        mend=f'Give what it adds to the loss: {{"{choice.block}": {{"{kind}": 0.01}}}}',
                    )
        return found


def measured(problem: LayoutProblem, context: Workplace) -> dict[str, dict[str, float]]:
    """Measure what each kind adds to the loss where it is the only one that differs from the layout as it is."""
    start, found = problem.loss(problem.present), dict[str, dict[str, float]]()
    for number, choice in enumerate(problem.choices):
        present, *others = choice.options
        losses = {kind: problem.loss({**problem.present, choice.block: kind}) for kind in others}
        found[choice.block] = {present: 0.0, **{kind: loss - start for kind, loss in losses.items()}}
        added = ", ".join(f"{kind} {found[choice.block][kind]:+.3g}" for kind in others)
        context.say(f"{choice.block} ({number + 1} of {len(problem.choices)}): {added}")
    return found
