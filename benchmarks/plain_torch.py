"""Other people's DiTs in plain torch: what comes of each, whatever is done with it?

    python benchmarks/plain_torch.py [MODULE ...] [--cells blocks heads ffn budget reload again lora onnx] [--list]

The modules are those of ``tests/structure/catalogue.py``. Each is pruned through one recorded call, by every axis
alone and by a budget; then, with all that can go gone, saved and loaded in a process that has no dit-compress, pruned
again, followed by a LoRA, exported to ONNX. The reference (``plain/reference.py``) knows no masks of the toolkit.
A cell is *exact* (1e-10 in float64, relative), *refused* with a reason, *silently wrong* or *crashed* (a traceback, or
a refusal without a reason).

The last line is one JSON object. Exit status 1 where a cell is silently wrong or crashed, or with fewer than 20 modules
where none was named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "structure"
sys.path[:0] = [str(HERE / "plain"), str(TESTS)]

from catalogue import ENTRIES  # noqa: E402 - of the tests
from cells import CELLS, EXACT, Cell, Trial  # noqa: E402 - beside this file

MODULES = 20


def main() -> int:
    """One row per module, what needs a word below it, and one JSON object."""
    arguments = parsed()
    if arguments.list:
        print("\n".join(ENTRIES))
        return 0
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    names, start = arguments.modules or list(ENTRIES), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trials = (Trial(name, ENTRIES[name], Path(folder)) for name in progress(names))
        found = {trial.name: list(trial.cells(arguments.cells)) for trial in trials}
        reloaded(found, Path(folder))
    for name, cells in found.items():
        show(name, cells)
    kinds = Counter(cell.kind for cells in found.values() for cell in cells)
    figures = {
        "modules": len(found),
        "cells": kinds.total(),
        "exact": kinds["exact"],
        "refused_with_reason": kinds["refused"],
        "silent": kinds["silent"],
        "crashed": kinds["crashed"],
        "seconds": round(time.monotonic() - start),
    }
    print(json.dumps(figures))
    few = not arguments.modules and len(found) < MODULES
    return int(bool(kinds["silent"] or kinds["crashed"] or few))


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Plain torch modules through all that pruning offers.")
    parser.add_argument("modules", nargs="*", help="by name; all of them if absent")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, help="what is tried; all of it if absent")
    parser.add_argument("--list", action="store_true", help="print the modules' names")
    found = parser.parse_args()
    if unknown := sorted(set(found.modules) - ENTRIES.keys()):
        parser.error(f"no such module: {', '.join(unknown)}")
    return found


def progress(names: list[str]) -> Iterator[str]:
    """Give the names, saying each when its turn comes."""
    for place, name in enumerate(names, 1):
        print(f"[{place}/{len(names)}] {name}", file=sys.stderr, flush=True)
        yield name


def reloaded(found: dict[str, list[Cell]], folder: Path) -> None:
    """Load what was saved in one process without the package; the cells say what came of it."""
    written = ("reload", "exact")
    saved = {name: cell for name, cells in found.items() for cell in cells if (cell.name, cell.kind) == written}
    if not saved:
        return
    command = [sys.executable, str(HERE / "plain" / "fresh.py"), str(TESTS), str(folder), *saved]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = dict.fromkeys(saved, done.stderr[-300:])
    if done.returncode == 0:
        said = json.loads(done.stdout.splitlines()[-1])
    for name, cell in saved.items():
        if isinstance(said[name], str):
            cell.kind, cell.text = "crashed", said[name]
        elif not said[name] <= EXACT[ENTRIES[name].dtype]:
            cell.kind, cell.text = "silent", f"{said[name]:.0e} off after a reload"


def show(name: str, cells: list[Cell]) -> None:
    """Print a row, and what is not exact."""
    marks = {"exact": "=", "refused": "r", "silent": "SILENT", "crashed": "CRASHED"}
    print(f"{name:22}" + "  ".join(f"{cell.name} {marks[cell.kind]}" for cell in cells))
    for kind, text in dict.fromkeys((cell.kind, cell.text) for cell in cells if cell.text):
        print(f"    {kind}: {text}")


if __name__ == "__main__":
    sys.exit(main())
