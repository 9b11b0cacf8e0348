"""Four steps, part by part: what the adversarial loss adds to reconstruction, on data and on a teacher's own samples.

    python benchmarks/few_steps.py [--seeds 8] [--workers 2] [--tier short] [--out runs/tables]

In the closed-form world of ``account.py``, whose teachers and pruned models it shares (``all``, after the first mark):
what is there is taken as it is, what is missing is trained. From one pruned model every arm gets equal generator
updates, and is sampled in four steps without guidance. The measure is the sliced Wasserstein distance of its samples to
exact ones of the same captions; beside it the share of modes covered, and how wide the modes are (1: as wide as they
should be).

    rec, adv, both            reconstruction alone, the adversarial loss alone, both: on data, as in the paper
    pairs, pairs+adv          the same on pairs of noise and sample that the teacher made, without guidance
    r1-approximate, r1-exact  ``both`` with R1; K=…: its discriminator behind so many frozen blocks of N
    light_resblock3d, resblock2d_temporal    ``both`` with other heads of equal size
    guided (full)             ``pairs`` sampled with guidance 4; fixed (full): ``both`` with weights 1 and 1

Where both losses are on, the adversarial gradient is held at the same ratio to the reconstruction's (``balance:
gradient``), so that heads and depths are not compared by how loud they are. Floors: exact samples against exact ones,
noise, the pruned model undistilled in four steps, the teacher in four and in many. The claims stand below, before any
run; a claim holds where the mean paired difference is in its favour and the exact one-sided sign-flip test over
teachers has p < 0.05 after Holm's correction. Nothing is concluded where a teacher is not done, is no better than its
pruned model, or loses nothing in four steps (``unfit``). Everything runs as recipes, so that a killed run goes on. The
last line is one JSON object; a claim that fails is a result, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import account
import numpy as np
from paired import claims_table, judge, run, single_thread, status_of

from dit_compress.core.files import read_json
from dit_compress.measure.latency import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paired import Row

TIERS: dict[str, dict[str, Any]] = {
    "short": {
        "updates": 150, "lr": 3e-4, "train": {"warmup": 10, "decay": 0.05, "ema": 0.9},
        "judge": {"discriminator_lr": 2e-3, "discriminator_warmup": 50, "share_every": 25, "adversarial_weight": 0.3},
        "pairs": {"teacher_samples": 2048, "teacher_steps": 20}, "samples": {}, "many": 40,
        "arms": (),
    },
    "full": {
        "updates": 1000, "lr": 3e-4, "train": {"warmup": 10, "decay": 0.05, "ema": 0.98},
        "judge": {"discriminator_lr": 2e-3, "discriminator_warmup": 50, "share_every": 25, "adversarial_weight": 0.3},
        "pairs": {"teacher_samples": 8192, "teacher_steps": 40}, "samples": {}, "many": 40,
        "arms": ("guided", "fixed"),
    },
    "tiny": {
        "updates": 2, "lr": 3e-4, "train": {"warmup": 1},
        "judge": {"discriminator_warmup": 1, "share_every": 1},
        "pairs": {"teacher_samples": 4, "teacher_steps": 2}, "batch": 4,
        "samples": {"num_captions": 2, "samples_per_caption": 8, "directions": 8}, "many": 5,
        "arms": ("guided", "fixed"),
    },
}  # fmt: skip
"""arms: those that a tier has beyond the others. many: the teacher's steps. samples: options of the measurement."""
STEPS = 4
R1 = 0.1
MEASURE = "sliced_wasserstein"
ABLATED = "both"
FROZEN = ("K=1", "K=N/4", "K=N/2", "K=N-1")
HEADS = ("light_resblock3d", "resblock2d_temporal")
SHOWN = (MEASURE, "covered", "within", "dispersion", "adversarial_share")
FLOORS = ("exact", "noise", "undistilled", "teacher-4", "teacher")
LOSES = 1.2
"""Times the teacher's distance in many steps that the undistilled model's in four must be."""
CLAIMS = tuple(
    (better, other, MEASURE, -1)
    for better, other in (
        ("both", "rec"),
        ("pairs", "rec"),
        ("pairs", "both"),
        ("pairs+adv", "pairs"),
        ("r1-exact", "both"),
        ("K=N/2", "K=1"),
        ("K=N/2", "light_resblock3d"),
        ("K=N/2", "resblock2d_temporal"),
    )
)
"""Each: the first is nearer to the exact mixture than the second. ``K=N/2`` is ``both`` by another name."""


def main() -> int:
    """Run what has not run, print the arms and the claims, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="teachers, each with one pruned model")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="shared with tables.py --table 4")
    parser.add_argument("--tier", choices=TIERS, default="short")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once; each has one thread")
    given = parser.parse_args()
    out, started = (given.out / f"mixture-{given.tier}").resolve(), time.monotonic()
    rows = rows_of(out, given.tier, given.seeds, given.workers)
    minutes = round((time.monotonic() - started) / 60, 1)
    text, figures = judged(rows, unfit(out, rows))
    how = f"{machine().partition(',')[0]}, one thread a teacher; {given.tier} tier; {len(rows)} teachers"
    text = f"# Four steps, part by part\n\n{how}; {time.strftime('%Y-%m-%d', time.gmtime())}\n\n{text}\n"
    (given.out / f"few-steps-{given.tier}.md").write_text(text, "utf-8")
    print(text)
    print(json.dumps({"seeds": given.seeds, "tier": given.tier, **figures, "minutes": minutes}))
    return 0


# ------------------------------------------------------------------ what runs


def rows_of(out: Path, tier: str, seeds: int, workers: int) -> list[Row]:
    """Run the seeds, some at once."""
    with ProcessPoolExecutor(workers, get_context("spawn"), single_thread) as pool:
        return [job.result() for job in [pool.submit(one_seed, out, tier, seed) for seed in range(seeds)]]


def one_seed(out: Path, tier: str, seed: int) -> Row:
    """Train every arm from one pruned model, measure them and the floors."""
    sizes, world = TIERS[tier], account.TIERS[tier]
    teacher = begun(out, world, seed)
    pruned = healed(out, world, seed)
    depth = read_json(pruned / "step.json")["model"]["blocks"]
    steps: list[dict[str, Any]] = [
        *measured("undistilled", pruned / "bundle", sizes, STEPS),
        *measured("teacher-4", teacher / "bundle", sizes, STEPS),
        *measured("teacher", teacher / "bundle", sizes, sizes["many"]),
    ]
    for name, own in arms(sizes, depth).items():
        step: dict[str, Any] = {"distill": distil(sizes, own), "name": step_of(name), "input": str(pruned / "bundle")}
        if "teacher_samples" in own:
            step["teacher"] = str(teacher / "bundle")
        steps += [step, *measured(name, step_of(name), sizes, STEPS)]
    recipe = account.recipe(world, account.own_seed((seed, 0)), steps)
    done = run(account.folder(out, (seed, 0)) / "few-steps", recipe, 1)
    found = {name: metrics(done, name) for name in ("undistilled", "teacher-4", "teacher", *arms(sizes, depth))}
    first = found["undistilled"]
    for name, prefix in (("exact", "floor_"), ("noise", "chance_")):
        found[name] = {key.removeprefix(prefix): value for key, value in first.items() if key.startswith(prefix)}
    found["pruned-excess"] = {"excess": excess(pruned)}
    return {**found, "K=N/2": found[ABLATED]}


def begun(out: Path, world: Mapping[str, Any], seed: int) -> Path:
    """Return the step of a teacher: one that is there as it is, whatever version trained it, else a new one."""
    teacher = account.teacher_bundle(out, seed).parent
    if not is_measured(teacher):
        account.teacher(out, world, seed)
    return teacher


def healed(out: Path, world: Mapping[str, Any], seed: int) -> Path:
    """Return the last step of a teacher pruned by all levels and trained on to the first mark: as above.

    A new one is made as ``account.py`` makes it, in a folder of its own.
    """
    mark, place = world["marks"][0], account.folder(out, (seed, 0))
    last = account.step_name("all", mark)
    if is_measured(there := place / "all" / "run" / "steps" / last):
        return there
    budget = account.budget_of("all", world)
    step = {"prune": {"use": "trilevel", "budget": budget, "search": {"use": "taylor"}}, "name": "all"}
    steps = [{**step, "input": str(account.teacher_bundle(out, seed))}, *account.trained("all", "all", [mark], world)]
    return run(place / "pruned", account.recipe(world, account.own_seed((seed, 0)), steps), 1) / last


def is_measured(step: Path) -> bool:
    """Tell whether a step of ``account.py`` is finished, and its excess measured."""
    return (step.parent / f"{step.name}-excess" / "step.json").is_file()


def arms(sizes: Mapping[str, Any], depth: int) -> dict[str, dict[str, Any]]:
    """Return the options in which each arm differs. depth: N, of the pruned model."""
    pairs = {**sizes["pairs"], "teacher_guidance": 1.0}
    found: dict[str, dict[str, Any]] = {
        "rec": {"adversarial_weight": 0},
        "adv": {"reconstruction_weight": 0, "adversarial_weight": 1},
        "both": {},
        "pairs": {"adversarial_weight": 0, **pairs},
        "pairs+adv": pairs,
        "r1-approximate": {"r1": R1, "r1_kind": "approximate"},
        "r1-exact": {"r1": R1},
    }
    for name, frozen in zip(FROZEN, (1, math.ceil(depth / 4), None, depth - 1), strict=True):
        if frozen is not None:
            learnable = min(2, depth - frozen)  # behind all blocks but one there is one to learn
            found[name] = {"discriminator": head("dit_block", frozen, learnable_blocks=learnable)}
    found |= {name: {"discriminator": head(name, depth // 2)} for name in HEADS}
    found["guided"] = {**found["pairs"], "teacher_guidance": 4.0}
    found["fixed"] = {"balance": "fixed", "adversarial_weight": 1}
    more = {"guided", "fixed"} - set(sizes["arms"])
    return {name: own for name, own in found.items() if name not in more}


def head(name: str, frozen: int, **more: Any) -> dict[str, Any]:
    """Return a discriminator; without more of equal size (see ``dit_compress.train.discriminators``)."""
    return {"use": name, "frozen_blocks": frozen, **more}


def distil(sizes: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step of an arm: equal generator updates, whatever the discriminator needs before."""
    judged_by = sizes["judge"]
    how = {"use": "adversarial", "sampling_steps": STEPS, "batch": sizes.get("batch", 64), "lr": sizes["lr"]}
    weights = {"adversarial_weight": 1.0, "reconstruction_weight": 1.0, **judged_by, **own}
    balance = "gradient" if weights["adversarial_weight"] and weights["reconstruction_weight"] else "fixed"
    before = judged_by["discriminator_warmup"] if weights["adversarial_weight"] else 0
    if not weights["adversarial_weight"]:
        weights = {name: value for name, value in weights.items() if name not in judged_by} | {"adversarial_weight": 0}
    elif not weights["reconstruction_weight"]:
        weights.pop("share_every", None)
    return {**how, **sizes["train"], "balance": balance, **weights, "steps": sizes["updates"] + before}


def measured(name: str, source: Path | str, sizes: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
    """Return the measurement of a bundle's samples; noise and exact samples are the same for all arms."""
    how = {"use": "mixture_samples", "num_steps": steps, "guidance": 1.0, **sizes["samples"]}
    return [{"evaluate": how, "name": f"{step_of(name)}-samples", "input": str(source)}]


def step_of(name: str) -> str:
    """Return an arm's name as a step may be called."""
    return name.lower().replace("/", "-of-").replace("=", "-").replace("+", "-and-")


def metrics(steps: Path, name: str) -> dict[str, float]:
    """Read what was measured of an arm; of its training the share of the adversarial gradient, as measured last."""
    found = read_json(steps / f"{step_of(name)}-samples" / "step.json")["metrics"]
    curves = steps / step_of(name) / "curves.jsonl"
    lines = curves.read_text("utf-8").splitlines() if curves.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    share = {"adversarial_share": last["generator/adversarial_share"]} if "generator/adversarial_share" in last else {}
    return {**{key: value for key, value in found.items() if isinstance(value, float)}, **share}


def excess(step: Path) -> float:
    """Return the excess of a step of ``account.py``."""
    return account.metrics(step.parent, step.name)["excess"]


# ------------------------------------------------------------------ what follows


def unfit(out: Path, rows: Sequence[Row]) -> list[str]:
    """Say why nothing can be concluded; empty where it can."""
    folders = [account.teacher_bundle(out, seed).parents[1] for seed in range(len(rows))]
    return doubts(account.Teachers.read(folders), rows)


def doubts(teachers: account.Teachers, rows: Sequence[Row]) -> list[str]:
    """Say which teachers are not done or no better than what was pruned from them, and which lose nothing."""
    found = [f"teacher {seed} gained {gain:.0%} in its last fifth"
             for seed, gain in enumerate(teachers.gained) if gain > account.FLAT]  # fmt: skip
    for seed, (row, best) in enumerate(zip(rows, teachers.excess, strict=True)):
        pruned, plain, many = row["pruned-excess"]["excess"], row["undistilled"][MEASURE], row["teacher"][MEASURE]
        if pruned <= best:
            found.append(f"teacher {seed} is no better than its pruned model: {best:.4f} against {pruned:.4f}")
        if plain < LOSES * many:
            found.append(f"four plain steps of pruned model {seed} lose little: {plain:.3f} against {many:.3f}")
    return found


def judged(rows: Sequence[Row], doubted: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the arms and every claim as Markdown, and the figures. Without a verdict where something is doubted."""
    names = [name for name in rows[0] if name not in FLOORS and name != "pruned-excess"]
    lines = [f"| {' | '.join(('arm', *SHOWN))} |", "|---" * (len(SHOWN) + 1) + "|"]
    for name in (*FLOORS, *names):
        cells = [account.shown([row[name][key] for row in rows if key in row[name]]) for key in SHOWN]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    verdicts = [] if doubted else judge(rows, CLAIMS)
    means = {name: round(float(np.mean([row[name][MEASURE] for row in rows])), 4) for name in (*FLOORS, *names)}
    figures: dict[str, Any] = {"claims": len(CLAIMS), "judged": len(verdicts)}
    figures |= {word: sum(verdict[word] for verdict in verdicts) for word in ("held", "reversed")}
    figures["arms"] = {name: means[name] for name in names}
    figures |= {"floors": {name: means[name] for name in FLOORS}, "unfit": list(doubted)}
    return "\n".join([*lines, "", *doubted, claims_table(verdicts)]), figures


if __name__ == "__main__":
    sys.exit(status_of(main))
