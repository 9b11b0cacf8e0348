"""``kill -9`` at random instants in every kind of step; the results must be those of an uninterrupted run, bit for bit.

    python benchmarks/kill_resume.py -n 30 [--recipe tests/recipes/smoke.yaml] [--seed 0]

One run of the recipe goes through undisturbed. Others are killed, the whole process group at once: in each step in
turn, at a uniformly random instant of the time that step took in the undisturbed run. The same command then
continues, until the run is whole; its bundles (checksums of all files, transform logs, lineage) are compared with the
undisturbed ones. The last line is one JSON object: ``identical`` counts the kills whose run ended so. Exit status 1
where it is below ``kills``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dit_compress.bundle import Bundle
from dit_compress.files import read_json

ROOT = Path(__file__).parents[1]
POLL_S = 0.005
LIMIT_S = 1800


class Run:
    """A run folder, and the command that works on it."""

    def __init__(self, recipe: Path, folder: Path, threads: int) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        self.command = [sys.executable, "-m", "dit_compress", "run", str(recipe)]
        self.command += ["--out", str(folder), "--threads", str(threads)]

    def start(self) -> subprocess.Popen[bytes]:
        """The command in a process group of its own."""
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)

    def finish(self) -> None:
        """Run to the end."""
        status = self.start().wait(LIMIT_S)
        if status:
            raise SystemExit(f"the run ended with status {status}:\n{self.log.read_text()[-3000:]}")

    def begun(self, step: str) -> bool:
        """Whether a step is at work."""
        return (self.folder / "steps" / f"{step}.partial").is_dir()

    def done(self, step: str) -> bool:
        """Whether a step is finished."""
        return (self.folder / "steps" / step / "step.json").is_file()

    def now(self, steps: list[str]) -> str:
        """The step at work, or what stands between two."""
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
    """Digest and description of every bundle of a run."""
    found = {step: folder / "steps" / step / "bundle" for step in steps}
    opened = {step: Bundle.open(path) for step, path in found.items() if path.is_dir()}
    return {step: (bundle.digest(), bundle.data) for step, bundle in opened.items()}


def durations(folder: Path, steps: list[str]) -> dict[str, float]:
    """Seconds of each step's work, and a second around it for the process to start and end."""
    return {step: 1.0 + read_json(folder / "steps" / step / "step.json")["seconds"] for step in steps}


def main() -> int:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=30, help="kills")
    parser.add_argument("--recipe", type=Path, default=ROOT / "tests" / "recipes" / "smoke.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    kills, identical, places = 0, 0, Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        whole = Run(given.recipe, Path(name) / "whole", given.threads)
        whole.finish()
        steps = read_json(whole.folder / "run.json")["steps"]
        expected, lasting = bundles(whole.folder, steps), durations(whole.folder, steps)
        print(f"undisturbed: {len(steps)} steps, {len(expected)} bundles, {sum(lasting.values()):.0f} s", flush=True)
        number = 0
        while kills < given.n:
            number += 1
            run, here = Run(given.recipe, Path(name) / f"killed-{number}", given.threads), 0
            for step in steps:
                if kills + here == given.n:
                    break
                where = run.kill_in(step, rng.uniform(0, lasting[step]), steps)
                if where is None:
                    break
                here += 1
                places[where] += 1
            run.finish()
            found = bundles(run.folder, steps)
            same = found == expected
            kills, identical = kills + here, identical + (here if same else 0)
            differ = [step for step in expected if found.get(step) != expected[step]]
            print(f"run {number}: {here} kills, {'identical' if same else f'DIFFERENT: {differ}'}", flush=True)
    print(f"killed in: {dict(places)}")
    figures = {"kills": kills, "identical": identical, "runs": number, "steps": len(steps), "bundles": len(expected)}
    print(json.dumps({**figures, "threads": given.threads, "killed_in": dict(places)}))
    return 0 if identical == kills else 1


if __name__ == "__main__":
    sys.exit(main())
