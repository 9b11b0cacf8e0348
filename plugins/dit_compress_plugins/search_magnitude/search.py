"""Keep the units with the largest weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dit_compress.search.importance import magnitudes, top
from dit_compress.search.problem import Search, SearchProblem, Selection

if TYPE_CHECKING:
    from dit_compress.step.workplace import Workplace
    from dit_compress_plugins.search_magnitude import MagnitudeOptions


class MagnitudeSearch(Search):
    """The simplest informed search; needs no data."""

    def __init__(self, options: MagnitudeOptions) -> None:
        self.options = options

    def search(self, problem: SearchProblem, context: Workplace) -> Selection:  # noqa: ARG002 - the contract's signature
        """Rank within each axis."""
        scores = magnitudes(problem.denoiser.module, problem.axes)
        kept = {name: top(score, problem.keep[name]) for name, score in scores.items()}
        return Selection(kept, {"scores": {name: score.tolist() for name, score in scores.items()}})
