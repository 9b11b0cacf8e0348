"""Four steps, part by part, on moving shapes: the question of few_steps.py, asked of one finished run.

    dit-compress run recipes/shapes.yaml        # make evidence: the teacher, and ``compact``, pruned from it
    python benchmarks/few_steps_shapes.py [--run runs/shapes] [--seeds 2] [--workers 2] [--out runs/tables]

From ``compact`` every arm gets equal generator updates, and is sampled in four steps without guidance: reconstruction
alone, the adversarial loss alone, both, on data; the teacher's guided samples alone, and with the adversarial loss;
``both`` with two other heads of equal size, at the same share in the gradient (``balance: gradient``). Measured is what
can be read from the pixels of two videos of each of 512 held-out captions: the share of attributes that are right, and
the variance of pixels between the two. Floors: ``compact`` itself, the teacher in four unguided steps and as it is
meant to be sampled, and (in the last line) what a real clip of another caption scores.

There is one teacher, so that the unit is a group of 64 captions: eight groups, each arm's mean over ``--seeds``
trainings. Claims stand below, before any run; they are judged as in few_steps.py, and say something of this teacher
alone. Nothing is concluded where four steps of ``compact`` lose less than 0.05 to the teacher (``unfit``). What has run
stays. Writes ``few-steps-shapes.md``; the last line is one JSON object, and a claim that fails is a result: exit
status 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import few_steps
import numpy as np
from paired import Table, judge, link_cache, run, single_thread, status_of
from scenes import held_out

from dit_compress.core.errors import UserError
from dit_compress.core.files import read_json, write_json
from dit_compress.measure.figure3 import opened
from dit_compress.measure.latency import machine
from dit_compress.plugin.registry import installed
from dit_compress.recipe import document, make_part
from dit_compress_plugins.evaluate_shapes import ShapesEvaluationOptions
from dit_compress_plugins.evaluate_shapes.scores import ATTRIBUTES, diversity, floors, score
from dit_compress_plugins.evaluate_shapes.step import ShapesEvaluation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paired import Row

ARMS = ("rec", "adv", "both", "pairs", "pairs+adv", *few_steps.HEADS)
FLOORS = ("undistilled", "teacher-4", "teacher")
GROUPS = 8
LOST = 0.05
"""Accuracy that four plain steps must lose to the teacher, or there is nothing to gain."""
TABLE = Table(
    "Four steps, part by part, on moving shapes",
    {**dict.fromkeys((*FLOORS, "rec", "adv"), "–"), "both": "81.63", "pairs": "–", "pairs+adv": "–",
     "light_resblock3d": "77.24", "resblock2d_temporal": "80.14"},
    {"accuracy": 4, "diversity": 5},
    (
        ("both", "rec", "accuracy", 1),
        ("pairs", "rec", "accuracy", 1),
        ("pairs+adv", "pairs", "accuracy", 1),
        ("pairs+adv", "pairs", "diversity", 1),
        ("both", "light_resblock3d", "accuracy", 1),
        ("both", "resblock2d_temporal", "accuracy", 1),
    ),
    "VBench total by head (Table 5)",
    "`accuracy`: share of attributes read right; `diversity`: variance of pixels between two videos of a caption. "
    "The spread is over groups of captions, of one teacher. `teacher` is sampled as it is meant to be; no floor is in "
    "a claim.",
)  # fmt: skip
TIERS: dict[str, dict[str, Any]] = {
    "short": {**few_steps.TIERS["short"], "batch": 32, "pairs": {"teacher_samples": 2048, "teacher_steps": 6},
              "captions": 512},
    "tiny": {**few_steps.TIERS["tiny"], "captions": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Begin:
    """A finished run: its recipe without steps, and the bundles of its teacher and of what was pruned from it."""

    folder: Path
    recipe: Mapping[str, Any]
    teacher: Path
    pruned: Path

    @classmethod
    def of(cls, folder: Path, teacher: str, pruned: str) -> Begin:
        """Look for both; UserError where one is not finished."""
        folder = folder.resolve()
        for name in (teacher, pruned):
            if not (folder / "steps" / name / "step.json").is_file():
                what = f"there is no finished step {name!r} in this run"
                raise UserError(what, where=str(folder), mend="Run recipes/shapes.yaml first, or name another --run")
        recipe = document.read(folder / "recipe.yaml").data
        bundles = (folder / "steps" / name / "bundle" for name in (teacher, pruned))
        return cls(folder, {key: value for key, value in recipe.items() if key not in ("name", "steps")}, *bundles)


def main() -> int:
    """Run what has not run, print the arms and the claims, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--teacher", default="teacher", help="its step")
    parser.add_argument("--pruned", default="compact", help="the step that every arm begins with")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each arm")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"))
    parser.add_argument("--tier", choices=TIERS, default="short")
    parser.add_argument("--workers", type=int, default=2, help="seeds at once; each has one thread")
    given = parser.parse_args()
    started = time.monotonic()
    begin = Begin.of(given.run, given.teacher, given.pruned)
    rows, chance = rows_of(begin, given.out.resolve(), given.tier, given.seeds, given.workers)
    unfit = doubts(rows)
    verdicts = [] if unfit else judge(rows, TABLE.claims)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    captions = TIERS[given.tier]["captions"]
    how = f"of {captions} captions, {given.seeds} trainings of each arm; {machine().partition(',')[0]}, one thread"
    text = TABLE.markdown(rows, verdicts, f"{how}; {given.tier} tier; {day}")
    text = "\n".join([text.replace(f"{len(rows)} seeds;", f"{len(rows)} groups", 1), *unfit])
    (given.out / "few-steps-shapes.md").write_text(text, "utf-8")
    print(text)
    result: dict[str, Any] = {"seeds": given.seeds, "tier": given.tier, "captions": captions}
    result |= {"claims": len(TABLE.claims), "judged": len(verdicts)}
    result |= {word: sum(verdict[word] for verdict in verdicts) for word in ("held", "reversed")}
    result |= {"arms": TABLE.means(rows), "chance": chance, "unfit": unfit}
    print(json.dumps({**result, "minutes": round((time.monotonic() - started) / 60, 1)}))
    return 0


# ------------------------------------------------------------------ what runs


def rows_of(begin: Begin, out: Path, tier: str, seeds: int, workers: int) -> tuple[list[Row], float]:
    """Return a row for each group of captions, and the accuracy of a real clip of another caption."""
    with ProcessPoolExecutor(workers, get_context("spawn"), single_thread) as pool:
        jobs = [pool.submit(one_seed, begin, out, tier, seed) for seed in range(seeds)]
        return joined([job.result() for job in jobs]), chance(begin, tier)


def one_seed(begin: Begin, out: Path, tier: str, seed: int) -> dict[str, list[dict[str, float]]]:
    """Train every arm once and measure it, with the first seed the floors, too: by group of captions."""
    sizes, folder = TIERS[tier], out / f"shapes-{tier}" / f"seed{seed}"
    depth = read_json(begin.pruned.parent / "step.json")["model"]["blocks"]
    steps = []
    for name, own in arms(sizes, depth).items():
        step: dict[str, Any] = {"distill": few_steps.distil(sizes, own), "name": few_steps.step_of(name)}
        step |= {"input": str(begin.pruned)} | ({"teacher": str(begin.teacher)} if "teacher_samples" in own else {})
        steps.append(step)
    link_cache(begin.folder, folder)
    done = run(folder, {**begin.recipe, "seed": seed, "steps": steps}, 1)
    plain = {"num_steps": few_steps.STEPS, "guidance": 1}
    bundles = {name: (done / few_steps.step_of(name) / "bundle", plain) for name in ARMS}
    if not seed:
        bundles |= {"undistilled": (begin.pruned, plain), "teacher-4": (begin.teacher, plain)}
        bundles["teacher"] = begin.teacher, {"num_steps": sizes["many"]}
    truths = scenes(begin, sizes["captions"])
    return {name: kept(folder, name, bundle, truths, how) for name, (bundle, how) in bundles.items()}


def arms(sizes: Mapping[str, Any], depth: int) -> dict[str, dict[str, Any]]:
    """Return the options in which each arm differs; pairs are of the teacher as its bundle is sampled: guided."""
    found = few_steps.arms(sizes, depth)
    return {name: {key: value for key, value in found[name].items() if key != "teacher_guidance"} for name in ARMS}


def scenes(begin: Begin, number: int) -> dict[str, Mapping[str, Any]]:
    """Draw as many scenes of the run's world with captions that no training clip has: the truth of each caption."""
    return held_out(make_part("data", begin.recipe["data"], installed()).options, number, str(begin.folder))


def kept(
    folder: Path, name: str, bundle: Path, truths: Mapping[str, Mapping[str, Any]], how: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Return what was measured of these weights; measure it where it was not."""
    context, _ = opened(str(bundle), bundle)
    path = folder / "measured" / f"{few_steps.step_of(name)}-{context.input.digest('denoiser')[:12]}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"groups": measured(context, truths, how)})
    return list(read_json(path)["groups"])


def measured(context: Any, truths: Mapping[str, Mapping[str, Any]], how: Mapping[str, Any]) -> list[dict[str, float]]:
    """Sample two videos of each caption, and read them; from equal noise whatever the bundle."""
    clips: list[Any] = [SimpleNamespace(caption=caption, truth=truth) for caption, truth in truths.items()]
    each, found = len(clips) // GROUPS, []
    for group in range(GROUPS):
        drawn = ShapesEvaluation(ShapesEvaluationOptions(videos_per_caption=2, seed=group, **how))
        shares, spreads = [], []
        for clip, videos in drawn.generated(context, clips[group * each : (group + 1) * each]):
            scores = [score(video, clip.truth, clip.caption) for video in videos]
            shares.append(np.mean([[one[name] for name in ATTRIBUTES] for one in scores]))
            spreads.append(diversity(videos))
        found.append({"accuracy": float(np.mean(shares)), "diversity": float(np.mean(spreads))})
    return found


def chance(begin: Begin, tier: str) -> float:
    """Return what a real clip of another caption scores."""
    return round(floors(list(scenes(begin, TIERS[tier]["captions"]).values()))["chance"], 4)


# ------------------------------------------------------------------ what follows


def joined(seeds: Sequence[Mapping[str, list[dict[str, float]]]]) -> list[Row]:
    """Return a row for each group: each arm's mean over the trainings there are."""
    names = dict.fromkeys(name for seed in seeds for name in seed)
    return [
        {
            name: {
                measure: float(np.mean([seed[name][group][measure] for seed in seeds if name in seed]))
                for measure in TABLE.measures
            }
            for name in names
        }
        for group in range(GROUPS)
    ]


def doubts(rows: Sequence[Row]) -> list[str]:
    """Say why nothing can be concluded; empty where it can."""
    plain, whole = (float(np.mean([row[name]["accuracy"] for row in rows])) for name in ("undistilled", "teacher"))
    if whole - plain >= LOST:
        return []
    return [f"four plain steps of the pruned model lose little to the teacher: {plain:.3f} against {whole:.3f}"]


if __name__ == "__main__":
    sys.exit(status_of(main))
