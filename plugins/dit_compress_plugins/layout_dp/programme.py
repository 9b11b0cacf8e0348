"""S2DiT's search: a score for each kind in each block, and the layout of the least sum within the budgets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        problem.need_budget()
        scores = self.supplied(problem)
        return None if scores is None else best(problem, scores, self.options.most)[0].layout

    def choose(self, problem: LayoutProblem, context: Workplace) -> Chosen:
        """Score each kind in each block, unless scores are supplied; find the best layout, and measure it whole.

        Scores add up only as far as blocks do not interact: the loss that they expect stands beside the one measured.
        """
        scores = self.supplied(problem) or measured(problem, context)
        front = best(problem, scores, self.options.most)
        layout, start = front[0].layout, 0.0
        history: dict[str, Any] = {"scores": scores}
        if problem.loss is not None:
            start, loss = problem.loss(problem.present), problem.loss(layout)
            expected = start + front[0].history["score"]
            history |= {"present": start, "expected": expected, "loss": loss}
            context.say(f"the layout's loss is {loss:.6g}, {expected:.6g} by the sum of its blocks")
        points = [point(problem, each.layout, start + each.history["score"]) for each in front]
        return Chosen(layout, {**history, "front": points})

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
            found[choice.block] = {kind: mine.get(kind, math.nan) for kind in choice.kinds}
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
    start, found = problem.measure(problem.present), dict[str, dict[str, float]]()
    for number, choice in enumerate(problem.choices):
        present = problem.present[choice.block]
        others = [kind for kind in choice.kinds if kind != present]
        losses = {kind: problem.measure({**problem.present, choice.block: kind}) for kind in others}
        found[choice.block] = {present: 0.0, **{kind: loss - start for kind, loss in losses.items()}}
        added = ", ".join(f"{kind} {found[choice.block][kind]:+.3g}" for kind in others)
        context.say(f"{choice.block} ({number + 1} of {len(problem.choices)}): {added}")
    return found
