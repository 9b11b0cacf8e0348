"""Which search prunes best, on the world of moving shapes: equal parameters, paired over seeds, corrected.

    python benchmarks/search_quality.py [--seeds 10] [--out runs/search_quality]

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
as recipes of the toolkit, so that a killed run goes on. The last line is one JSON object; a claim that fails is a
result, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dit_compress.files import read_json
from dit_compress.measure.quality import data_grid
from dit_compress.pipeline import Runner
from dit_compress.plugins import installed
from dit_compress.recipe import load, make_part
from dit_compress.sensitivity import axes_of, opened
from dit_compress.structure.search import SearchProblem
from dit_compress.structure.trial import trial

ALL = ["block", "head", "ffn"]
OTHERS = ("magnitude", "taylor", "random", "depth_only", "head_only", "channel_only")
LEVELS = {"depth_only": ["block"], "head_only": ["head"], "channel_only": ["ffn"]}
MEASURES = (("loss_pruned", -1), ("accuracy_pruned", 1), ("loss_tuned", -1), ("accuracy_tuned", 1))
"""What is compared, and which way is better."""
CLAIMS = tuple((other, measure, better) for measure, better in MEASURES for other in OTHERS)
"""Each: groupwise is better than this arm by this measure."""
LEVEL = 0.05
BLOCKS_LEFT = 6
REGRET_BLOCKS = 5

FULL: dict[str, Any] = {
    "model": {"preset": "small", "layers": 8, "heads": 16, "head_width": 12, "ffn": 576, "channels": 96},
    "text": 96, "data": {"num_clips": 4000, "num_test": 128, "frames": 9, "size": [96, 96]}, "vae": {"steps": 1500},
    "teacher": 3000, "search": 200, "tune": 300, "captions": 64, "batch": 32,
    "groups": {"block": 2, "head": 4, "ffn": 8},
}  # fmt: skip
TINY: dict[str, Any] = {
    "model": {"preset": "tiny", "layers": 8, "heads": 16, "head_width": 4, "ffn": 192, "channels": 32},
    "text": 16, "data": {"num_clips": 16, "num_test": 4, "frames": 9, "size": [64, 64]},
    "vae": {"steps": 2, "widths": [8, 8, 8, 8], "blocks": 1, "pca_clips": 16},
    "teacher": 4, "search": 4, "tune": 2, "captions": 2, "batch": 4, "groups": {"block": 2, "head": 4, "ffn": 8},
}  # fmt: skip
"""At this size nothing is learned: it shows that the benchmark runs."""


def main() -> int:
    """Run what has not run, print the comparisons, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/search_quality"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="seconds per step; proves nothing")
    parser.add_argument("--arms", nargs="*", choices=OTHERS, default=list(OTHERS), help="compare with these only")
    arguments = parser.parse_args()
    sizes = TINY if arguments.tiny else FULL
    vae = run(arguments.out / "base", base_recipe(sizes), arguments.threads) / "vae" / "bundle"
    rows, regrets = [], []
    for seed in range(arguments.seeds):
        recipe = seed_recipe(sizes, vae, seed, ("groupwise", *arguments.arms))
        steps = run(arguments.out / f"seed{seed}", recipe, arguments.threads)
        rows.append({arm: figures(steps, arm) for arm in ("groupwise", *arguments.arms)})
        regrets.append(regret(steps / "teacher" / "bundle", sizes, arguments.out / f"seed{seed}" / "regret"))
    verdicts = judge(rows, [claim for claim in CLAIMS if claim[0] in arguments.arms])
    show(rows, regrets, verdicts)
    held = sum(verdict["held"] for verdict in verdicts)
    mean = {name: round(float(np.mean([row[name] for row in regrets])), 4) for name in regrets[0]}
    result = {"claims": len(verdicts), "claims_held": held, "regret": mean["groupwise"], "regrets": mean}
    print(json.dumps({**result, "seeds": arguments.seeds, "tiny": arguments.tiny}))
    return 0


# ------------------------------------------------------------------ what runs


def base_recipe(sizes: dict[str, Any]) -> dict[str, Any]:
    """Clips and the VAE, shared by all seeds."""
    channels = sizes["model"]["channels"]
    vae = {"use": "video_vae", "channels": channels, "batch": 4, "lr": 2e-2, **sizes["vae"]}
    head = {"model": {"use": "video_dit", **sizes["model"], "text_width": sizes["text"]}}
    return {**head, **shared(sizes), "seed": 0, "steps": [{"latent": vae, "name": "vae"}]}


def shared(sizes: dict[str, Any]) -> dict[str, Any]:
    """Text and data."""
    return {"text": {"use": "words", "width": sizes["text"]}, "data": {"use": "shapes", **sizes["data"]}}


def seed_recipe(sizes: dict[str, Any], vae: Path, seed: int, arms: tuple[str, ...]) -> dict[str, Any]:
    """A teacher, and all arms of one seed. The VAE of the base is read from its bundle."""
    train = {"use": "flow", "batch": sizes["batch"], "lr": 1e-3, "decay": 0.05}
    steps: list[dict[str, Any]] = [{"distill": {**train, "steps": sizes["teacher"], "ema": 0.99}, "name": "teacher"}]
    steps[0]["input"] = str(vae.resolve())
    score = {"use": "shapes", "num_captions": sizes["captions"]}
    for arm in arms:
        budget = {"params": target(sizes), "levels": LEVELS.get(arm, ALL)}
        steps += [
            {"prune": {"use": "trilevel", "budget": budget, "search": search_of(arm, sizes)}, "name": arm},
            {"evaluate": score, "name": f"{arm}-score"},
            {"distill": {**train, "steps": sizes["tune"]}, "name": f"{arm}-tuned"},
            {"evaluate": score, "name": f"{arm}-tuned-score"},
        ]
        for step, source in zip(steps[-4:], ("teacher", arm, arm, f"{arm}-tuned"), strict=True):
            step["input"] = source
    return {**shared(sizes), "seed": seed, "steps": steps}


def search_of(arm: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The arm's search; the three that learn or look at data see as many samples."""
    if arm in ("magnitude", "random"):
        return {"use": arm}
    if arm == "taylor":
        return {"use": "taylor", "batches": sizes["search"], "batch": sizes["batch"]}
    learned = {"steps": sizes["search"], "batch": sizes["batch"], "groups": sizes["groups"]}
    return {"use": "groupwise", "objective": {"use": "flow"}, **learned}


def target(sizes: dict[str, Any]) -> int:
    """Parameters of the model with ``BLOCKS_LEFT`` blocks, and 0.4% more, so that heads alone come below it as well."""
    import torch

    options = {"use": "video_dit", **sizes["model"], "text_width": sizes["text"], "layers": BLOCKS_LEFT}
    with torch.device("meta"):
        module = make_part("model", options, installed()).build().create()
    return round(1.004 * sum(parameter.numel() for parameter in module.parameters()))


def run(folder: Path, recipe: dict[str, Any], threads: int) -> Path:
    """Run a recipe, or what is left of it; the folder of its steps."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({"name": folder.name, **recipe}, sort_keys=False), "utf-8")
    Runner(load(path, installed()), folder / "run", threads, (), frozenset(), lambda text: print(text, flush=True)).run(
        None
    )
    return folder / "run" / "steps"


# ------------------------------------------------------------------ what is measured


def figures(steps: Path, arm: str) -> dict[str, float]:
    """The four measures and the parameters of an arm."""
    found: dict[str, float] = {}
    for when, bundle in (("pruned", arm), ("tuned", f"{arm}-tuned")):
        context, denoiser = opened(str(steps / bundle / "bundle"), steps)
        text = context.text()
        grid = data_grid(context.latents("test", text), text, context.input.flow, 128)
        found[f"loss_{when}"] = grid.loss(denoiser)
        found[f"accuracy_{when}"] = read_json(steps / f"{bundle}-score" / "step.json")["metrics"]["attribute_accuracy"]
        found["params"] = sum(parameter.numel() for parameter in denoiser.module.parameters())
    return found


def regret(teacher: Path, sizes: dict[str, Any], folder: Path) -> dict[str, float]:
    """Per search: how much of the spread between the best and the worst choice of blocks its choice gives away.

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


def judge(rows: list[dict[str, dict[str, float]]], claims: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """Each claim with its mean paired advantage, 95% interval (Student's t), p, corrected p, and verdict."""
    verdicts = []
    for other, measure, better in claims:
        gains = better * np.array([row["groupwise"][measure] - row[other][measure] for row in rows])
        verdicts.append({"other": other, "measure": measure, **interval(gains), "p": sign_flip(gains)})
    for verdict, corrected in zip(verdicts, holm([verdict["p"] for verdict in verdicts]), strict=True):
        verdict |= {"corrected": corrected, "held": verdict["mean"] > 0 and corrected < LEVEL}
    return verdicts


def sign_flip(gains: np.ndarray) -> float:
    """Exact one-sided p: the share of all sign patterns whose mean is at least the one seen."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(gains))))
    return float(np.mean(signs @ np.abs(gains) >= gains.sum() - 1e-12 * np.abs(gains).sum()))


def holm(values: list[float]) -> list[float]:
    """Holm's step-down correction."""
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = running
    return corrected.tolist()


def interval(gains: np.ndarray) -> dict[str, float]:
    """Mean and its 95% confidence interval."""
    from scipy.stats import t

    half = (
        float(t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else float("inf")
    )
    return {"mean": float(gains.mean()), "low": float(gains.mean()) - half, "high": float(gains.mean()) + half}


def show(rows: list[Any], regrets: list[Any], verdicts: list[dict[str, Any]]) -> None:
    """Means per arm, regrets, and every claim."""
    names = [measure for measure, _ in MEASURES]
    print(f"{'arm':14}{'parameters':>12}" + "".join(f"{name:>17}" for name in names))
    for arm in rows[0]:
        means = [np.mean([row[arm][name] for row in rows]) for name in names]
        print(f"{arm:14}{rows[0][arm]['params']:12,.0f}" + "".join(f"{mean:17.4f}" for mean in means))
    for name in regrets[0]:
        print(f"regret of {name:14} {np.mean([row[name] for row in regrets]):.3f} of the spread")
    for verdict in verdicts:
        told = "held    " if verdict["held"] else "NOT HELD"
        spread = f"{verdict['mean']:+.4f} [{verdict['low']:+.4f}, {verdict['high']:+.4f}]"
        print(
            f"{told} groupwise over {verdict['other']:13} by {verdict['measure']:16} {spread}, "
            f"p {verdict['corrected']:.4f}"
        )


if __name__ == "__main__":
    sys.exit(main())
