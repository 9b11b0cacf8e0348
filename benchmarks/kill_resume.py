"""``kill -9`` at random instants in every kind of step; the results must be those of an uninterrupted run, bit for bit.

    python benchmarks/kill_resume.py -n 30 [--workers 2] [--recipe tests/recipes/smoke.yaml] [--seed 0]

One run of the recipe goes through undisturbed. Others are killed, the whole process group at once: in each step in
turn, at a random instant of the time that step took in the undisturbed run: of three rounds one in its first third,
one in its second, one in its last. The same command then
continues, until the run is whole; its bundles (checksums of all files, transform logs, lineage) are compared with the
undisturbed ones. With ``--workers 2`` two runs are killed at a time: one in the first half of the steps, one in the
second, which begins with hard links to what the undisturbed run had before them. The last line is one JSON object:
``identical`` counts the kills whose run ended so, ``kinds`` the kills by kind of step. Exit status 1 where
``identical`` is below ``kills``, or where, of at least as many kills as steps, a kind of step was never hit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dit_compress.core.files import link_tree, read_json
from dit_compress.model.bundle import Bundle

ROOT = Path(__file__).parents[1]
POLL_S = 0.005


class Run:
    """A run folder, and the command that works on it."""

    def __init__(self, recipe: Path, folder: Path, threads: int) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        self.command = [sys.executable, "-m", "dit_compress", "run", str(recipe)]
        self.command += ["--out", str(folder), "--threads", str(threads)]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own."""
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log, process_group=0)

    def finish(self) -> dict[str, float]:
        """Run to the end; the seconds that each step was at work, its process' start included."""
        process, seen = self.start(), dict[str, tuple[float, float]]()
        while process.poll() is None:
            now = time.monotonic()
            for place in (self.folder / "steps").glob("*.partial"):
                seen[place.stem] = (seen.get(place.stem, (now, now))[0], now)
            time.sleep(POLL_S)
        if process.returncode:
            raise SystemExit(f"the run ended with status {process.returncode}:\n{self.log.read_text()[-3000:]}")
        return {step: last - first for step, (first, last) in seen.items()}

    def begun(self, step: str) -> bool:
        """Tell whether a step is at work."""
        return (self.folder / "steps" / f"{step}.partial").is_dir()

    def done(self, step: str) -> bool:
        """Tell whether a step is finished."""
        return (self.folder / "steps" / step / "step.json").is_file()

    def now(self, steps: list[str]) -> str:
        """Name the step at work, or what stands between two."""
        return next((step for step in steps if self.begun(step)), "between steps")

    def kill_in(self, step: str, delay_s: float, steps: list[str]) -> str | None:
        """Kill everything ``delay_s`` after the step began; where that was, None if the run was through before."""
        process = self.start()
        began = None
        while process.poll() is None:
            if began is None and (self.begun(step) or self.done(step)):
                began = time.monotonic()
            if began is not None and time.monotonic() - began >= delay_s:
                where = self.now(steps)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return where
            time.sleep(POLL_S)
        if process.returncode:
            raise SystemExit(f"a resumed run ended with status {process.returncode}:\n{self.log.read_text()[-3000:]}")
        return None


def bundles(folder: Path, steps: list[str]) -> dict[str, object]:
    """Return digest and description of every bundle of a run."""
    found = {step: folder / "steps" / step / "bundle" for step in steps}
    opened = {step: Bundle.open(path) for step, path in found.items() if path.is_dir()}
    return {step: (bundle.digest(), bundle.data) for step, bundle in opened.items()}


def kinds(folder: Path, steps: list[str]) -> dict[str, str]:
    """Name what each step is: ``distill: flow``."""
    records = {step: read_json(folder / "steps" / step / "step.json") for step in steps}
    named = {step: record["parts"].get("step", {}).get("plugin") for step, record in records.items()}
    return {step: f"{record['kind']}: {named[step]}" if named[step] else "base" for step, record in records.items()}


def linked(whole: Path, target: Path, before: list[str]) -> None:
    """Make a run folder that has got as far as these steps: hard links to what the undisturbed run had then.

    The toolkit replaces files and never writes into one, so the links are safe; what it does rewrite is copied.
    """
    if not before:
        return
    for step in before:
        link_tree(whole / "steps" / step, target / "steps" / step)
    for item in whole.iterdir():
        if item.name in ("run.json", "data.json", "recipe.yaml"):
            shutil.copy2(item, target / item.name)
    ended = (whole / "steps" / before[-1] / "step.json").stat().st_mtime_ns
    for item in sorted((whole / "cache").rglob("*")):
        if item.is_file() and item.stat().st_mtime_ns <= ended:
            place = target / item.relative_to(whole)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(item, place)


@dataclass
class Walk:
    """One run that is killed in each of some steps in turn, after the fraction of its time given with each."""

    number: int
    kills: list[tuple[str, float]]


def walks(steps: list[str], count: int, parts: int, rng: random.Random) -> list[Walk]:
    """Plan ``count`` kills, step after step and round after round; each round cut into ``parts`` runs.

    Of R rounds the i-th kills in the i-th of R equal parts of every step's time.
    """
    rounds = [steps[: count - done] for done in range(0, count, len(steps))]
    size = math.ceil(len(steps) / parts)
    pieces = [
        (place, one[first : first + size]) for place, one in enumerate(rounds) for first in range(0, len(one), size)
    ]
    return [
        Walk(number, [(step, (place + rng.random()) / len(rounds)) for step in piece])
        for number, (place, piece) in enumerate(pieces, 1)
    ]


class Judge:
    """The undisturbed run, and what it says of the others."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.whole = Run(given.recipe, folder / "whole", given.threads)
        self.lasting = self.whole.finish()
        self.steps: list[str] = read_json(self.whole.folder / "run.json")["steps"]
        self.expected = bundles(self.whole.folder, self.steps)
        self.kinds = kinds(self.whole.folder, self.steps)

    def walk(self, walk: Walk) -> tuple[list[str], bool]:
        """Kill one run; return where (``between steps`` included), and whether it ended as the undisturbed one."""
        begun = time.monotonic()
        run = Run(self.given.recipe, self.folder / f"killed-{walk.number}", self.given.threads)
        run.folder.mkdir()
        first = self.steps.index(walk.kills[0][0])
        linked(self.whole.folder, run.folder, self.steps[:first])
        hits = [run.kill_in(step, share * self.lasting[step], self.steps) for step, share in walk.kills]
        run.finish()
        found = bundles(run.folder, self.steps)
        differ = [step for step in self.expected if found.get(step) != self.expected[step]]
        places = [hit for hit in hits if hit is not None]
        outcome = f"DIFFERENT: {differ}" if differ else "identical"
        print(f"run {walk.number}: {len(places)} kills, {outcome}, {time.monotonic() - begun:.0f} s", flush=True)
        shutil.rmtree(run.folder)
        return places, not differ and found.keys() == self.expected.keys()


def main() -> int:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=30, help="kills")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--recipe", type=Path, default=ROOT / "tests" / "recipes" / "smoke.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rng, kills, identical, runs, places = random.Random(given.seed), 0, 0, 0, Counter[str]()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.workers) as pool:
        judge = Judge(given, Path(name))
        spent = sum(judge.lasting.values())
        print(f"undisturbed: {len(judge.steps)} steps, {len(judge.expected)} bundles, {spent:.0f} s", flush=True)
        while kills < given.n:  # a run that was through before its kill came counts for nothing
            planned = walks(judge.steps, given.n - kills, given.workers, rng)
            for number, walk in enumerate(planned, runs + 1):
                walk.number = number
            runs += len(planned)
            for hits, same in pool.map(judge.walk, planned):
                kills, identical = kills + len(hits), identical + (len(hits) if same else 0)
                places.update(hits)
    hit = Counter(dict.fromkeys(judge.kinds.values(), 0))
    for step, count in places.items():
        hit[judge.kinds.get(step, step)] += count
    missed = [kind for kind, count in hit.items() if not count] if given.n >= len(judge.steps) else []
    print(f"killed in: {dict(places)}")
    print(f"kinds of step: {dict(hit)}" + (f"; never hit: {missed}" if missed else ""))
    figures = {"kills": kills, "identical": identical, "runs": runs, "steps": len(judge.steps)}
    figures |= {"bundles": len(judge.expected), "threads": given.threads, "seconds": round(time.monotonic() - begun)}
    print(json.dumps({**figures, "killed_in": dict(places), "kinds": dict(hit)}))
    return 0 if identical == kills and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
