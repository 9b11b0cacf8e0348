"""Few-step students of one pruned model: adversarial, DMD2, K-DMD with the adversarial student as its guide.

Nothing is guided: the teacher's distribution is the mixture, as far as it learned it. Every student's generator has
equally many updates; a distribution-matching one has two of its critic for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import account
import numpy as np
import torch
from paired import Table, run

from dit_compress.core.files import read_json
from dit_compress.model.flow import Flow, euler, expand
from dit_compress.testing.models import tiny_denoiser, tiny_text
from dit_compress_plugins.distill_dmd import DmdOptions
from dit_compress_plugins.distill_dmd.distiller import DmdObjective, Real

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Row
    from torch import Tensor

STUDENTS = ("adversarial", "dmd", "kdmd")
TABLE = Table(
    "Four steps: adversarial, distribution matching, and that with a guide",
    {
        "adversarial": "–",
        "dmd": "–",
        "kdmd": "28 → 4 steps, 0.4B: DPG 85.2 → 82.7, GenEval 0.70 → 0.69",
        "undistilled": "–",
        "teacher": "–",
    },
    {"sliced_wasserstein": 4, "spread": 4, "covered": 3, "within": 3, "dispersion": 3},
    (
        ("dmd", "undistilled", "sliced_wasserstein", -1),
        ("kdmd", "undistilled", "sliced_wasserstein", -1),
        ("kdmd", "dmd", "sliced_wasserstein", -1),
        ("kdmd", "adversarial", "sliced_wasserstein", -1),
        ("kdmd", "dmd", "spread", -1),
    ),
    "SnapGen++, text to image",
    "`spread` is a seed's distance, in `sliced_wasserstein`, to its arm's median over seeds. `undistilled` is what "
    "all begin with, pruned and healed, in 4 plain steps; `teacher` takes 20 and is in no claim.",
)
SIZES: dict[str, dict[str, Any]] = {
    "short": {"heal": 300, "updates": 160, "warmup": 20, "lr": 5e-4, "pairs": 1024, "captions": 32, "each": 128},
    "full": {"heal": 1000, "updates": 2000, "warmup": 100, "lr": 3e-4, "pairs": 16384, "captions": 216, "each": 256},
    "tiny": {"heal": 2, "updates": 2, "warmup": 1, "lr": 1e-3, "pairs": 4, "captions": 2, "each": 4},
}
"""updates: of every student's generator. pairs: samples of the teacher that the adversarial student reconstructs."""
WEIGHT = 0.3
"""Of the adversarial gradient beside the reconstruction's, as in ``few_steps.py``."""
CRITIC = 2
"""Updates of the critic for each of the student."""


def row(out: Path, tier: str, seed: int) -> Row:
    """Prune and heal a teacher, distil it by each way, measure all."""
    sizes, own = account.TIERS[tier], SIZES[tier]
    account.teacher(out, sizes, seed)
    bundle = str(account.teacher_bundle(out, seed))
    done = run(out / f"family-dmd{seed}", account.recipe(sizes, 2000 + seed, steps(sizes, own, bundle)), 1)
    return {name: measures(done, name) for name in (*STUDENTS, "undistilled", "teacher")}


def steps(sizes: Mapping[str, Any], own: Mapping[str, Any], teacher: str) -> list[dict[str, Any]]:
    """Return the recipe's steps: pruned, healed, three students, and what each samples."""
    prune = {"use": "trilevel", "levels": {"block": {"remove": 2}}, "search": {"use": "taylor"}}
    heal = {**account.training(sizes, own["heal"]), "use": "affine", "kd_share": account.KD_SHARE}
    found: list[dict[str, Any]] = [
        {"prune": prune, "name": "pruned", "input": teacher},
        {"distill": heal, "name": "healed", "teacher": teacher},
    ]
    inputs = {"input": "healed", "teacher": teacher}
    found += [{"distill": how(name, sizes, own), "name": name, **inputs} for name in ("adversarial", "dmd")]
    found.append({"distill": how("kdmd", sizes, own), "name": "kdmd", **inputs, "guide": "adversarial"})
    found += [sampled(name, name, own) for name in STUDENTS]
    found.append(sampled("undistilled", "healed", own, num_steps=4))
    return [*found, sampled("teacher", teacher, own, num_steps=20)]


def how(name: str, sizes: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step of a student: of equally many updates of its generator."""
    common = {"batch": sizes["batch"], "lr": own["lr"], "decay": 0.1, "ema": 0.95, "checkpoint_every": 500}
    if name == "adversarial":
        judge: dict[str, Any] = {"discriminator_lr": own["lr"], "discriminator_warmup": own["warmup"]}
        judge |= {"balance": "gradient", "adversarial_weight": WEIGHT}
        pairs = {"teacher_samples": own["pairs"], "teacher_steps": 20, "teacher_guidance": 1}
        return {"use": "adversarial", "steps": own["warmup"] + own["updates"], **common, **judge, **pairs}
    total = own["warmup"] + CRITIC * own["updates"]
    critic = {"critic_lr": own["lr"], "critic_warmup": own["warmup"], "student_every": CRITIC, "guidance": 1}
    look = {"every": max(own["warmup"] + 1, total // 5), "samples": 128, "result": "best"}
    return {"use": "dmd", "steps": total, **common, **critic, "validation": look}


def sampled(name: str, step: str, own: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the measurement of what a bundle samples without guidance."""
    drawn = {"num_captions": own["captions"], "samples_per_caption": own["each"], "guidance": 1, **more}
    return {"evaluate": {"use": "mixture_samples", **drawn}, "name": f"{name}-samples", "input": step}


def measures(done: Path, name: str) -> dict[str, float]:
    """Read what was measured of an arm."""
    found = read_json(done / f"{name}-samples" / "step.json")["metrics"]
    return {key: found[key] for key in TABLE.measures if key in found}


def finished(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows with each seed's distance to its arm's median."""
    middle = {name: float(np.median([row[name]["sliced_wasserstein"] for row in rows])) for name in TABLE.paper}
    return [
        {name: {**found, "spread": abs(found["sliced_wasserstein"] - middle[name])} for name, found in row.items()}
        for row in rows
    ], {}


# ------------------------------------------------------------------ worked by hand


class Normal(torch.nn.Module):
    """The exact velocity where clean latents are N(mean, 1)."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor, sigma_B: Tensor, cond: Any) -> Tensor:  # noqa: ARG002 - a denoiser's
        """Return noise less x0, each its expectation at ``x``."""
        sigma = expand(sigma_B, x)
        rest = (x - (1 - sigma) * self.mean) / ((1 - sigma).square() + sigma.square())
        return sigma * rest - (self.mean + (1 - sigma) * rest)


def check() -> dict[str, Any]:
    """Return x0_fake - x0_real at sigma 0.5 for real N(0, 1) and fake N(m, 1), over m, at several x: one half."""
    mean, points = 1.5, torch.linspace(-3, 3, 8).reshape(1, 8, 1, 1, 1)
    student = tiny_denoiser("video_dit")
    real = Real(Normal(0.0), Flow(3.0, 4, 1.0), euler)  # type: ignore[arg-type]
    made = DmdObjective(DmdOptions(), student, real, tiny_text(), Flow(3.0, 4, 1.0))
    made.critic = Normal(mean)  # type: ignore[assignment]
    fake_x0, real_x0 = made.posteriors(points, torch.tensor([0.5]), None)  # type: ignore[arg-type]
    gaps = ((fake_x0 - real_x0) / mean).flatten()
    return {"gap_over_m": round(float(gaps.mean()), 6), "range": round(float(gaps.max() - gaps.min()), 6)}
