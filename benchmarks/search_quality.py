"""Searches compared by what they prune, on the world of moving shapes: equal parameters, paired over seeds, corrected.

    python benchmarks/search_quality.py [--tier short] [--seeds 10] [--out runs/search_quality]

For every seed a teacher is trained (seed of weights, order, noise); every arm prunes that teacher to the same
number of parameters (6 of its 8 blocks' worth, within 1% from below), is measured, fine-tuned equally and shortly
by flow matching, and measured again. Arms differ in the search, or in the levels it may cut:

    groupwise     learned masks, blocks, heads and FFN channels together: what the claims are about
    magnitude, taylor, random            other searches over the same counts
    depth_only (TinyFusion's setting), head_only, channel_only    learned masks over one level

Measures: the flow-matching loss on a fixed grid of held-out clips and noise levels, and attribute accuracy of
generated videos read from their pixels; right after pruning and after fine-tuning. Also, for every seed, the
regret of each search in a space that can be listed (5 of 8 blocks): (loss - best) / (worst - best).

The claims stand below, before any run: by each measure at each time, ``groupwise`` is better than each other arm.
A claim holds where the mean paired difference is in its favour and the exact one-sided sign-flip test over seeds
has p < 0.05 after Holm's correction over all claims: with 24 claims that takes at least 9 seeds. Everything runs
as recipes of the toolkit, so that a killed run goes on; ``--workers`` seeds at once, one thread each. The last line
is one JSON object; a claim that fails is a result, and the exit status is 0.

Tiers: ``short`` (the default; all seeds and claims, a small model), ``full`` (a larger model, trained longer: hours),
``tiny`` (shows that the benchmark runs; nothing is learned).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from paired import base_recipe, encode, judge, link_cache, parameters, quality, run, shared, single_thread

from dit_compress.measure.figure3 import axes_of, opened
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.search.trial import trial

ALL = ["block", "head", "ffn"]
OTHERS = ("magnitude", "taylor", "random", "depth_only", "head_only", "channel_only")
LEVELS = {"depth_only": ["block"], "head_only": ["head"], "channel_only": ["ffn"]}
MEASURES = (("loss_pruned", -1), ("accuracy_pruned", 1), ("loss_tuned", -1), ("accuracy_tuned", 1))
"""The measures compared, and which way is better."""
CLAIMS = tuple(("groupwise", other, measure, better) for measure, better in MEASURES for other in OTHERS)
"""Each: groupwise is better than this arm by this measure."""
BLOCKS_LEFT = 6
REGRET_BLOCKS = 5

TIERS: dict[str, dict[str, Any]] = {
    "full": {
        "model": {"preset": "small", "layers": 8, "heads": 16, "head_width": 12, "ffn": 576, "channels": 96},
        "text": 96, "data": {"num_clips": 4000, "num_test": 128, "frames": 9, "size": [96, 96]},
        "vae": {"steps": 1500}, "train": {"lr": 1e-3}, "teacher": 3000, "search": 200, "tune": 300, "batch": 32,
        "score": {"num_captions": 64}, "groups": {"block": 2, "head": 4, "ffn": 8},
    },
    "short": {
        "model": {
            "preset": "small", "layers": 8, "heads": 16, "head_width": 8, "ffn": 384, "channels": 96,
            "preconditioned": True,
        },
        "text": 64, "data": {"num_clips": 1000, "num_test": 64, "frames": 9, "size": [96, 96]},
        "vae": {"steps": 300}, "train": {"lr": 2e-3, "muon_lr": 0.02}, "teacher": 400, "search": 50, "tune": 50,
        "batch": 32, "score": {"num_captions": 24, "num_steps": 10}, "groups": {"block": 2, "head": 4, "ffn": 8},
    },
    "tiny": {
        "model": {"preset": "tiny", "layers": 8, "heads": 16, "head_width": 4, "ffn": 192, "channels": 32},
        "text": 16, "data": {"num_clips": 16, "num_test": 4, "frames": 9, "size": [64, 64]},
        "vae": {"steps": 2, "widths": [8, 8, 8, 8], "blocks": 1, "pca_clips": 16}, "train": {"lr": 1e-3},
        "teacher": 4, "search": 4, "tune": 2, "batch": 4, "score": {"num_captions": 2, "num_steps": 2},
        "groups": {"block": 2, "head": 4, "ffn": 8},
    },
}  # fmt: skip


def main() -> int:
    """Run what has not run, print the comparisons, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/search_quality"))
    parser.add_argument("--tier", choices=TIERS, default="short")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once; each has one thread")
    parser.add_argument("--arms", nargs="*", choices=OTHERS, default=list(OTHERS), help="compare with these only")
    arguments = parser.parse_args()
    sizes, out = TIERS[arguments.tier], arguments.out / arguments.tier
    started = time.monotonic()
    base = run(out / "base", base_recipe(sizes), arguments.workers)
    encode(base / "vae" / "bundle")
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), single_thread) as pool:
        jobs = [pool.submit(one_seed, out, sizes, seed, tuple(arguments.arms)) for seed in range(arguments.seeds)]
        rows, regrets = map(list, zip(*(job.result() for job in jobs), strict=True))
    verdicts = judge(rows, [claim for claim in CLAIMS if claim[1] in arguments.arms])
    show(rows, regrets, verdicts)
    held = sum(verdict["held"] for verdict in verdicts)
    mean = {name: round(float(np.mean([row[name] for row in regrets])), 4) for name in regrets[0]}
    result = {"claims": len(verdicts), "claims_held": held, "regret": mean["groupwise"], "regrets": mean}
    result |= {"seeds": arguments.seeds, "tier": arguments.tier, "minutes": round((time.monotonic() - started) / 60, 1)}
    print(json.dumps(result))
    return 0


# ------------------------------------------------------------------ what runs


def one_seed(
    out: Path, sizes: dict[str, Any], seed: int, others: tuple[str, ...]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Run a seed; its arms' measures, and the regrets."""
    arms, folder, vae = ("groupwise", *others), out / f"seed{seed}", out / "base" / "run" / "steps" / "vae" / "bundle"
    link_cache(out / "base", folder)
    steps = run(folder, seed_recipe(sizes, vae, seed, arms), 1)
    row = {arm: figures(steps, arm, sizes["score"]) for arm in arms}
    return row, regret(steps / "teacher" / "bundle", sizes, folder / "regret")


def seed_recipe(sizes: dict[str, Any], vae: Path, seed: int, arms: tuple[str, ...]) -> dict[str, Any]:
    """Make the recipe of a teacher and all arms of one seed. The VAE of the base is read from its bundle."""
    train = {"use": "flow", "batch": sizes["batch"], "decay": 0.05, **sizes["train"]}
    steps: list[dict[str, Any]] = [{"distill": {**train, "steps": sizes["teacher"], "ema": 0.99}, "name": "teacher"}]
    steps[0]["input"] = str(vae.resolve())
    for arm in arms:
        budget = {"params": target(sizes), "levels": LEVELS.get(arm, ALL)}
        prune = {"use": "trilevel", "budget": budget, "search": search_of(arm, sizes)}
        steps.append({"prune": prune, "name": arm, "input": "teacher"})
        steps.append({"distill": {**train, "steps": sizes["tune"]}, "name": f"{arm}-tuned", "input": arm})
    return {**shared(sizes), "seed": seed, "steps": steps}


def search_of(arm: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the arm's search; the three that learn or look at data see as many samples."""
    if arm in ("magnitude", "random"):
        return {"use": arm}
    if arm == "taylor":
        return {"use": "taylor", "batches": sizes["search"], "batch": sizes["batch"]}
    learned = {"steps": sizes["search"], "batch": sizes["batch"], "groups": sizes["groups"]}
    return {"use": "groupwise", "objective": {"use": "flow"}, **learned}


def target(sizes: dict[str, Any]) -> int:
    """Count the parameters with ``BLOCKS_LEFT`` blocks, and 0.4% more, so that heads alone come below it as well."""
    return round(1.004 * parameters({**sizes["model"], "layers": BLOCKS_LEFT}, sizes["text"]))


# ------------------------------------------------------------------ what is measured


def figures(steps: Path, arm: str, score: dict[str, Any]) -> dict[str, float]:
    """Return the four measures and the parameters of an arm."""
    found: dict[str, float] = {}
    for when, bundle in (("pruned", arm), ("tuned", f"{arm}-tuned")):
        measured = quality(steps / bundle / "bundle", score)
        found |= {f"{name}_{when}": measured[name] for name in ("loss", "accuracy")}
        found["params"] = measured["params"]
    return found


def regret(teacher: Path, sizes: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return per search how much of the spread between the best and the worst choice of blocks its choice gives away.

    Every choice is measured on the same batches, which none of the searches has seen.
    """
    context, denoiser = opened(str(teacher), folder)
    folder.mkdir(parents=True, exist_ok=True)
    axes = tuple(axes_of(denoiser, ["block"])["block"])
    problem = SearchProblem(denoiser, axes, {axis.name: REGRET_BLOCKS for axis in axes})
    chosen = {}
    for name in ("groupwise", "magnitude", "taylor", "random", "greedy"):
        few = {"batches": 4, "batch": sizes["batch"]} if name == "greedy" else {}
        part = make_part(
            "search", {**search_of(name if name != "greedy" else "random", sizes), "use": name, **few}, installed()
        )
        chosen[name] = part.build().search(problem, context).kept[axes[0].name]
    context.seed += 10**6
    judge_by = make_part("search", {"use": "exhaustive", "batches": 4, "batch": sizes["batch"]}, installed()).options
    with trial(problem, context, judge_by.objective, judge_by) as measured:
        every = itertools.combinations(range(axes[0].units), REGRET_BLOCKS)
        losses = {units: measured.loss({axes[0].name: units}) for units in every}
    best, worst = min(losses.values()), max(losses.values())
    return {name: (losses[units] - best) / (worst - best) for name, units in chosen.items()}


# ------------------------------------------------------------------ what follows


def show(rows: list[Any], regrets: list[Any], verdicts: list[dict[str, Any]]) -> None:
    """Print the means per arm, regrets, and every claim."""
    names = [measure for measure, _ in MEASURES]
    print(f"{'arm':14}{'parameters':>12}" + "".join(f"{name:>17}" for name in names))
    for arm in rows[0]:
        means = [np.mean([row[arm][name] for row in rows]) for name in names]
        print(f"{arm:14}{rows[0][arm]['params']:12,.0f}" + "".join(f"{mean:17.4f}" for mean in means))
    for name in regrets[0]:
        print(f"regret of {name:14} {np.mean([row[name] for row in regrets]):.3f} of the spread")
    for verdict in verdicts:
        verdict_word = "held    " if verdict["held"] else "NOT HELD"
        spread = f"{verdict['mean']:+.4f} [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
        print(
            f"{verdict_word} groupwise over {verdict['other']:13} by {verdict['measure']:16} {spread}, "
            f"p {verdict['corrected']:.4f}"
        )


if __name__ == "__main__":
    sys.exit(main())
