"""From a budget to counts: how many blocks, heads and channels stay, equal in every block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_compress.errors import UserError
from dit_compress.structure.edits import tensor_or_none

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dit_compress.structure.axes import Axis

BALANCE = {"block": 8 / 28, "head": 12 / 32, "ffn": 0.25}
"""The paper's shares removed per level; an allocation keeps as near to their proportions as it can."""
SLACK = 0.99
"""A plan for a budget uses at least this share of it."""


@dataclass(frozen=True)
class Costs:
    """Parameters by level, from the members of the axes: exact where blocks are alike."""

    total: int
    block: int
    units: Mapping[str, int]
    cost: Mapping[str, int]

    def after(self, removed: Mapping[str, int]) -> int:
        """Parameters left after removing that many blocks, heads per attention, channels per FFN."""
        blocks = self.units.get("block", 1)
        left = blocks - removed.get("block", 0)
        inside = sum(self.cost[level] * removed.get(level, 0) for level in self.cost) / blocks
        return round(self.total - self.block * removed.get("block", 0) - left * inside)


def costs(module: nn.Module, axes: Sequence[Axis], num_blocks: int) -> Costs:
    """Parameters of the whole, of one block, and of one unit of each level summed over all its axes."""
    total = sum(parameter.numel() for parameter in module.parameters())
    cost: dict[str, int] = {}
    units: dict[str, int] = {"block": num_blocks}
    block = 0
    for axis in axes:
        if axis.blocks:
            items = [module.get_submodule(axis.blocks.block(index)) for index in range(axis.units)]
            block = sum(p.numel() for item in items for p in item.parameters()) // len(items)
            continue
        cost[axis.level] = cost.get(axis.level, 0) + unit_cost(module, axis)
        units[axis.level] = min(units.get(axis.level, axis.units), axis.units)
    return Costs(total, block, units, cost)


def unit_cost(module: nn.Module, axis: Axis) -> int:
    """Parameters of one unit."""
    count = 0
    for member in axis.members:
        tensor = tensor_or_none(module, member.tensor)
        if tensor is not None:
            count += tensor.numel() // tensor.shape[member.dim] * member.indices.shape[1]
    return count


def allocate(costs: Costs, levels: Mapping[str, int], budget: int) -> dict[str, int]:
    """Units to remove per level so that the model comes within 1% of ``budget`` from below.

    ``levels``: the levels that may be cut, with the multiple their kept count must be. Among all plans
    that fit, the one nearest to the paper's proportions. UserError names the nearest budget that can be met.
    """
    best: tuple[float, dict[str, int]] | None = None
    nearest: list[int] = []
    for removed in _plans(costs, levels, budget):
        params = costs.after(removed)
        nearest.append(params)
        if SLACK * budget <= params <= budget:
            score = _imbalance(removed, costs)
            if best is None or score < best[0]:
                best = (score, removed)
    if best is None:
        raise UserError(
            f"no plan comes within 1% of {budget:,} parameters from below",
            mend=f"The nearest that can be met is {_nearest(nearest, budget, costs):,}",
        )
    return best[1]


def _plans(costs: Costs, levels: Mapping[str, int], budget: int) -> list[dict[str, int]]:
    """Every plan over blocks and heads, each with the two FFN widths around the budget."""
    blocks = range(costs.units["block"]) if "block" in levels else [0]
    heads = range(costs.units["head"]) if "head" in levels and "head" in costs.units else [0]
    plans = []
    for block in blocks:
        for head in heads:
            removed = {"block": block, "head": head}
            if "ffn" not in levels or "ffn" not in costs.units:
                plans.append(removed)
                continue
            width, step = costs.units["ffn"], levels["ffn"]
            per_channel = (costs.units["block"] - block) * costs.cost["ffn"] / costs.units["block"]
            want = (costs.after(removed) - budget) / per_channel
            kept = (width - max(0, math.ceil(want))) // step * step
            around = {min(max(keep, step), width) for keep in (kept, kept + step)}
            plans += [{**removed, "ffn": width - keep} for keep in sorted(around)]
    return plans


def _imbalance(removed: Mapping[str, int], costs: Costs) -> float:
    """How far the removed shares are from the paper's proportions."""
    shares = {level: removed[level] / costs.units[level] for level in removed if level in costs.units}
    scale = sum(shares.values()) / sum(BALANCE.get(level, 0.25) for level in shares)
    return sum((share - scale * BALANCE.get(level, 0.25)) ** 2 for level, share in shares.items())


def _nearest(reached: Sequence[int], budget: int, costs: Costs) -> int:
    return min(reached or [costs.total], key=lambda params: abs(params - budget))
