"""A narrow student from scratch beside a teacher: the data alone, a fixed weight of the teacher, SnapGen's scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import account
import numpy as np
import torch
from paired import Table, interval, run

from dit_compress_plugins.distill_scaled.scaling import scaled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Row

WEIGHTS = (0.1, 1.0, 10.0)
"""Of the teacher's losses, fixed: the sweep that the scaling should make needless."""
FIXED = {f"fixed {weight:g}": weight for weight in WEIGHTS}
ARMS: dict[str, float | None] = {"scaled": None, "task": 0.0, **FIXED}
TABLE = Table(
    "A narrow student from scratch beside a teacher",
    {"scaled": "379M, 1.4 s on a phone: GenEval 0.66", **dict.fromkeys(("task", *FIXED), "–")},
    {"excess": 4, "explained": 4},
    tuple(("scaled", other, "excess", -1) for other in ("task", *FIXED)),
    "SnapGen, text to image",
    "`fixed w` adds w times the teacher's losses, `task` none; `scaled` balances them at each noise level.",
)
STEPS = {"short": 500, "full": 3000, "tiny": 2}


def row(out: Path, tier: str, seed: int) -> Row:
    """Train a student by each arm from equal first weights, measure all."""
    sizes = account.TIERS[tier]
    account.teacher(out, sizes, seed)
    recipe = account.recipe(sizes, 3000 + seed, steps(sizes, tier, out, seed), account.narrow(sizes))
    done = run(out / f"family-scaled{seed}", recipe, 1)
    return {name: account.metrics(done, step_name(name)) for name in ARMS}


def steps(sizes: Mapping[str, Any], tier: str, out: Path, seed: int) -> list[dict[str, Any]]:
    """Return the recipe's steps: every arm begins with the same model."""
    found: list[dict[str, Any]] = [{"latent": {"use": "given"}, "name": "given"}]
    teacher = str(account.teacher_bundle(out, seed))
    for name, weight in ARMS.items():
        how = {**account.training(sizes, STEPS[tier]), "use": "scaled", "weight": weight}
        found.append({"distill": how, "name": step_name(name), "input": "given", "teacher": teacher})
        found.append(account.measured(step_name(name), sizes))
    return found


def step_name(arm: str) -> str:
    """Name an arm's step."""
    return arm.replace(" ", "-").replace(".", "_")


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, and how far the scaling is above the fixed weight that is best on average."""
    best = min(FIXED, key=lambda name: float(np.mean([row[name]["excess"] for row in rows])))
    gap = interval(np.array([row["scaled"]["excess"] - row[best]["excess"] for row in rows]))
    half = gap["high"] - gap["mean"]
    figures = {"best_fixed": best, "scaled_minus_best_fixed": round(gap["mean"], 6)}
    return list(rows), {**figures, "half": round(half, 6) if np.isfinite(half) else None}


def check() -> dict[str, Any]:
    """Return the sum of task 2 and KD 0.5 at a share of 0.25, and its slope by either."""
    task, kd = (torch.tensor([value], requires_grad=True) for value in (2.0, 0.5))
    total = scaled(task, kd, torch.tensor([0.25]), task / kd)
    slopes = [float(each) for each in torch.autograd.grad(total.sum(), [task, kd])]
    return {"value": float(total.detach()), "slopes": slopes}
