"""Sensitivity curves: what it costs, in loss, to remove a share of a level (Figure 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_compress.core.errors import UserError
from dit_compress.plugin.defaults import BALANCE
from dit_compress.search.budget import gates, inside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dit_compress.search.budget import Price
    from dit_compress.structure.facts import Axis

OTHER = 0.25
"""The share taken for levels the paper has not."""


@dataclass(frozen=True)
class Curve:
    """Loss over the share removed: linear between points, never falling, from (0, 0) on.

    Beyond the last point it goes on as steeply as between the last two.
    """

    points: tuple[tuple[float, float], ...]

    def __call__(self, share: float) -> float:
        """Return the loss added where that share is removed."""
        shares, losses = self._line
        if share > shares[-1] and len(shares) > 1:
            slope = (losses[-1] - losses[-2]) / (shares[-1] - shares[-2])
            return float(losses[-1] + slope * (share - shares[-1]))
        return float(np.interp(share, shares, losses))

    @cached_property
    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        """The points from left to right, never falling."""
        shares, losses = np.array(sorted({(0.0, 0.0), *self.points})).T
        return shares, np.maximum.accumulate(losses)


@dataclass(frozen=True)
class Curves:
    """One curve per level; per axis where they were measured so, and per block what its absence costs."""

    levels: Mapping[str, Curve]
    axes: Mapping[str, Curve] = field(default_factory=dict)
    blocks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def level(self, name: str) -> Curve:
        """Return a level's curve; raise a UserError where there is none."""
        if name not in self.levels:
            raise UserError(
                f"the sensitivity curves say nothing about level {name!r}",
                mend=f"They have {', '.join(self.levels) or 'no level'}; measure them again",
            )
        return self.levels[name]


def default_curves(price: Price, axes: Sequence[Axis], *, each: bool = False) -> Curves:
    """Make curves where none were measured: ``weight · share² / r``, with the paper's shares r and a level's weight.

    At equal slopes, which is where a sum under a budget is least, every level then gives up its share in
    proportion to r: what was removed per unit of price hurts alike at the paper's own plan. each: of every axis, too,
    and of every block (the middle ones first).
    """
    weights: dict[str, float] = {}
    own: dict[str, float] = {}
    stacks = gates(axes)
    for axis in axes:
        if axis.blocks:
            weight = sum(price.blocks[axis.name])
            weight += sum(price.units[a.name] * a.units for a in axes if not a.blocks and stacks.get(a.stack) is axis)
        else:
            weight = price.units[axis.name] * axis.units
        weights[axis.level] = weights.get(axis.level, 0.0) + weight
        own[axis.name] = weight
    total = sum(weights.values()) or 1.0

    def curve(level: str, weight: float, points: int) -> Curve:
        grid = np.linspace(0, 1, points)
        return Curve(tuple((float(x), float(weight / total * x * x / BALANCE.get(level, OTHER))) for x in grid))

    levels = {level: curve(level, weight, 257) for level, weight in weights.items()}
    if not each:
        return Curves(levels)
    by_axis = {axis.name: curve(axis.level, own[axis.name], 65) for axis in axes if not axis.blocks}
    return Curves(levels, by_axis, {axis.name: _absences(price, axes, axis, total) for axis in stacks.values()})


def _absences(price: Price, axes: Sequence[Axis], gate: Axis, total: float) -> tuple[float, ...]:
    """Return what each block's absence costs: removed in order, ``k`` equal blocks cost what the level's curve says."""
    middle = (gate.units - 1) / 2
    order = sorted(range(gate.units), key=lambda index: abs(index - middle))
    losses = [0.0] * gate.units
    for rank, index in enumerate(order):
        held = sum(price.units[axis.name] * axis.units for axis in inside(axes, gate, index))
        weight = (price.blocks[gate.name][index] + held) / total
        losses[index] = weight * (2 * rank + 1) / gate.units / BALANCE.get(gate.level, OTHER)
    return tuple(losses)


def curves_from_report(report: Mapping[str, Any], where: str = "") -> Curves:
    """Read the curves that ``dit-compress sensitivity`` wrote; raise a UserError where the file has none."""
    try:
        quality = report["quality"]
        whole = report["whole"][quality]

        def curve(rows: Sequence[Mapping[str, Any]]) -> Curve:
            return Curve(tuple((row["removed"] / row["of"], row[quality] - whole) for row in rows))

        levels = {name: curve(rows) for name, rows in report["levels"].items()}
        axes = {name: curve(rows) for name, rows in report.get("axes", {}).items()}
        blocks = {name: tuple(loss - whole for loss in losses) for name, losses in report.get("blocks", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"no sensitivity report: {error} is missing", where=where, mend="Write one: dit-compress sensitivity"
        ) from error
    return Curves(levels, axes, blocks)
