"""Multiple-choice knapsacks with gates, solved exactly by mixed-integer programming."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Knapsack:
    """Choose one entry of every group (of at most one gate each): ``prices`` and ``losses`` per entry.

    groups: entry → group. gate: group → the entry that must be chosen for it to have one; -1 for always.
    base: what is paid in any case. some: sets of entries of which at least one is chosen.
    """

    prices: np.ndarray
    losses: np.ndarray
    groups: np.ndarray
    gate: np.ndarray
    base: float = 0.0
    some: tuple[tuple[int, ...], ...] = ()

    def solve(self, low: float, high: float, aim: np.ndarray, gap: float = 0.0) -> np.ndarray | None:
        """Find the entries (0, 1) that minimise ``aim`` with a price in [low, high]; None where there are none.

        The solver's tolerance may accept a price that is out of bounds; such a choice is excluded and solved again.
        """
        from scipy.optimize import LinearConstraint

        cuts: list[Any] = []
        while True:
            found = self._ask(low, high, aim, cuts, gap=gap)
            if found is None:
                return None
            chosen = np.round(found)
            price = self.base + float(self.prices @ chosen)
            if low <= price <= high:
                return chosen
            cuts.append(LinearConstraint(chosen[None], -np.inf, chosen.sum() - 1))

    def bound(self, low: float, high: float) -> float:
        """Bound the loss from below: the optimum where entries may be fractions; infinite where none fits."""
        found = self._ask(low, high, self.losses, [], whole=False)
        return np.inf if found is None else float(self.losses @ found)

    def _ask(
        self, low: float, high: float, aim: np.ndarray, cuts: Sequence[Any], gap: float = 0.0, *, whole: bool = True
    ) -> np.ndarray | None:
        from scipy.optimize import Bounds, LinearConstraint, milp

        if not len(aim):
            return np.zeros(0) if low <= self.base <= high else None
        scale = max(abs(end - self.base) for end in (low, high) if np.isfinite(end)) or 1.0
        rows = [LinearConstraint(self.prices[None] / scale, (low - self.base) / scale, (high - self.base) / scale)]
        rows += [LinearConstraint(np.isin(np.arange(len(aim)), places)[None], 1, np.inf) for places in self.some]
        return milp(
            aim / max(float(np.abs(aim).max()), 1e-30),
            integrality=np.full(len(aim), int(whole)),
            bounds=Bounds(0, 1),
            constraints=[*rows, self._one_of_each(), *cuts],
            options={"mip_rel_gap": gap},
        ).x

    def _one_of_each(self) -> Any:
        """Demand per group that the sum of its entries equals one, or the entry that gates it."""
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_array

        entries = np.arange(len(self.groups))
        gated = np.flatnonzero(self.gate >= 0)
        data = np.concatenate([np.ones(len(entries)), -np.ones(len(gated))])
        rows = np.concatenate([self.groups, gated])
        columns = np.concatenate([entries, self.gate[gated]])
        matrix = coo_array((data, (rows, columns)), shape=(len(self.gate), len(entries))).tocsr()
        right = (self.gate < 0).astype(float)
        return LinearConstraint(matrix, right, right)
