"""The plans that a prune step tried for a budget."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Plan:
    """A plan that a prune step tried. counts: level → (units that stay, of how many). losses: after each round."""

    family: str
    counts: dict[str, tuple[int, int]]
    cost: float
    expected: float
    losses: tuple[float, ...]
    chosen: bool


@dataclass(frozen=True)
class Trials:
    """The field of plans that were tried for a budget. steps: of healing before each loss. none: without a plan."""

    unit: str
    budget: float
    steps: int
    none: tuple[str, ...]
    plans: tuple[Plan, ...]

    @property
    def ranked(self) -> list[Plan]:
        """The plans as they should be read: those that stayed longest first, of equals the best."""
        return sorted(self.plans, key=lambda plan: (-len(plan.losses), plan.losses[-1]))

    @property
    def levels(self) -> list[str]:
        """The levels that plans speak of."""
        return list(self.plans[0].counts)

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return max(len(plan.losses) for plan in self.plans)


def read_trials(data: Any) -> Trials | None:
    """Read the field from the metrics of a step; None where it has none, or something else of that name."""
    if not isinstance(data, dict) or set(data) != {field.name for field in fields(Trials)}:
        return None
    plans = []
    for plan in data["plans"]:
        counts = {level: (kept, of) for level, (kept, of) in plan["counts"].items()}
        plans.append(Plan(**{**plan, "counts": counts, "losses": tuple(plan["losses"])}))
    return Trials(**{**data, "none": tuple(data["none"]), "plans": tuple(plans)})
