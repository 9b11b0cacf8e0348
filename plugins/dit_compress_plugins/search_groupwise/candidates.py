"""Candidate sets: the ways to keep n units of a group, and how an axis is cut into groups. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_compress.core.errors import UserError
from dit_compress.search.parts import cut as cut_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CANDIDATES = 256


@dataclass(frozen=True)
class Cut:
    """An axis as a learned search sees it.

    parts: search units, each a tuple of the axis' units (one block or head; many FFN channels).
    scores: the importance of each part, the sum of its units'.
    groups: per group, the places in ``parts`` it covers. keep: how many of each group stay.
    """

    parts: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]
    keep: tuple[int, ...]

    def candidates(self, group: int) -> Tensor:
        """Return all candidates of a group as rows of ones and zeros ``[C, len(parts)]``."""
        return candidate_rows(self.groups[group], self.keep[group], len(self.parts))


def cut_axis(
    scores: Sequence[float], keep: int, num_parts: int, num_groups: int | None, name: str, bound: int = 1
) -> Cut:
    """Cut an axis' units into equal parts, and the parts into groups.

    ``scores``: the importance of every unit. Where a part has many units (FFN channels), these are sorted by it first,
    so that a part holds units that matter alike, and parts go to groups round robin: each sees the whole range.
    ``num_groups`` None takes the fewest whose candidates are not too many. ``bound``: see :func:`share_out`.
    """
    size = len(scores) // num_parts
    order = range(len(scores)) if size == 1 else sorted(range(len(scores)), key=lambda unit: -scores[unit])
    parts = cut_parts(order, num_parts, name)
    if num_groups is None:
        num_groups = fewest_groups(num_parts, keep // size)
    num_groups = min(num_groups, num_parts)
    bounds = [round(index * num_parts / num_groups) for index in range(num_groups + 1)]
    if size == 1:
        groups = tuple(tuple(range(a, b)) for a, b in pairwise(bounds))
    else:
        groups = tuple(tuple(range(start, num_parts, num_groups)) for start in range(num_groups))
    worth = tuple(sum(scores[unit] for unit in part) for part in parts)
    shares = share_out(keep // size, [[worth[place] for place in group] for group in groups], bound)
    for group, kept in zip(groups, shares, strict=True):
        if (count := math.comb(len(group), kept)) > MAX_CANDIDATES:
            raise UserError(
                f"{name}: a group of {len(group)} keeping {kept} has {count} candidates", mend="Use more groups"
            )
    return Cut(parts, worth, groups, shares)


def fewest_groups(num_parts: int, keep: int) -> int:
    """Return the smallest number of groups in which none has more than ``MAX_CANDIDATES`` at an equal share."""
    for count in range(1, num_parts):
        sizes = {num_parts // count, -(-num_parts // count)}
        spans = [(size, *share_span(size, keep, num_parts, 0)) for size in sizes]
        if all(math.comb(size, kept) <= MAX_CANDIDATES for size, *ends in spans for kept in ends):
            return count
    return num_parts


def share_out(total: int, scores: Sequence[Sequence[float]], bound: int) -> tuple[int, ...]:
    """Distribute ``total`` over groups so that what is kept is worth most; ``scores`` of every group's parts.

    A group's count lies at most ``bound`` parts beyond its equal share (in proportion to its size, rounded either
    way). Of parts worth alike the group goes first that is the furthest below its share.
    """
    whole = sum(len(group) for group in scores)
    spans = [share_span(len(group), total, whole, bound) for group in scores]
    shares = [low for low, _ in spans]
    waiting = [
        (-worth, place - total * len(group) / whole, index)
        for index, (group, (low, high)) in enumerate(zip(scores, spans, strict=True))
        for place, worth in enumerate(sorted(group, reverse=True))
        if low <= place < high
    ]
    for _, _, index in sorted(waiting)[: total - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


def share_span(size: int, total: int, whole: int, bound: int) -> tuple[int, int]:
    """Return the least and the most that a group of ``size`` out of ``whole`` may keep: see :func:`share_out`.

    No bound leads to more candidates than there may be.
    """
    low, high = total * size // whole, -(-total * size // whole)
    for _ in range(bound):
        low -= low > 0 and math.comb(size, low - 1) <= MAX_CANDIDATES
        high += high < size and math.comb(size, high + 1) <= MAX_CANDIDATES
    return low, high


def first_logits(rows: Tensor, scores: Sequence[float], trust: float) -> Tensor:
    """Return a group's first logits: the worth of what each candidate keeps, with mean 0 and deviation ``trust``.

    ``rows [C,P]``, ``scores`` of the P parts → ``[C]``; all alike where no candidate is worth more than another.
    """
    worth = rows.double() @ torch.tensor(scores, dtype=torch.float64)
    spread = worth.std(correction=0)
    if not spread > 1e-12 * worth.abs().max():
        return torch.zeros(len(rows))
    return (trust * (worth - worth.mean()) / spread).float()


def candidate_rows(group: tuple[int, ...], keep: int, width: int) -> Tensor:
    """Return one row per way to keep ``keep`` of the group's places."""
    rows = torch.zeros(math.comb(len(group), keep), width)
    for row, chosen in enumerate(combinations(group, keep)):
        rows[row, list(chosen)] = 1
    return rows


def straight_through(logits: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Choose one-hot forward, softmax backward: ``logits [C]``, ``gumbel [B,C]`` → ``[B,C]`` (Gumbel-softmax)."""
    soft = torch.softmax((logits + gumbel) / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return hard + soft - soft.detach()


def gumbel_from(uniform: Tensor) -> Tensor:
    """Turn uniform numbers in [0, 1) into Gumbel noise."""
    return -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))


def temperature_at(step: int, steps: int, first: float, last: float) -> float:
    """Follow a geometric schedule from ``first`` to ``last``."""
    share = step / max(1, steps - 1)
    return first * (last / first) ** share
