"""First-order Taylor importance by masks: ``L(m_u = 0) - L(m_u = 1) ≈ -∂L/∂m_u``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.search.importance import taylor, top
from dit_compress.search.problem import Search, SearchProblem, Selection
from dit_compress.search.trial import trial

if TYPE_CHECKING:
    from dit_compress.step.context import Context
    from dit_compress_plugins.search_taylor import TaylorOptions


class TaylorSearch(Search):
    """Search ``{use: taylor, batches: …, objective: …}``."""

    def __init__(self, options: TaylorOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Context) -> Selection:  # type: ignore[override]  # data=True
        """Rank within each axis."""
        with trial(problem, context, self.options.objective, self.options) as measured:
            scores = {name: taylor(slopes) for name, slopes in measured.gradients().items()}
        kept = {name: top(score, problem.keep[name]) for name, score in scores.items()}
        return Selection(
            {**kept, **problem.fixed}, {"scores": {name: score.tolist() for name, score in scores.items()}}
        )
