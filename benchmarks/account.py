"""Table 4 as two questions, in a world whose exact velocity is known: who has the teacher, and who has yet to train it.

A teacher is pruned to the size of 4 of its 6 blocks: by ``all`` levels, with KD (Eq. 6) and without, and by one level
alone; ``shallow`` and ``narrow`` of the same size (within 1%) are trained from scratch. The measure is *excess*: the
mean squared distance to the exact velocity on held-out draws, 0 for the best possible. ``all`` may cut every level and
tries whole plans, a single level's among them, on 64 of the held-out draws; what it heals for that is thrown away.

    more    the teacher is there: every arm gets N more steps
    total   the paper's: equal total steps, the teacher's included

Each mark is the end of a schedule of its own: warm-up and cosine begin anew there, for every arm. Students of one
teacher are averaged: what is compared, pair by pair, are teachers.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
from paired import claims_table, interval, judge, parameters, run, single_thread

from dit_compress.core.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paired import Claim, Row

WORLD = {"use": "mixture", "composed": 0.9}
_MODEL = {"preset": "tiny", "layers": 6, "heads": 8, "head_width": 8, "ffn": 256, "channels": 16}
TIERS: dict[str, dict[str, Any]] = {
    "short": {
        "model": _MODEL, "text": 64, "data": WORLD, "batch": 64, "lr": 2e-3, "teacher": 5000, "marks": (300, 1000),
        "far": (3000,), "total": 1000, "plans": 12, "trial": 60, "draws": 1000,
    },
    "full": {
        "model": _MODEL, "text": 64, "data": WORLD, "batch": 64, "lr": 2e-3, "teacher": 10_000, "marks": (300, 1000),
        "far": (3000, 10_000), "total": 3000, "plans": 12, "trial": 100, "draws": 1000,
    },
    "tiny": {
        "model": _MODEL, "text": 16, "data": {**WORLD, "num_clips": 64, "num_test": 16}, "batch": 4, "lr": 2e-3,
        "teacher": 10, "marks": (2, 4), "far": (), "total": 2, "plans": 2, "trial": 1, "draws": 16,
    },
}  # fmt: skip
"""marks: N for every pair of seeds; far: further ones for the first student of the first ``FEW`` teachers, all levels
and the small models. total: steps after the teacher's that the paper's question grants."""
FEW = 3
BLOCKS_LEFT = 2 / 3
"""The size of what is pruned, as a share of the teacher's blocks."""
LEVELS = {"all": ["block", "head", "ffn"], "block": ["block"], "head": ["head"], "ffn": ["ffn"]}
NEAREST = {"head": {"remove": 6}, "ffn": {"remove": 176}}
"""Too coarse to come within 1% of the budget; the nearest below it: 2 of 8 heads (5%) and 80 of 256 channels (1.2%)."""
PRUNED, SCRATCH = ("kd", *LEVELS), ("narrow", "shallow")
PAPER = {"kd": "81.45", "all": "79.00", "shallow": "78.62", "narrow": "77.92"}
"""VBench total; "79.00 → 81.45" is training without and with KD."""
FLOORS = ("chance", "linear", "caption_blind")
KD_SHARE = 0.2
"""Norm of KD's gradient over the flow's."""
FLAT = 0.1
"""Largest share of the teacher's excess that its last fifth may have gained."""


def arm(name: str, steps: int) -> str:
    """Name an arm after N steps."""
    return f"{name}@{steps}"


def claims(question: str, sizes: Mapping[str, Any]) -> list[Claim]:
    """List what is claimed, before any run: eight claims of ``more``, four of ``total``."""
    if question == "more":
        scratch = [(arm("all", n), arm(other, n), "excess", -1) for n in sizes["marks"] for other in SCRATCH]
        last = sizes["marks"][-1]
        single = [(arm("all", last), arm(other, last), "excess", -1) for other in LEVELS if other != "all"]
        return [*scratch, *single, (arm("kd", last), arm("all", last), "excess", -1)]
    after, whole = sizes["total"], sizes["teacher"] + sizes["total"]
    return [(arm(ours, after), arm(other, whole), "excess", -1) for ours in ("all", "kd") for other in SCRATCH]


# ------------------------------------------------------------------ what runs


def teacher(out: Path, sizes: Mapping[str, Any], seed: int) -> Path:
    """Train a teacher, measure it; the folder of its steps."""
    steps = [{"latent": {"use": "given"}, "name": "given"}, *teacher_steps(sizes)]
    return run(out / f"teacher{seed}", recipe(sizes, seed, steps, sizes["model"]), 1)


def teacher_steps(sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training of a teacher, measured, with a held-out loss ten times on the way."""
    how = {**training(sizes, sizes["teacher"]), "validation": {"every": sizes["teacher"] // 10, "samples": 512}}
    return [{"distill": how, "name": "teacher"}, measured("teacher", sizes)]


def teacher_bundle(out: Path, seed: int) -> Path:
    """Return the place of a trained teacher."""
    return out / f"teacher{seed}" / "run" / "steps" / "teacher" / "bundle"


def training(sizes: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return a step of flow matching."""
    how = {"steps": steps, "batch": sizes["batch"], "lr": sizes["lr"], "warmup": min(30, steps), "decay": 0.05}
    return {"use": "flow", **how, "checkpoint_every": 500}


def recipe(
    sizes: Mapping[str, Any], seed: int, steps: Sequence[dict[str, Any]], model: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a recipe in the world; model: what it begins with, if not with a bundle."""
    text = {"use": "words", "width": sizes["text"], "length": 4, "layers": 1, "heads": 4}
    first = {"model": {"use": "video_dit", **model, "text_width": sizes["text"]}} if model else {}
    return {**first, "text": text, "data": sizes["data"], "seed": seed, "trackers": [{"use": "jsonl"}], "steps": steps}


def measured(step: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurement of a step's bundle; its draws are the same for all."""
    return {"evaluate": {"use": "excess", "num_draws": sizes["draws"]}, "name": f"{step}-excess", "input": step}


def trained(name: str, start: str, marks: Sequence[int], sizes: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Return the steps of an arm, mark by mark, each measured. more: ``distill``, options of its own; ``teacher``."""
    steps: list[dict[str, Any]] = []
    own, inputs = more.pop("distill", {}), more
    for before, mark in pairwise((0, *marks)):
        step, given = step_name(name, mark), step_name(name, before) if before else start
        how = {**training(sizes, mark - before), **own}
        steps += [{"distill": how, "name": step, "input": given, **inputs}, measured(step, sizes)]
    return steps


def step_name(name: str, mark: int) -> str:
    """Name a step of an arm."""
    return f"{name}-{mark}"


def scratch(question: str, out: Path, sizes: Mapping[str, Any], seeds: tuple[int, int]) -> Row:
    """Train the small models from scratch; where it is asked, also as long as teacher and pruned model together."""
    marks = small_marks(question, sizes, seeds)
    found: Row = {}
    for name, model in (("shallow", shallow(sizes)), ("narrow", narrow(sizes))):
        steps = [{"latent": {"use": "given"}, "name": "given"}, *trained(name, "given", marks, sizes)]
        done = run(folder(out, seeds) / name, recipe(sizes, own_seed(seeds), steps, model), 1)
        found |= {arm(name, mark): metrics(done, step_name(name, mark)) for mark in marks}
    return found


def small_marks(question: str, sizes: Mapping[str, Any], seeds: tuple[int, int]) -> list[int]:
    """List the marks of a small model."""
    whole = [sizes["teacher"] + sizes["total"]] if question == "total" or goes_far(seeds) else []
    return sorted({*sizes["marks"], *(sizes["far"] if goes_far(seeds) else ()), *whole})


def goes_far(seeds: tuple[int, int]) -> bool:
    """Tell whether a pair of seeds is trained to the further marks."""
    return seeds[0] < FEW and seeds[1] == 0


def pruned(out: Path, sizes: Mapping[str, Any], seeds: tuple[int, int], *, kd: bool = True) -> Row:
    """Prune the teacher by each choice of levels, train on; what all levels gave also by ``kd``."""
    bundle = str(teacher_bundle(out, seeds[0]))
    further = {sizes["total"], *(sizes["far"] if goes_far(seeds) else ())}
    found: Row = {}
    for name in LEVELS:
        marks = sorted({*sizes["marks"], *(further if name == "all" else ())})
        how = {"levels": {name: NEAREST[name]}} if name in NEAREST else {"budget": budget_of(name, sizes)}
        step = {"prune": {"use": "trilevel", **how, "search": {"use": "taylor"}}, "name": name}
        steps = [{**step, "input": bundle}, measured(name, sizes), *trained(name, name, marks, sizes)]
        if kd and name == "all":
            affine = {"use": "affine", "kd_share": KD_SHARE}
            steps += trained("kd", name, marks, sizes, distill=affine, teacher=bundle)
        done = run(folder(out, seeds) / name, recipe(sizes, own_seed(seeds), steps), 1)
        found[arm(name, 0)] = metrics(done, name)
        for each in (name, "kd") if kd and name == "all" else (name,):
            found |= {arm(each, mark): metrics(done, step_name(each, mark)) for mark in marks}
    return found


def budget_of(name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the budget of what is pruned by some levels; where all of them may be cut, whole plans are tried."""
    trials = {"plans": sizes["plans"], "steps": sizes["trial"]}
    return {"params": target(sizes), "levels": LEVELS[name]} | ({"trials": trials} if name == "all" else {})


def folder(out: Path, seeds: tuple[int, int]) -> Path:
    """Return the place of one student's seed."""
    return out / f"teacher{seeds[0]}-student{seeds[1]}"


def own_seed(seeds: tuple[int, int]) -> int:
    """Return a seed that no other pair has."""
    return 1000 + 100 * seeds[0] + seeds[1]


def metrics(steps: Path, step: str) -> dict[str, float]:
    """Read what was measured of a step."""
    found = read_json(steps / f"{step}-excess" / "step.json")["metrics"]
    return {name: value for name, value in found.items() if isinstance(value, float)}


# ------------------------------------------------------------------ the small models


def shallow(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the teacher with fewer blocks."""
    return {**sizes["model"], "layers": round(BLOCKS_LEFT * sizes["model"]["layers"])}


def target(sizes: Mapping[str, Any]) -> int:
    """Count the parameters of the shallow model, and 0.4% more, so that heads alone come below it as well."""
    return round(1.004 * parameters(shallow(sizes), sizes["text"]))


def narrow(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a DiT as deep as the teacher with fewer heads: of all with as many parameters, the one most like it."""
    model, most = sizes["model"], target(sizes)
    found = []
    for heads in range(1, model["heads"]):
        least, next_one = (parameters({**model, "heads": heads, "ffn": ffn}, sizes["text"]) for ffn in (1, 2))
        ffn = 1 + (most - least) // (next_one - least)
        if ffn >= 1:
            found.append((abs(ffn / heads - model["ffn"] / model["heads"]), heads, ffn))
    _, heads, ffn = min(found)
    return {**model, "heads": heads, "ffn": ffn}


# ------------------------------------------------------------------ what follows


@dataclass(frozen=True)
class Teachers:
    """What the teachers are worth. excess: of each; gained: the share of it that the last fifth gained."""

    excess: Sequence[float]
    gained: Sequence[float]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Teachers:
        """Read the teachers' figures; the last fifth, from the held-out losses."""
        excess = [metrics(steps, "teacher")["excess"] for steps in folders]
        gained = []
        for steps, value in zip(folders, excess, strict=True):
            losses = [loss for _, loss in validations(steps / "teacher" / "curves.jsonl")]
            gained.append((losses[-3] - losses[-1]) / value)
        return cls(excess, gained)

    def unfit(self, rows: Sequence[Row], sizes: Mapping[str, Any]) -> list[str]:
        """Say why nothing can be concluded; empty where it can. rows: of the teachers, in their order."""
        found = [f"a teacher gained {gain:.0%} in its last fifth" for gain in self.gained if gain > FLAT]
        whole = sizes["teacher"] + sizes["total"]
        for small in SCRATCH:
            for excess, row in zip(self.excess, rows, strict=True):
                theirs = row.get(arm(small, whole), {}).get("excess")
                if theirs is not None and theirs <= excess:
                    found.append(f"{small}, trained as long, is no worse than its teacher: {theirs:.4f}, {excess:.4f}")
        return found


def validations(curves: Path) -> list[tuple[int, float]]:
    """Read the held-out losses of a step."""
    lines = [json.loads(line) for line in curves.read_text("utf-8").splitlines()]
    return [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]


def by_teacher(rows: Mapping[tuple[int, int], Row]) -> list[Row]:
    """Average the students of each teacher, arm by arm over those that have it."""
    found = []
    for first in sorted({pair[0] for pair in rows}):
        mine = [row for pair, row in rows.items() if pair[0] == first]
        names = {name for row in mine for name in row}
        found.append({name: _mean([row[name] for row in mine if name in row]) for name in sorted(names)})
    return found


def _mean(measures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in measures])) for name in measures[0]}


def verdict(question: str, rows: Sequence[Row], sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Judge the claims over the teachers that have every arm."""
    asked = claims(question, sizes)
    fit = [row for row in rows if all(name in row for claim in asked for name in claim[:2])]
    return judge(fit, asked) if fit else []


def crossover(rows: Sequence[Row], sizes: Mapping[str, Any]) -> float | None:
    """Return the steps N at which the better small model overtakes ``all``, between marks by logarithms; None: never.

    Further marks may have fewer teachers.
    """
    marks, gaps = [], []
    for mark in sorted({*sizes["marks"], *sizes["far"]}):
        have = [row for row in rows if all(arm(name, mark) in row for name in ("all", *SCRATCH))]
        if not have:
            continue
        marks.append(mark)
        ours, *theirs = (np.mean([row[arm(name, mark)]["excess"] for row in have]) for name in ("all", *SCRATCH))
        gaps.append(float(min(theirs) - ours))
    for (left, before), (right, after) in pairwise(zip(marks, gaps, strict=True)):
        if before > 0 >= after:
            share = before / (before - after)
            return round(math.exp(math.log(left) + share * (math.log(right) - math.log(left))))
    return float(marks[0]) if gaps and gaps[0] <= 0 else None


def grid(rows: Sequence[Row], sizes: Mapping[str, Any], teachers: Teachers) -> str:
    """Show the mean excess of every arm at every mark, with half of the 95% interval, and the floors."""
    whole = sizes["teacher"] + sizes["total"]
    marks = sorted({0, *sizes["marks"], *sizes["far"], sizes["total"], whole})
    lines = ["| arm | " + " | ".join(f"N = {mark:,}" for mark in marks) + " | paper (VBench) |"]
    lines.append("|---" * (len(marks) + 2) + "|")
    for name in (*PRUNED, *SCRATCH):
        cells = [shown([row[arm(name, mark)]["excess"] for row in rows if arm(name, mark) in row]) for mark in marks]
        lines.append(f"| {name} | {' | '.join(cells)} | {PAPER.get(name, '–')} |")
    lines.append(f"| teacher, {sizes['teacher']:,} steps | {shown(teachers.excess)} |" + " |" * len(marks))
    return "\n".join([*lines, "", f"Floors: {floors(rows)}; the exact velocity has 0."])


def shown(values: Sequence[float]) -> str:
    """Show a mean and half of its 95% interval."""
    if not len(values):
        return "–"
    found = interval(np.array(values))
    half = found["high"] - found["mean"]
    return f"{found['mean']:.4f}" + (f" ± {half:.4f}" if math.isfinite(half) else "") + f" ({len(values)})"


def floors(rows: Sequence[Row]) -> dict[str, float]:
    """Return the excess of denoisers that know less, the same for all rows."""
    first = next(iter(rows[0].values()))
    return {name: round(first[f"{name}_excess"], 4) for name in FLOORS}


def account(question: str, out: Path, tier: str, pairs: tuple[int, int], workers: int) -> tuple[str, dict[str, Any]]:
    """Run what has not run of a question; the table as Markdown, and its figures. pairs: teachers, students of each."""
    sizes, out = TIERS[tier], (out / f"mixture-{tier}").resolve()
    seeds = [(first, second) for second in range(pairs[1]) for first in range(pairs[0])]
    with ProcessPoolExecutor(workers, get_context("spawn"), single_thread) as pool:
        folders = list(pool.map(teacher, *zip(*((out, sizes, seed) for seed in range(pairs[0])), strict=True)))
        small = {pair: pool.submit(scratch, question, out, sizes, pair) for pair in seeds}
        large = {pair: pool.submit(pruned, out, sizes, pair) for pair in seeds}
        rows = by_teacher({pair: {**small[pair].result(), **large[pair].result()} for pair in seeds})
    teachers = Teachers.read(folders)
    unfit = teachers.unfit(rows, sizes)
    verdicts = [] if unfit else verdict(question, rows, sizes)
    figures: dict[str, Any] = {
        "table": 4,
        "question": question,
        "tier": tier,
        "teachers": pairs[0],
        "students": pairs[1],
    }
    figures |= {"claims": len(claims(question, sizes)), "judged": len(verdicts)}
    figures |= {word: sum(found[word] for found in verdicts) for word in ("held", "reversed")}
    figures |= {"crossover_steps": crossover(rows, sizes), "floors": floors(rows), "unfit": unfit}
    figures |= {"teacher_excess": [round(value, 4) for value in teachers.excess]}
    return "\n".join([grid(rows, sizes, teachers), "", *unfit, claims_table(verdicts)]), figures
