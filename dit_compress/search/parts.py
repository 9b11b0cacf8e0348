"""Parts: what a search removes at once. One block or head; many feed-forward channels, alike in magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_compress.core.errors import UserError
from dit_compress.search.importance import magnitude, top

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from dit_compress.search.problem import SearchProblem
    from dit_compress.structure.facts import Axis

Parts = tuple[tuple[int, ...], ...]
"""Disjoint tuples of an axis' units, ascending inside."""


def parts_of(problem: SearchProblem, axis: Axis) -> Parts:
    """Return the parts of one axis: as many as its granularity allows, else its single units."""
    if problem.num_parts.get(axis.level, axis.units) >= axis.units:
        return like_parts_of(problem, axis)
    scores = magnitude(problem.denoiser.module, axis)
    return _cut(problem, axis, torch.argsort(scores, descending=True, stable=True).tolist())


def like_parts_of(problem: SearchProblem, axis: Axis) -> Parts:
    """Return as many parts as :func:`parts_of`, and as large; which units they hold says nothing: no weights are read.

    Raises a UserError where the axis can't be cut into them.
    """
    return _cut(problem, axis, range(axis.units))


def _cut(problem: SearchProblem, axis: Axis, order: Sequence[int]) -> Parts:
    return cut(order, min(problem.num_parts.get(axis.level, axis.units), axis.units), axis.name)


def cut(order: Sequence[int], count: int, name: str) -> Parts:
    """Cut units in the given order into ``count`` runs of equal length."""
    if len(order) % count:
        raise UserError(
            f"{name}: {len(order)} units can't be cut into {count} equal parts",
            mend=f"Choose a divisor of {len(order)}",
        )
    size = len(order) // count
    return tuple(tuple(sorted(order[first : first + size])) for first in range(0, len(order), size))


def complete(
    module: nn.Module,
    axis: Axis,
    chosen: Iterable[Sequence[int]],
    keep: int,
    among: Sequence[int] | None = None,
    scores: Tensor | None = None,
) -> tuple[int, ...]:
    """Choose exactly ``keep`` units: those of the chosen parts, and of the others (from ``among``) the best.

    By ``scores``, or else by magnitude.
    """
    kept = {unit for part in chosen for unit in part}
    missing = keep - len(kept)
    if missing > 0:
        scores = magnitude(module, axis) if scores is None else scores.clone()
        scores[list(kept)] = -torch.inf
        if among is not None:
            scores[[unit for unit in range(axis.units) if unit not in set(among)]] = -torch.inf
        kept |= set(top(scores, missing))
    return tuple(sorted(kept))
