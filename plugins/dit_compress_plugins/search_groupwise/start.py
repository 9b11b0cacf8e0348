"""The start of the search: what another search thinks of every unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dit_compress.search.importance import magnitude

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dit_compress.plugin.options import Part
    from dit_compress.search.problem import SearchProblem, Selection
    from dit_compress.step.context import Context
    from dit_compress.structure.facts import Axis, Kept


@dataclass(frozen=True)
class Start:
    """The point a search begins from.

    scores: axis name → a number for each unit, ``[U]``; the more, the better. kept: that search's own choice. name:
    of that search; empty where there was none.
    """

    scores: Mapping[str, Tensor]
    kept: Kept = field(default_factory=dict)
    name: str = ""


def begin(problem: SearchProblem, axes: list[Axis], init: Part | None, context: Context) -> Start:
    """Run the search to begin from, the same on all processes; without one, magnitude gives the scores."""
    module = problem.denoiser.module
    if init is None:
        return Start({axis.name: magnitude(module, axis) for axis in axes})
    found = init.build().search(problem, context)
    scores = {axis.name: unit_scores(found, axis, magnitude(module, axis)).tolist() for axis in axes}
    agreed = context.world.agree({"scores": scores, "kept": found.kept})
    return Start(
        {name: torch.tensor(values) for name, values in agreed["scores"].items()},
        {name: tuple(units) for name, units in agreed["kept"].items()},
        init.name,
    )


def unit_scores(found: Selection, axis: Axis, weight: Tensor) -> Tensor:
    """Return a search's scores of an axis' units ``[U]``, from its history.

    Where it notes none, what it keeps is above what goes, and the magnitudes ``weight [U]`` rank within both.
    """
    given = found.history.get("scores", {}).get(axis.name)
    if given is not None:
        return torch.tensor(given)
    kept = torch.zeros(axis.units)
    kept[list(found.kept[axis.name])] = 1
    return kept + weight / (2 * weight.max().clamp_min(1e-12))
