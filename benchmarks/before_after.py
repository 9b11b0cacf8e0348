"""One recipe on two versions of the toolkit, at the same time, one thread each: quality and time side by side.

    python benchmarks/before_after.py [COMMIT] [--recipe recipes/quickstart.yaml] [--out runs/before-after]

``COMMIT`` (by default the one before training on several processes, checkpoints of DCP and the guards came in) is
cloned and built from this repository; the other is the installed toolkit. Same recipe, same machine, same minutes:
load of other work falls on both alike, and *processor seconds* (of the command and all its steps) do not count it.
The last line is one JSON object: ``processor_seconds`` (before, after, their ratio) and every number that both
versions measured, ``quality`` (before, after). Exit status 2 where a version can't run the recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dit_compress.core.files import read_json

ROOT = Path(__file__).parents[1]
BEFORE = "6695381"


def built(commit: str, folder: Path) -> Path:
    """Build a version of this repository as a folder of packages."""
    code, packages = folder / "code", folder / "packages"
    git = shutil.which("git") or "git"
    subprocess.run([git, "clone", "-q", "--shared", str(ROOT), str(code)], check=True)
    subprocess.run([git, "-C", str(code), "checkout", "-q", commit], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(packages), str(code)], check=True)
    return packages


def start(recipe: Path, folder: Path, packages: Path | None) -> subprocess.Popen[bytes]:
    """Start the command on one version, with one thread; what it prints goes beside the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    command = [sys.executable, "-P", "-c", "from dit_compress.cli.app import main; main()", "run", str(recipe)]
    command += ["--out", str(folder), "--threads", "1"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder.parent)


def finish(process: subprocess.Popen[bytes], log: Path) -> float:
    """Return the processor seconds of a run and of the steps' processes it waited for."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.stderr.write(f"status {process.returncode}:\n{log.read_text('utf-8')[-3000:]}\n")
        raise SystemExit(2)
    return used.ru_utime + used.ru_stime


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """Return every number of every step, its wall time included."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "steps").glob("*/step.json"), key=lambda path: path.stat().st_mtime_ns):
        step = read_json(path)
        numbers = {name: value for name, value in step["metrics"].items() if isinstance(value, int | float)}
        found[step["name"]] = {"seconds": step["seconds"], **numbers}
    return found


def main() -> int:
    """Run both, print the figures that both have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default=BEFORE)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/before-after"), help="a new folder")
    given = parser.parse_args()
    out = given.out.resolve()
    if out.exists():
        parser.error(f"{out} exists: name another folder, or delete it")
    names = ("before", "after")
    with tempfile.TemporaryDirectory() as name:
        versions = dict(zip(names, (built(given.commit, Path(name)), None), strict=True))
        runs = {each: start(given.recipe.resolve(), out / each, versions[each]) for each in names}
        try:
            spent = {each: finish(run, out / f"{each}.log") for each, run in runs.items()}
        finally:
            for run in runs.values():
                if run.returncode is None:
                    run.terminate()
    before, after = (measured(out / each) for each in names)
    quality: dict[str, Any] = {}
    print(f"{'step':<20}{'figure':<28}{'before':>14}{'after':>14}")
    for step in (step for step in before if step in after):
        for figure in (figure for figure in before[step] if figure in after[step]):
            pair = [before[step][figure], after[step][figure]]
            print(f"{step:<20}{figure:<28}{pair[0]:>14.6g}{pair[1]:>14.6g}")
            if figure != "seconds":
                quality.setdefault(step, {})[figure] = [float(f"{value:.6g}") for value in pair]
    seconds = {each: round(value, 1) for each, value in spent.items()}
    seconds["ratio"] = round(spent["after"] / spent["before"], 3)
    print(json.dumps({"before": given.commit, "processor_seconds": seconds, "quality": quality}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
