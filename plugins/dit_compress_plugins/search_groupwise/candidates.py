"""Candidate sets: the ways to keep n units of a group, and how an axis is cut into groups. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from dit_compress.core.errors import UserError
from dit_compress.search.parts import cut as cut_parts

MAX_CANDIDATES = 256


@dataclass(frozen=True)
class Cut:
    """An axis as a learned search sees it.

    parts: search units, each a tuple of the axis' units (one block or head; many FFN channels).
    groups: per group, the places in ``parts`` it covers. keep: how many of each group stay.
    """

    parts: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    keep: tuple[int, ...]

    def candidates(self, group: int) -> Tensor:
        """Return all candidates of a group as rows of ones and zeros ``[C, len(parts)]``."""
        return candidate_rows(self.groups[group], self.keep[group], len(self.parts))


def cut_axis(order: list[int], keep: int, num_parts: int, num_groups: int | None, name: str) -> Cut:
    """Cut units (in the given order) into equal parts, and the parts into groups.

    ``order``: the axis' units; for FFN channels sorted by importance, so that a part holds channels that
    matter alike. Parts go to groups round robin over equal runs: each group sees the whole range.
    ``num_groups`` None takes the fewest whose candidates are not too many.
    """
    num_parts = min(num_parts, len(order))
    if num_groups is None:
        num_groups = fewest_groups(num_parts, keep * num_parts // len(order))
    parts, size = cut_parts(order, num_parts, name), len(order) // num_parts
    num_groups = min(num_groups, num_parts)
    bounds = [round(index * num_parts / num_groups) for index in range(num_groups + 1)]
    if size == 1:
        groups = tuple(tuple(range(a, b)) for a, b in pairwise(bounds))
    else:
        groups = tuple(tuple(range(start, num_parts, num_groups)) for start in range(num_groups))
    cut = Cut(parts, groups, share_out(keep // size, [len(group) for group in groups]))
    for group, kept in zip(cut.groups, cut.keep, strict=True):
        if (count := math.comb(len(group), kept)) > MAX_CANDIDATES:
            raise UserError(
                f"{name}: a group of {len(group)} keeping {kept} has {count} candidates", mend="Use more groups"
            )
    return cut


def fewest_groups(num_parts: int, keep: int) -> int:
    """Return the smallest number of groups in which none has more than ``MAX_CANDIDATES``."""
    for count in range(1, num_parts):
        sizes = [num_parts // count + (place < num_parts % count) for place in range(count)]
        kept = share_out(keep, sizes)
        if all(math.comb(size, n) <= MAX_CANDIDATES for size, n in zip(sizes, kept, strict=True)):
            return count
    return num_parts


def share_out(total: int, sizes: list[int]) -> tuple[int, ...]:
    """Distribute ``total`` over groups in proportion to their sizes, exactly (largest remainder)."""
    exact = [total * size / sum(sizes) for size in sizes]
    shares = [math.floor(value) for value in exact]
    order = sorted(range(len(sizes)), key=lambda index: (shares[index] - exact[index], index))
    for index in order[: total - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


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
