"""Related systems, each in a small experiment with claims: a world that can be read exactly, paired seeds.

    python benchmarks/family.py SYSTEM [--seeds 8] [--workers 1] [--out runs/tables] [--tier short]

    dmd      4-step students of one pruned model at equal updates: adversarial, DMD2 (``distill: dmd``), and the same
             with the adversarial student as a guide (K-DMD of SnapGen++); judged by their samples against the exact
             mixture
    scaled   a narrow student from scratch beside a teacher, equal steps: the data alone, the teacher by a fixed weight
             (three), SnapGen's scaling (``distill: scaled``); judged by the excess over the exact velocity
    reward   moving shapes, a VAE and a model for each seed, equal updates: a frozen critic's reward through the last
             sampling step, through the last two (``distill: reward``), plain flow matching; judged by what is read from
             the pixels, with the critic beside it
    count    like objects, "three tiny red circles": plain sampling, the best of two seeds by the counter, corrections
             where the count is wrong (``sampler: count``); exact count
    lazy     gates that skip attention and FFN (LazyDiT), fewer steps, diffusers' first-block cache and TaylorSeer, at
             equal module calls; judged by the distance of latents to those of all steps
    attention  every self-attention of a teacher replaced (``transform: attention``: linear with convolution, strided,
             global and local), equal healing; the excess before and after, and the time of each over tokens
    layout   kinds of blocks within a budget of seconds: a dynamic programme, an evolution, chance; judged by the regret
             to the enumerated optimum, on planted losses, on interacting ones, and on those of a teacher
    width    a teacher pruned to one size by the stream's width, by heads and FFN, by all three, tuned alike; a narrow
             model from scratch; judged by the excess over the exact velocity
    elastic  three nested widths of a teacher in one training (``distill: elastic``), against three separate trainings
             of as many samples each, from the same starts; judged by the excess over the exact velocity

A seed fixes teacher, first weights, order of data and noise. All but ``reward`` and ``count`` begin with the teachers
of ``tables.py --table 4``, in the same ``--out`` folder; what has run stays. Claims stand in the system's file before
any run: held or reversed by exact sign-flip tests over seeds, Holm's correction, 0.05. ``check`` in the last line, one
JSON object, is a number worked by hand, found by the plugin's own functions. Writes ``family-<system>.md``. A claim
that fails is a result, and so is a model on which nothing can be seen (``unfit``, no verdict): exit status 0. Tiers:
``short``, ``full``, ``tiny`` (shows that it runs).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import family_attention
import family_count
import family_dmd
import family_elastic
import family_layout
import family_lazy
import family_reward
import family_scaled
import family_width
from account import TIERS
from paired import judge, single_thread, status_of

from dit_compress.measure.latency import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paired import Row, Table


class System(Protocol):
    """A module of this folder: an experiment."""

    TABLE: Table

    def row(self, out: Path, tier: str, seed: int) -> Row:
        """Run what has not run of a seed."""

    def check(self) -> Mapping[str, Any]:
        """Return the numbers worked by hand, by the plugin's own functions."""

    def finished(self, rows: Sequence[Row]) -> tuple[list[Row], dict[str, Any]]:
        """Return the rows with measures that need all seeds, and figures of its own."""


SYSTEMS: dict[str, System] = {
    "dmd": family_dmd,
    "scaled": family_scaled,
    "reward": family_reward,
    "attention": family_attention,
    "layout": family_layout,
    "elastic": family_elastic,
    "width": family_width,
    "lazy": family_lazy,
    "count": family_count,
}


def main() -> int:
    """Run what has not run, write the table, print it, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/tables"))
    parser.add_argument("--tier", choices=TIERS, default="short")
    parser.add_argument("--workers", type=int, default=1, help="seeds at once; each has one thread")
    given = parser.parse_args()
    system, started = SYSTEMS[given.system], time.monotonic()
    rows, figures = system.finished(rows_of(given.system, given.out, given.tier, given.seeds, given.workers))
    unfit = figures.get("unfit", [])
    verdicts = [] if unfit else judge(rows, system.TABLE.claims)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    how = f"{given.tier} tier; {machine().partition(',')[0]}, one thread a seed; {day}"
    text = "\n".join([system.TABLE.markdown(rows, verdicts, how), *unfit])
    (given.out / f"family-{given.system}.md").write_text(text, "utf-8")
    print(text)
    result: dict[str, Any] = {"system": given.system, "tier": given.tier, "seeds": given.seeds}
    result |= {"claims": len(system.TABLE.claims)}
    result |= {word: sum(verdict[word] for verdict in verdicts) for word in ("held", "reversed")}
    result |= {"check": system.check(), "arms": system.TABLE.means(rows), **figures}
    print(json.dumps({**result, "minutes": round((time.monotonic() - started) / 60, 1)}))
    return 0


def rows_of(name: str, out: Path, tier: str, seeds: int, workers: int) -> list[Row]:
    """Run the seeds of a system, some at once."""
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn"), single_thread) as pool:
        return [job.result() for job in [pool.submit(row, name, out, tier, seed) for seed in range(seeds)]]


def row(name: str, out: Path, tier: str, seed: int) -> Row:
    """Run one seed of a system."""
    return SYSTEMS[name].row((out / f"mixture-{tier}").resolve(), tier, seed)


if __name__ == "__main__":
    sys.exit(status_of(main))
