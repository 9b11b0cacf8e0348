"""Searches compared by what they prune: equal parameters, equal steps afterwards, paired over seeds, corrected.

    python benchmarks/search_quality.py [--teachers 8] [--students 3] [--workers 2] [--tier short] [--out runs/tables]

In the world of ``account.py``, whose teachers and pruned models it shares. The measure is *excess*, the loss above the
best possible, after ``N`` steps of flow matching.

    all, block, head, ffn              a budget shared out by measured sensitivity: over all levels, over one
    groupwise, mixed, magnitude,       other searches than Taylor's, over the counts that ``all`` settled on; groupwise
    random                             begins from mixed: blocks by measured removals, heads and channels by Taylor
    removals                           ``all``, but blocks of curves and trials ranked by removals, and chosen by mixed

The claims stand below, before any run. Students of one teacher are averaged. A claim holds where the mean paired
difference is in its favour and the exact one-sided sign-flip test has p < 0.05 after Holm's correction. Nothing is
concluded where a teacher is not done (``unfit``). For every teacher also the *regret* of each search in a space that
can be listed (4 of 6 blocks): (loss - best) / (worst - best). Everything runs as recipes of the toolkit, so that a
killed run goes on. The last line is one JSON object; a claim that fails is a result, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import account
import numpy as np
from paired import claims_table, interval, judge, run, single_thread, status_of

from dit_compress.core.files import read_json
from dit_compress.measure.figure3 import axes_of, opened
from dit_compress.plugin.registry import installed
from dit_compress.recipe import make_part
from dit_compress.search.problem import SearchProblem
from dit_compress.search.trial import trial
from dit_compress.structure.edits import from_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paired import Row

OTHERS = ("groupwise", "mixed", "magnitude", "random")
SINGLE = ("block", "head", "ffn")
CLAIMS = (
    *(("all", level, "excess", -1) for level in SINGLE),
    ("groupwise", "taylor", "excess", -1),
    *(("taylor", other, "excess", -1) for other in ("magnitude", "random")),
)
"""Each: the first is better than the second. ``taylor`` is ``all`` by another name: its counts, its search."""
REGRET_BLOCKS = 4
LEARNED = {"short": {"steps": 200, "batch": 64}, "full": {"steps": 400, "batch": 64}, "tiny": {"steps": 4, "batch": 4}}
"""The training of a learned search, by tier."""


def main() -> int:
    """Run what has not run, print the comparisons, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teachers", type=int, default=8)
    parser.add_argument("--students", type=int, default=3, help="seeds of students, for each teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="shared with tables.py --table 4")
    parser.add_argument("--tier", choices=account.TIERS, default="short")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once; each has one thread")
    given = parser.parse_args()
    out, started = (given.out / f"mixture-{given.tier}").resolve(), time.monotonic()
    pairs = [(first, second) for second in range(given.students) for first in range(given.teachers)]
    with ProcessPoolExecutor(given.workers, get_context("spawn"), single_thread) as pool:
        list(
            pool.map(
                account.teacher,
                *zip(*((out, account.TIERS[given.tier], seed) for seed in range(given.teachers)), strict=True),
            )
        )
        found = {pair: pool.submit(one_pair, out, given.tier, pair) for pair in pairs}
        rows = account.by_teacher({pair: job.result() for pair, job in found.items()})
        jobs = [pool.submit(regret, out, given.tier, seed) for seed in range(given.teachers)]
        regrets = [job.result() for job in jobs]
    folders = [out / f"teacher{seed}" / "run" / "steps" for seed in range(given.teachers)]
    doubted = account.Teachers.read(folders).unfit(rows, account.TIERS[given.tier])
    figures = judged(rows, regrets, doubted)
    figures |= {"tier": given.tier, "minutes": round((time.monotonic() - started) / 60, 1)}
    print(json.dumps(figures))
    return 0


# ------------------------------------------------------------------ what runs


def one_pair(out: Path, tier: str, seeds: tuple[int, int]) -> Row:
    """Prune a teacher by every arm, train on equally; the excess of each."""
    sizes = account.TIERS[tier]
    steps = sizes["marks"][0]
    shared = account.pruned(out, sizes, seeds, kd=False)
    row = {name: shared[account.arm(name, steps)] for name in ("all", *SINGLE)}
    bundle = str(account.teacher_bundle(out, seeds[0]))
    levels = counts(account.folder(out, seeds) / "all" / "run" / "steps" / "all" / "kept.json")
    recipe: list[dict[str, Any]] = []
    for name in OTHERS:
        prune = {"use": "trilevel", "levels": levels, "search": search_of(name, tier)}
        recipe.append({"prune": prune, "name": name, "input": bundle})
        recipe += account.trained(name, name, [steps], sizes)
    done = run(account.folder(out, seeds) / "searches", account.recipe(sizes, account.own_seed(seeds), recipe), 1)
    row |= {name: account.metrics(done, account.step_name(name, steps)) for name in OTHERS}
    return {**row, "taylor": row["all"], "removals": by_removals(out, sizes, seeds)}


def by_removals(out: Path, sizes: Mapping[str, Any], seeds: tuple[int, int]) -> dict[str, float]:
    """Prune by all levels, blocks ranked by measured removals throughout, and train on; the excess."""
    budget = {**account.budget_of("all", sizes), "blocks_by": "removals"}
    prune = {"use": "trilevel", "budget": budget, "search": "mixed"}
    steps = sizes["marks"][0]
    recipe = [
        {"prune": prune, "name": "removals", "input": str(account.teacher_bundle(out, seeds[0]))},
        *account.trained("removals", "removals", [steps], sizes),
    ]
    done = run(account.folder(out, seeds) / "removals", account.recipe(sizes, account.own_seed(seeds), recipe), 1)
    return account.metrics(done, account.step_name("removals", steps))


def counts(kept: Path) -> dict[str, dict[str, int]]:
    """Return what a pruning removed of each level, the same in every block, as options of that level."""
    found = read_json(kept)
    removed: dict[str, int] = {}
    for axis in found["axes"]:
        record = found["kept"].get(axis["name"])
        removed[axis["level"]] = axis["units"] - len(from_ranges(record["units"])) if record else 0
    return {level: {"remove": number} for level, number in removed.items() if number}


def search_of(name: str, tier: str) -> dict[str, Any]:
    """Return an arm's search."""
    if name != "groupwise":
        return {"use": name}
    return {"use": "groupwise", "objective": {"use": "flow"}, **LEARNED[tier]}


# ------------------------------------------------------------------ what is measured


def regret(out: Path, tier: str, seed: int) -> dict[str, float]:
    """Return per search how much of the spread between the best and the worst choice of blocks its choice gives away.

    Every choice is measured on the same batches, which none of the searches has seen. What measures looks at as many
    samples, and what learns begins from that.
    """
    sizes = account.TIERS[tier]
    bundle, folder = account.teacher_bundle(out, seed), out / f"teacher{seed}" / "regret"
    shutil.rmtree(folder, ignore_errors=True)  # a search would go on from the checkpoints of an older one
    folder.mkdir(parents=True)
    context, denoiser = opened(str(bundle), folder)
    axes = tuple(axes_of(denoiser, ["block"])["block"])
    problem = SearchProblem(denoiser, axes, {axis.name: REGRET_BLOCKS for axis in axes})
    few = {"batches": 4, "batch": sizes["batch"]}
    mixed = {"use": "mixed", "blocks": {"use": "greedy", **few}, "rest": {"use": "taylor", **few}}
    asked = {name: search_of(name, tier) for name in OTHERS} | {"mixed": mixed, "taylor": {"use": "taylor", **few}}
    asked |= {"groupwise": {**asked["groupwise"], "init": mixed}, "greedy": {"use": "greedy", **few}}
    chosen = {
        name: make_part("search", given, installed()).build().search(problem, context).kept[axes[0].name]
        for name, given in asked.items()
    }
    context.seed += 10**6
    judge_by = make_part("search", {"use": "exhaustive", **few}, installed()).options
    with trial(problem, context, judge_by.objective, judge_by) as measured:
        every = itertools.combinations(range(axes[0].units), REGRET_BLOCKS)
        losses = {units: measured.loss({axes[0].name: units}) for units in every}
    best, worst = min(losses.values()), max(losses.values())
    return {name: (losses[units] - best) / (worst - best) for name, units in chosen.items()}


# ------------------------------------------------------------------ what follows


def judged(rows: Sequence[Row], regrets: Sequence[Mapping[str, float]], doubted: Sequence[str] = ()) -> dict[str, Any]:
    """Print the means, the regrets and every claim; return the figures. doubted: why there is no verdict."""
    for arm in rows[0]:
        print(f"{arm:10} excess {account.shown([row[arm]['excess'] for row in rows])}")
    mean = {name: round(float(np.mean([row[name] for row in regrets])), 4) for name in regrets[0]}
    for name, value in mean.items():
        print(f"regret of {name:10} {value:.3f} of the spread")
    verdicts = [] if doubted else judge(rows, CLAIMS)
    print("\n".join([*doubted, f"Floors: {account.floors(rows)}.", claims_table(verdicts)]))
    best = min(SINGLE, key=lambda level: np.mean([row[level]["excess"] for row in rows]))
    figures: dict[str, Any] = {"teachers": len(rows), "claims": len(CLAIMS)}
    figures |= {word: sum(verdict[word] for verdict in verdicts) for word in ("held", "reversed")}
    for name, first, other in (
        ("all_levels_minus_best_single", "all", best),
        ("groupwise_minus_taylor", "groupwise", "taylor"),
        ("groupwise_minus_start", "groupwise", "mixed"),
        ("removals_minus_all", "removals", "all"),
    ):
        gap = interval(np.array([row[first]["excess"] - row[other]["excess"] for row in rows]))
        figures |= {name: round(gap["mean"], 5), f"{name}_half": round(gap["high"] - gap["mean"], 5)}
    figures |= {"best_single": best, "regret": mean["groupwise"], "regrets": mean}
    return {**figures, "floors": account.floors(rows), "unfit": list(doubted)}


if __name__ == "__main__":
    sys.exit(status_of(main))
