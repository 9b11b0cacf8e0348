"""Seconds and processor time of the test suite and of the commands that a user waits for.

    python benchmarks/suite.py [--quick] [--rounds 3]

The suite is what ``make test`` runs, with this Python. The commands are ``check`` and ``plan`` of
``recipes/mobile_video.yaml`` and ``--help``; the least of some rounds counts. Processor time is that of all processes
below, those that outlive their parent among them (a fork server does), so this runs on Linux only. ``--quick`` leaves
the suite out. The last line is one JSON object. Exit status 1 where a command fails, or the suite takes more than 10
minutes or 13 of processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
RECIPE = "recipes/mobile_video.yaml"
SUITE = ("make", "-o", "install", f"BIN={BIN}", "test")  # -o: as it is installed, whatever changed since
COMMANDS = {"check": ("check", RECIPE), "plan": ("plan", RECIPE), "help": ("--help",)}
GOAL_S, GOAL_CPU_S = 600.0, 780.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Modules are compiled once, as where pip installed them; with that variable every process compiles all of them."""
PR_SET_CHILD_SUBREAPER = 36
"""Of ``linux/prctl.h``: orphans below become children of this process, and their time is counted here."""


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, seconds of processors, exit status, what was printed."""

    seconds: float
    cpu: float
    status: int
    printed: str


def main() -> int:
    """Print a line per command, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave the suite out")
    parser.add_argument("--rounds", type=int, default=3, help="times that each command runs")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    found = {}
    for name, words in COMMANDS.items():
        runs = [spent(str(BIN / "dit-compress"), *words) for _ in range(arguments.rounds)]
        found[name] = min(runs, key=lambda run: (run.status != 0, run.cpu))
        report(" ".join(("dit-compress", *words)), found[name])
    if not arguments.quick:
        found["suite"] = spent(*SUITE)
        report("make test", found["suite"])
    suite = found.get("suite")
    times = {"suite_s": suite.seconds, "suite_cpu_s": suite.cpu} if suite else {}
    times |= {"plan_cpu_s": found["plan"].cpu, "check_s": found["check"].seconds, "help_s": found["help"].seconds}
    print(json.dumps({key: round(value, 2) for key, value in times.items()}))
    met = suite is None or (suite.seconds <= GOAL_S and suite.cpu <= GOAL_CPU_S)
    return 0 if met and all(run.status == 0 for run in found.values()) else 1


def spent(*command: str) -> Spent:
    """Run a command to its end, and to that of everything that it started."""
    before, start = cpu_of_children(), time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        status = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False, stdout=log, stderr=log).returncode
        seconds = time.monotonic() - start
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:
                os.wait()
        log.seek(0)
        return Spent(seconds, cpu_of_children() - before, status, log.read())


def cpu_of_children() -> float:
    """Return the processor seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(what: str, run: Spent) -> None:
    """Print one line; what a failed command printed follows."""
    print(f"{what}: {run.seconds:.1f} s, {run.cpu:.1f} s of processor time", flush=True)
    if run.status:
        print(f"  ended with status {run.status}:\n{run.printed[-4000:]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
