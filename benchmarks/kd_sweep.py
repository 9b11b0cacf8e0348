"""When KD pays: its share in the gradient, its kind, few data and many, modulation of low rank.

    python benchmarks/kd_sweep.py [--seeds 8] [--workers 2] [--tier short] [--out DIR] [--parts levels modulation]

In the closed-form world of ``account.py``; the measure is *excess*, the loss above the best possible, after equal
steps.

    levels       teachers and pruned models (``all``, before any training on) of ``tables.py --table 4``: what is there
                 is taken as it is. Each arm on all data (``many``) and on ``FEW_CLIPS`` of them (``few``)
    modulation   a teacher of CogVideoX's class, whose blocks have modulation of their own, made of rank ``RANK``

    flow                     flow matching alone
    alpha 0.01               and feature KD as the paper weighs it
    share 0.05, 0.2, 0.5     feature KD, its weight set by the norm of its gradient over the flow's (cosine)
    mse, relative mse        the same at 0.2, other distances
    output, share+output     the teacher's velocity as a second target; with feature KD at 0.2

Learning rate and schedule are those of ``account.py``, the same for all. The claims stand below, before any run; one
holds where the mean paired difference is in its favour and the exact one-sided sign-flip test over teachers has
p < 0.05 after Holm's correction. Nothing is concluded of a part where a teacher of it is not done, or no better than
what flow matching makes of its pruned model (``unfit``). Everything runs as recipes, so that a killed run goes on. The
last line is one JSON object; a claim that fails is a result, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import account
import few_steps
import numpy as np
from paired import claims_table, judge, run, single_thread, status_of

from dit_compress.measure.latency import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paired import Row

TEACHERS = {"levels": ("teacher", "flow, many"), "modulation": ("modulated teacher", "flow, low rank")}
"""By part: what its teacher is called, and the arm it must be better than."""
FEW_CLIPS = {"short": 500, "full": 500, "tiny": 16}
RANK = 2
_SHARE = {"use": "affine", "kd_share": 0.2}
ARMS: dict[str, dict[str, Any]] = {
    "flow": {},
    "alpha 0.01": {"use": "affine", "alpha": 0.01},
    **{f"share {share}": {"use": "affine", "kd_share": share} for share in (0.05, 0.2, 0.5)},
    "mse": {**_SHARE, "sim": "mse"},
    "relative mse": {**_SHARE, "sim": "relative_mse"},
    "output": {"use": "affine", "alpha": 0.0, "output_weight": 1.0},
    "share+output": {**_SHARE, "output_weight": 1.0},
}
"""By name: how ``distill`` differs from flow matching."""
LOW_RANK = ("flow", "share 0.2", "output")
"""The arms of low rank."""
CLAIMS = tuple(
    (better, other, "excess", -1)
    for better, other in (
        ("share 0.2, many", "flow, many"),
        ("share 0.2, few", "flow, few"),
        ("output, many", "flow, many"),
        ("output, few", "flow, few"),
        ("alpha 0.01, many", "flow, many"),
        ("share 0.5, many", "share 0.05, many"),
        ("relative mse, many", "share 0.2, many"),
        ("share 0.2, low rank", "flow, low rank"),
        ("output, low rank", "flow, low rank"),
    )
)
"""Each: the first is better than the second."""


def main() -> int:
    """Run what has not run, print the arms and the claims, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="teachers")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="shared with tables.py --table 4")
    parser.add_argument("--tier", choices=account.TIERS, default="short")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once; each has one thread")
    parser.add_argument("--parts", choices=TEACHERS, nargs="+", default=list(TEACHERS))
    given = parser.parse_args()
    out, started = (given.out / f"mixture-{given.tier}").resolve(), time.monotonic()
    rows = rows_of(out, given.tier, given.seeds, given.workers, given.parts)
    minutes = round((time.monotonic() - started) / 60, 1)
    text, figures = judged(rows, unfit(rows))
    how = f"{machine().partition(',')[0]}, one thread a teacher; {given.tier} tier; {len(rows)} teachers"
    text = f"# When distillation pays\n\n{how}; {time.strftime('%Y-%m-%d', time.gmtime())}\n\n{text}\n"
    (given.out / f"kd-sweep-{given.tier}.md").write_text(text, "utf-8")
    print(text)
    print(json.dumps({"seeds": given.seeds, "tier": given.tier, **figures, "minutes": minutes}))
    return 0


# ------------------------------------------------------------------ what runs


def rows_of(out: Path, tier: str, seeds: int, workers: int, parts: Sequence[str]) -> list[Row]:
    """Run the seeds, some at once."""
    with ProcessPoolExecutor(workers, get_context("spawn"), single_thread) as pool:
        return [job.result() for job in [pool.submit(one_seed, out, tier, seed, parts) for seed in range(seeds)]]


def one_seed(out: Path, tier: str, seed: int, parts: Sequence[str]) -> Row:
    """Train every arm of a teacher, measure it."""
    world = account.TIERS[tier]
    found = by_rank(out, world, seed) if "modulation" in parts else {}
    if "levels" in parts:
        few = {**world, "data": {**world["data"], "num_clips": FEW_CLIPS[tier]}}
        found |= by_levels(out, world, seed, "many", world) | by_levels(out, world, seed, "few", few)
        found["teacher"] = worth(few_steps.begun(out, world, seed))
    return found


def by_levels(out: Path, world: Mapping[str, Any], seed: int, amount: str, seen: Mapping[str, Any]) -> Row:
    """Train the pruned model by every arm on the data of ``seen``; teacher and pruned model know all of ``world``."""
    teacher = few_steps.begun(out, world, seed)
    steps = trained(ARMS, str(pruned(out, world, seed) / "bundle"), str(teacher / "bundle"), seen)
    recipe = account.recipe(seen, account.own_seed((seed, 0)), steps)
    done = run(account.folder(out, (seed, 0)) / f"kd-{amount}", recipe, 1)
    return {f"{name}, {amount}": account.metrics(done, step_of(name)) for name in ARMS}


def pruned(out: Path, world: Mapping[str, Any], seed: int) -> Path:
    """Return the step in which a teacher was pruned by all levels, before any training on."""
    return few_steps.healed(out, world, seed).parent / "all"


def by_rank(out: Path, world: Mapping[str, Any], seed: int) -> Row:
    """Train a teacher with modulation, make that of low rank, train on by every arm."""
    steps = [{"latent": {"use": "given"}, "name": "given"}, *account.teacher_steps(world)]
    steps += [{"prune": {"use": "modulation", "rank": RANK}, "name": "low-rank", "input": "teacher"}]
    steps += [account.measured("low-rank", world), *trained(LOW_RANK, "low-rank", "teacher", world)]
    model = {"use": "diffusers", "class_name": "CogVideoXTransformer3DModel", "config": modulated(world)}
    done = run(out / f"modulated{seed}", {"model": model, **account.recipe(world, seed, steps)}, 1)
    found = {f"{name}, low rank": account.metrics(done, step_of(name)) for name in LOW_RANK}
    found["untrained, low rank"] = account.metrics(done, "low-rank")
    return {**found, "modulated teacher": worth(done / "teacher")}


def trained(names: Sequence[str] | Mapping[str, Any], start: str, teacher: str, world: Mapping[str, Any]) -> list[Any]:
    """Return the steps of some arms, each measured."""
    steps: list[dict[str, Any]] = []
    for name in names:
        how = {**account.training(world, world["marks"][0]), **ARMS[name]}
        slots = {"teacher": teacher} if "use" in ARMS[name] else {}
        steps += [{"distill": how, "name": step_of(name), "input": start, **slots}]
        steps.append(account.measured(step_of(name), world))
    return steps


def step_of(name: str) -> str:
    """Return an arm's name as a step may be called."""
    return name.replace(" ", "-").replace(".", "_").replace("+", "-and-")


def modulated(world: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a model of about the teacher's size whose blocks have modulation of their own."""
    model = world["model"]
    size = {"num_layers": model["layers"], "attention_head_dim": model["head_width"], "time_embed_dim": 64}
    latent = {"in_channels": model["channels"], "out_channels": model["channels"], "patch_size": 1}
    latent |= {"sample_width": 2, "sample_height": 2, "sample_frames": 1, "temporal_compression_ratio": 1}
    text = {"text_embed_dim": world["text"], "max_text_seq_length": 4}
    return {**size, **latent, **text, "num_attention_heads": model["heads"]}


def worth(teacher: Path) -> dict[str, float]:
    """Return a teacher's excess, and the share of it that its last fifth gained."""
    found = account.Teachers.read([teacher.parent])
    return {"excess": found.excess[0], "gained": found.gained[0]}


# ------------------------------------------------------------------ what follows


def unfit(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Say by part why nothing can be concluded of it; no part where all can be."""
    found: dict[str, list[str]] = {}
    for part, (name, plain) in TEACHERS.items():
        why = []
        for seed, row in enumerate(row for row in rows if name in row):
            if row[name]["gained"] > account.FLAT:
                why.append(f"{name} {seed} gained {row[name]['gained']:.0%} in its last fifth")
            if row[name]["excess"] >= row[plain]["excess"]:
                why.append(f"{name} {seed} is no better than what flow matching makes of its pruned model")
        if why:
            found[part] = why
    return found


def part_of(arm: str) -> str:
    """Name the part that an arm belongs to."""
    return "modulation" if arm.endswith("low rank") else "levels"


def judged(rows: Sequence[Row], doubted: Mapping[str, Sequence[str]]) -> tuple[str, dict[str, Any]]:
    """Return the arms and every claim whose arms ran as Markdown, and the figures; no verdict of a doubted part."""
    lines = ["| arm | excess |", "|---|---|"]
    lines += [f"| {name} | {account.shown([row[name]['excess'] for row in rows])} |" for name in rows[0]]
    why = [reason for reasons in doubted.values() for reason in reasons]
    able = [claim for claim in CLAIMS if {*claim[:2]} <= rows[0].keys() and part_of(claim[0]) not in doubted]
    verdicts = judge(rows, able) if able else []
    figures: dict[str, Any] = {"claims": len(CLAIMS), "judged": len(verdicts)}
    figures |= {word: sum(verdict[word] for verdict in verdicts) for word in ("held", "reversed")}
    arms = {name: round(float(np.mean([row[name]["excess"] for row in rows])), 5) for name in rows[0]}
    figures |= {"arms": arms, "floors": account.floors(rows), "unfit": why}
    return "\n".join([*lines, "", f"Floors: {figures['floors']}.", *why, "", claims_table(verdicts)]), figures


if __name__ == "__main__":
    sys.exit(status_of(main))
